"""AdamW whose threads each keep some of the parameters, their gradients and their moments.

The arithmetic is torch's fused AdamW. Splitting it by parameters instead of inside each operation lets a
step's threads add up their gradients, take the norm and move the weights without waiting for each other in
between. Which thread has which parameter changes no number but the order in which the norm is added up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from bithaul.errors import InvalidInput
from bithaul.training.recipe import TrainingRecipe
from bithaul.training.team import Team

Moments = dict[str, dict[str, Tensor]]


class _Share:
    """The parameters of one thread, by their places in the model's order."""

    def __init__(self, named: Sequence[tuple[int, str, nn.Parameter]], recipe: TrainingRecipe) -> None:
        self.named = named
        matrices = [p for _, name, p in named if p.dim() == 2 and "embed" not in name]
        gains = [p for _, _, p in named if p.dim() != 2]
        embedding = [p for _, name, p in named if "embed" in name]
        groups = [
            {"params": matrices, "decays": True, "share": 1.0},
            {"params": gains, "decays": False, "share": 1.0},
            {"params": embedding, "decays": False, "share": recipe.embedding_lr_share},
        ]
        self.adamw = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=0.0,
            betas=recipe.betas,
            eps=recipe.eps,
            weight_decay=0.0,
            fused=True,
        )

    def take(self, gradients: Sequence[Sequence[Tensor]]) -> float:
        """Sum of squares of the sum of these gradients, which becomes that of the parameters."""
        mine = [[each[place] for place, _, _ in self.named] for each in gradients]
        first, *others = mine
        for other in others:
            torch._foreach_add_(first, other)
        for (_, _, parameter), gradient in zip(self.named, first, strict=True):
            parameter.grad = gradient
        return sum(float(norm) ** 2 for norm in torch._foreach_norm(first))

    def step(self, lr: float, weight_decay: float, shrink: float) -> None:
        parameters = [parameter for _, _, parameter in self.named]
        if shrink < 1.0:
            torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], shrink)
        for group in self.adamw.param_groups:
            group["lr"] = lr * group["share"]
            group["weight_decay"] = weight_decay if group["decays"] else 0.0
        self.adamw.step()
        # Fused optimizers do not advance version counters, on which cached ternary codes depend.
        torch.autograd.graph.increment_version(parameters)


class SharedAdamW:
    """Weight decay acts on latent matrices only; the embedding has its share of the rate."""

    def __init__(self, model: nn.Module, recipe: TrainingRecipe, team: Team) -> None:
        self._team = team
        named = [(place, name, p) for place, (name, p) in enumerate(model.named_parameters())]
        parts: list[list[tuple[int, str, nn.Parameter]]] = [[] for _ in range(team.threads)]
        for entry in sorted(named, key=lambda e: -e[2].numel()):  # the largest first, to whoever has least
            min(parts, key=lambda part: sum(p.numel() for _, _, p in part)).append(entry)
        self._shares = [_Share(part, recipe) for part in parts if part]

    def forget_gradients(self) -> None:
        for share in self._shares:
            share.adamw.zero_grad(set_to_none=True)

    def take(self, gradients: Sequence[Sequence[Tensor]]) -> float:
        """The norm of the sum of some gradients, each in the model's order; they are used up."""
        squares = self._team.each(lambda share: share.take(gradients), self._shares)
        return math.sqrt(sum(squares))

    def step(self, *, lr: float, weight_decay: float, shrink: float) -> None:
        """Move the parameters by the gradients taken, times `shrink`."""
        with torch.no_grad():
            self._team.each(lambda share: share.step(lr, weight_decay, shrink), self._shares)

    def state(self) -> Moments:
        """Moments and counter of each parameter by name, on the CPU."""
        return {
            name: {key: value.to("cpu", copy=True) for key, value in share.adamw.state[parameter].items()}
            for share in self._shares
            for _, name, parameter in share.named
            if parameter in share.adamw.state
        }

    def load(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take over moments made by `state`, of any number of threads; parameters without any start afresh.

        Raises `InvalidInput`, and changes nothing, when they are those of another model.
        """
        shapes = {name: parameter.shape for share in self._shares for _, name, parameter in share.named}
        for name, moments in state.items():
            if name not in shapes:
                raise InvalidInput(f"The moments are of another model: it has {name!r}, this one has not.")
            for key in ("exp_avg", "exp_avg_sq"):
                found = tuple(moments[key].shape) if key in moments else None
                if found != tuple(shapes[name]):
                    raise InvalidInput(
                        f"The moments are of another model: {key} of {name!r} has shape {found}, "
                        f"here it must be {tuple(shapes[name])}."
                    )
        for share in self._shares:
            share.adamw.state.clear()
            for _, name, parameter in share.named:
                if name in state:
                    moments = {
                        key: value.to(parameter.device, copy=True) for key, value in state[name].items()
                    }
                    share.adamw.state[parameter] = moments

"""AdamW whose threads share the parameters: torch's numbers, and moments that fit or are refused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from bithaul.errors import InvalidInput
from bithaul.training.optimizer import SharedAdamW
from bithaul.training.recipe import TrainingRecipe
from bithaul.training.team import Team

RECIPE = TrainingRecipe()


class Net(nn.Module):
    def __init__(self, width: int = 6) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embed_tokens = nn.Parameter(torch.randn(9, width, generator=generator))
        self.gain = nn.Parameter(torch.ones(width))
        self.up = nn.Parameter(torch.randn(width, width, generator=generator))
        self.down = nn.Parameter(torch.randn(width, width, generator=generator))


@pytest.fixture(params=[1, 2, 5])
def team(request: pytest.FixtureRequest) -> Iterator[Team]:
    team = Team(request.param)
    yield team
    team.close()


def gradients(net: Net, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(p.shape, generator=generator) for p in net.parameters()]


def test_it_moves_as_torch_does_with_decay_on_matrices_only(team: Team) -> None:
    mine, theirs = Net(), Net()
    adamw = SharedAdamW(mine, RECIPE, team)
    groups = [
        {"params": [theirs.up, theirs.down], "weight_decay": 0.1},
        {"params": [theirs.gain], "weight_decay": 0.0},
        {"params": [theirs.embed_tokens], "weight_decay": 0.0, "lr": 0.01 * RECIPE.embedding_lr_share},
    ]
    reference = torch.optim.AdamW(groups, lr=0.01, betas=RECIPE.betas, eps=RECIPE.eps)
    for seed in range(4):
        parts = [gradients(mine, seed), gradients(mine, 100 + seed)]
        total = [a + b for a, b in zip(*parts, strict=True)]
        norm = adamw.take(parts)
        assert norm == pytest.approx(float(torch.sqrt(sum((g**2).sum() for g in total))), rel=1e-5)
        for parameter, gradient in zip(theirs.parameters(), total, strict=True):
            parameter.grad = 0.5 * gradient
        adamw.step(lr=0.01, weight_decay=0.1, shrink=0.5)
        reference.step()
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_moments_go_over_to_another_number_of_threads(team: Team) -> None:
    first = Net()
    one = Team(1)
    source = SharedAdamW(first, RECIPE, one)
    source.take([gradients(first, 1)])
    source.step(lr=0.01, weight_decay=0.1, shrink=1.0)
    second = Net()
    second.load_state_dict(first.state_dict())
    target = SharedAdamW(second, RECIPE, team)
    target.load(source.state())
    for adamw, net in ((source, first), (target, second)):
        adamw.take([gradients(net, 2)])
        adamw.step(lr=0.01, weight_decay=0.1, shrink=1.0)
    one.close()
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("wrong", ["name", "shape", "missing moment"])
def test_moments_of_another_model_are_refused_and_change_nothing(team: Team, wrong: str) -> None:
    net = Net()
    adamw = SharedAdamW(net, RECIPE, team)
    adamw.take([gradients(net, 1)])
    adamw.step(lr=0.01, weight_decay=0.0, shrink=1.0)
    before = adamw.state()
    state = adamw.state()
    if wrong == "name":
        state["other"] = state.pop("up")
    elif wrong == "shape":
        state["up"]["exp_avg"] = torch.zeros(6, 7)
    else:
        del state["up"]["exp_avg_sq"]
    with pytest.raises(InvalidInput, match="another model"):
        adamw.load(state)
    after = adamw.state()
    assert all(torch.equal(after[n][k], before[n][k]) for n in before for k in before[n])

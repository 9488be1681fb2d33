"""How a network reads a request before it answers: its logits of all intents, and how usual the words are.

Evaluation asks for it, `classify` does not: every token of the request needs its logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bithaul.model.transformer import BitNetForCausalLM

_BLOCK_VALUES = 1 << 23  # logits at a time: 32 MiB
_GIVEN = 2  # [BOS] [USER]


@dataclass(frozen=True)
class Reading:
    """One request. `logits` of the intents in the model's order; their softmax is the confidence.

    `text_nats` is the mean -log p of the request's tokens and the `[INTENT]` behind them.
    """

    logits: tuple[float, ...]
    text_nats: float


def read_prompts(
    network: BitNetForCausalLM, hidden: Tensor, prompts: Sequence[Sequence[int]], *, intent_logits: Tensor
) -> list[Reading]:
    """The reading of each of B prompts `[BOS] [USER] words [INTENT] {"intent":`.

    `hidden` [B, T, H] are the states of the prompts, padded on the right; `intent_logits` [B, I].
    """
    rows = [row for row, prompt in enumerate(prompts) for _ in range(_GIVEN, len(prompt) - 1)]
    places = [at for prompt in prompts for at in range(_GIVEN, len(prompt) - 1)]
    targets = torch.tensor([prompts[row][at] for row, at in zip(rows, places, strict=True)])
    owner, before = torch.tensor(rows), torch.tensor(places) - 1
    nats = torch.zeros(len(prompts), dtype=torch.float64)
    step = max(1, _BLOCK_VALUES // network.config.vocab_size)
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        logits = network.logits(hidden[owner[part], before[part]])
        found = torch.nn.functional.cross_entropy(logits, targets[part], reduction="none")
        nats.index_add_(0, owner[part], torch.nan_to_num(found, nan=1e30, posinf=1e30).double())
    means = nats / torch.bincount(owner, minlength=len(prompts))
    return [
        Reading(tuple(logits), mean)
        for logits, mean in zip(intent_logits.double().tolist(), means.tolist(), strict=True)
    ]

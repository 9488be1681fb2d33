"""From token ids of examples to one inner batch: laid end to end, with targets and their weights.

No padding and no truncation. Every token but an example's first is a target once. `tokens` counts targets,
the unit in which budgets and speeds are stated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bithaul.model.segments import Segments

Example = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Batch:
    """N inputs of several examples, each predicting the next token of its example."""

    input_ids: Tensor  # int64 [N]
    targets: Tensor  # int64 [N]
    weights: Tensor  # float32 [N]
    segments: Segments
    examples: int

    @property
    def tokens(self) -> int:
        return int(self.targets.shape[0])


def pack(examples: Sequence[Example], *, label_token: int | None, text_loss_weight: float) -> Batch | None:
    """One batch; None when no example has a target (all shorter than two tokens).

    Targets after the first `label_token` of an example weigh 1, the ones before and the label token itself
    `text_loss_weight`. An example without label token, and every example when it is None, weighs 1.
    """
    usable = [example for example in examples if len(example) > 1]
    if not usable:
        return None
    inputs = torch.from_numpy(np.concatenate([e[:-1] for e in usable]).astype(np.int64))
    targets = torch.from_numpy(np.concatenate([e[1:] for e in usable]).astype(np.int64))
    weights = torch.from_numpy(np.concatenate([_weights(e, label_token, text_loss_weight) for e in usable]))
    segments = Segments.of_lengths(torch.tensor([len(e) - 1 for e in usable]))
    return Batch(inputs, targets, weights, segments, len(examples))


def inner_batches(examples: Sequence[Example], size: int) -> Iterator[Sequence[Example]]:
    """Consecutive groups of `size` examples, in order; only the last may be smaller."""
    for start in range(0, len(examples), size):
        yield examples[start : start + size]


def _weights(example: Example, label_token: int | None, text_loss_weight: float) -> npt.NDArray[np.float32]:
    weights = np.ones(len(example) - 1, dtype=np.float32)
    if label_token is not None:
        found = np.flatnonzero(example == label_token)
        if found.size:
            weights[: found[0]] = text_loss_weight
    return weights

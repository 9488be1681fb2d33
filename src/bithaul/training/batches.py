"""From token ids of examples to one inner batch: laid end to end, with targets and their weights.

No truncation. Every token but an example's first is a target once. `tokens` counts targets, the unit in which
budgets and speeds are stated. The end is padded by less than `GRANULE` inputs of weight 0, so that products
come in few shapes: the CPU library compiles and keeps a kernel for each shape it meets, and with batches of
any length the memory of a `small` trainer grew past 3 GB instead of staying below 1 (docs/lab/0001). Threads
share a batch, so a share may be 250 tokens: a granule of 128 cost a quarter of that (docs/lab/0010).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bithaul.model.segments import Segments

GRANULE = 32
Example = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Batch:
    """N inputs of several examples, each predicting the next token of its example; padding at the end."""

    input_ids: Tensor  # int64 [N]
    targets: Tensor  # int64 [N]
    weights: Tensor  # float32 [N]
    segments: Segments
    examples: int
    tokens: int  # targets, without padding

    def to(self, device: torch.device) -> Batch:
        """The same, with the tensors on `device`."""
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            targets=self.targets.to(device),
            weights=self.weights.to(device),
            segments=self.segments.to(device),
        )


def pack(examples: Sequence[Example], *, label_token: int | None, text_loss_weight: float) -> Batch | None:
    """One batch, short examples first; None when no example has a target (all shorter than two tokens).

    Targets after the first `label_token` of an example weigh 1, the ones before and the label token itself
    `text_loss_weight`. An example without label token, and every example when it is None, weighs 1.
    """
    usable = sorted((example for example in examples if len(example) > 1), key=len)
    if not usable:
        return None
    lengths = [len(e) - 1 for e in usable]
    tokens = sum(lengths)
    padding = -tokens % GRANULE
    fill = np.zeros(padding, dtype=np.int32)
    no_weight = np.zeros(padding, dtype=np.float32)
    inputs = torch.from_numpy(np.concatenate([*(e[:-1] for e in usable), fill]).astype(np.int64))
    targets = torch.from_numpy(np.concatenate([*(e[1:] for e in usable), fill]).astype(np.int64))
    each = [_weights(e, label_token, text_loss_weight) for e in usable]
    weights = torch.from_numpy(np.concatenate([*each, no_weight]))
    segments = Segments.of_lengths(torch.tensor(lengths + _pieces(padding, max(lengths))))
    return Batch(inputs, targets, weights, segments, len(examples), tokens)


def inner_batches(examples: Sequence[Example], size: int) -> Iterator[Sequence[Example]]:
    """Consecutive groups of `size` examples, in order; only the last may be smaller."""
    for start in range(0, len(examples), size):
        yield examples[start : start + size]


def _pieces(total: int, most: int) -> list[int]:
    """`total` as pieces of at most `most`, so that padding never widens the attention rectangle."""
    return [min(most, total - start) for start in range(0, total, most)]


def _weights(example: Example, label_token: int | None, text_loss_weight: float) -> npt.NDArray[np.float32]:
    weights = np.ones(len(example) - 1, dtype=np.float32)
    if label_token is not None:
        found = np.flatnonzero(example == label_token)
        if found.size:
            weights[: found[0]] = text_loss_weight
    return weights

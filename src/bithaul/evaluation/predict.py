"""The probability a network gives to every counted token of a text, each read with a window of context.

Text longer than the context is read in windows that overlap; every token is scored in exactly one of them. It
knows no vocabulary and no figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from bithaul.evaluation.documents import Framed, Ids
from bithaul.model.transformer import BitNetForCausalLM

_BATCH_TOKENS = 4096
_BLOCK_VALUES = 1 << 23  # logits at a time: 32 MiB
_WIDTH = 16  # windows are padded to a multiple of this: the CPU library keeps a kernel for every shape

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Window:
    """Tokens `start` to `stop` (without) of row `row` are read; those from `first` on are scored."""

    row: int
    start: int
    stop: int
    first: int


@dataclass(frozen=True)
class Prediction:
    """Of each predicted token: its probability [N], and what `floor` would add to its distribution [N]."""

    probabilities: Floats
    added: Floats


def windows(length: int, *, context: int, stride: int, row: int = 0) -> Iterator[Window]:
    """Windows over a row of `length` tokens: each of tokens 1 to `length - 1` is scored in exactly one.

    A window has at most `context` inputs, and as many as there are before its last token.
    """
    scored = 1
    while scored < length:
        stop = min(length, scored + (context if scored == 1 else stride))
        yield Window(row, max(0, stop - 1 - context), stop, scored)
        scored = stop


@torch.no_grad()
def predict(
    network: BitNetForCausalLM,
    text: Framed,
    *,
    stride: int,
    floor: float,
    on_progress: Callable[[int], None] | None = None,
) -> Prediction:
    """The probability of every counted token of `text`, in the order of `text.predicted`."""
    context = network.config.context_length
    every = [
        window
        for row, ids in enumerate(text.rows)
        for window in windows(len(ids), context=context, stride=stride, row=row)
    ]
    found = [np.full((2, len(ids)), np.nan) for ids in text.rows]
    done = 0
    for batch in _batches(every):
        targets = [_targets(window, text) for window in batch]
        probabilities, added = _read(network, batch, targets, text, floor)
        at = 0
        for window, places in zip(batch, targets, strict=True):
            part = slice(at, at + len(places))
            found[window.row][:, places] = np.stack([probabilities[part], added[part]])
            at += len(places)
        done += at
        if on_progress is not None:
            on_progress(done)
    flat = np.concatenate([row[:, counted] for row, counted in zip(found, text.counted, strict=True)], axis=1)
    return Prediction(flat[0], flat[1])


def _targets(window: Window, text: Framed) -> Ids:
    """Places in the row of the tokens that this window predicts and that count."""
    return window.first + np.flatnonzero(text.counted[window.row][window.first : window.stop])


def _batches(every: Sequence[Window]) -> Iterator[list[Window]]:
    """Windows of the same padded width together."""
    batch: list[Window] = []
    for window in sorted(every, key=_width):
        if batch and (
            _width(batch[0]) != _width(window) or (len(batch) + 1) * _width(window) > _BATCH_TOKENS
        ):
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def _width(window: Window) -> int:
    return -(-(window.stop - 1 - window.start) // _WIDTH) * _WIDTH


def _read(
    network: BitNetForCausalLM, batch: Sequence[Window], targets: Sequence[Ids], text: Framed, floor: float
) -> tuple[Floats, Floats]:
    """Probabilities and added mass of the targets of all windows, end to end."""
    width = min(_width(batch[0]), network.config.context_length)
    ids = torch.zeros((len(batch), width), dtype=torch.int64)
    for i, window in enumerate(batch):  # padding on the right is never seen: attention is causal
        inputs = text.rows[window.row][window.start : window.stop - 1]
        ids[i, : len(inputs)] = torch.from_numpy(inputs)
    hidden = network(ids)
    rows = np.repeat(np.arange(len(batch)), [len(places) for places in targets])
    pairs = list(zip(batch, targets, strict=True))
    columns = np.concatenate([places - 1 - window.start for window, places in pairs])
    wanted = np.concatenate([text.rows[window.row][places] for window, places in pairs])
    chosen = hidden[torch.from_numpy(rows), torch.from_numpy(columns)]
    probabilities, added = np.empty(len(wanted)), np.empty(len(wanted))
    step = max(1, _BLOCK_VALUES // network.config.vocab_size)
    for start in range(0, len(wanted), step):
        part = slice(start, start + step)
        logs = torch.log_softmax(network.logits(chosen[part]), dim=-1)
        picked = logs.gather(1, torch.from_numpy(wanted[part])[:, None])[:, 0]
        probabilities[part] = picked.double().exp().numpy()
        added[part] = (floor - logs.exp_()).clamp_min_(0.0).sum(dim=-1).double().numpy()
    return probabilities, added

"""The gates an update passes before it may count, in order of cost (exchange.md §9, 2 to 4, and 7).

Reads the whole frame once for its SHA-256 and once to decode it, in pieces; writes nothing. Form, hash,
finite values and the run's ceiling always hold; the gates `norm` and `copy` where the run switched them on. A
copy is a payload that is another's to the byte, or a sparse update whose largest values stand where those of
another's do (as Templar finds near copies; honest dense updates may look so too). The later one is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bithaul.coordinator.database.runs import RunRow
from bithaul.coordinator.database.work import LeaseRow
from bithaul.coordinator.lookalikes import Places
from bithaul.errors import CorruptFile, InvalidInput
from bithaul.exchange.codecs import codec_named
from bithaul.exchange.frame import read_header, verify_payload
from bithaul.exchange.messages import ReportHeader
from bithaul.exchange.pieces import Codec, FloatVector
from bithaul.exchange.sparse import SparsePiece
from bithaul.model.layout import Layout
from bithaul.rounds.gates import LARGEST, Gate, Seen, is_copy, largest_of, norm_gate

CHUNK_VALUES = 262_144
FEWEST_PLACES = 2 * LARGEST  # with fewer, most of two honest updates would be compared
NON_FINITE = {"payload_not_finite", "payload_scale"}
NON_FINITE_CODE = "non_finite"
COPIED = "Another worker has delivered this very update."


@dataclass(frozen=True)
class Passed:
    """The update is well-formed; `norm` is the L2 norm of the decoded vector, `clip` the factor on it."""

    header: ReportHeader
    norm: float
    clip: float = 1.0


@dataclass(frozen=True)
class Refused:
    """`code` is stable; `header` is None when even that could not be read."""

    code: str
    reason: str
    header: ReportHeader | None

    @property
    def strikes(self) -> bool:
        """Whether it says something about the worker, and not only about the way the bytes came."""
        return self.code in (NON_FINITE_CODE, "norm")


@dataclass(frozen=True)
class Given:
    """What was leased: so many `examples`, and the tokens that the first n of them hold."""

    examples: int
    tokens_of: Callable[[int], int]


@dataclass(frozen=True)
class Before:
    """What the gates compare with: `past` updates, the newest last; whether a payload was another's; where
    the largest values of the last updates of others stand."""

    past: Sequence[Seen] = ()
    is_anothers: Callable[[str], bool] = lambda _: False
    others: Callable[[], Iterable[Places]] = tuple


def judge(
    run: RunRow, lease: LeaseRow, path: Path, *, lineage: int, given: Given, before: Before
) -> Passed | Refused:
    """Whether the frame at `path` is an acceptable report for this lease, whose base is of `lineage`."""
    header: ReportHeader | None = None
    try:
        with path.open("rb") as file:
            header = read_header(file)
            wrong = judge_header(run, lease, header, lineage=lineage, given=given)
            if wrong is not None:
                return wrong
            verify_payload(file, header)
            if Gate.COPY in run.gates and before.is_anothers(header.payload_sha256):
                return Refused("copy", COPIED, header)
            square = 0.0
            sparse = _Largest()
            for piece in codec_named(run.codec).pieces(file, run.layout, chunk_values=CHUNK_VALUES):
                square += piece.square()
                if Gate.COPY in run.gates and isinstance(piece, SparsePiece):
                    sparse.add(piece)
    except (CorruptFile, InvalidInput) as error:
        code = NON_FINITE_CODE if error.error_code in NON_FINITE else error.error_code
        return Refused(code, error.message, header)
    norm = math.sqrt(square) if math.isfinite(square) else math.inf
    if not math.isfinite(norm):
        return Refused("non_finite", "The update's norm is not a finite number.", header)
    if run.max_update_norm is not None and norm > run.max_update_norm:
        return Refused(
            "norm",
            f"The update's norm {norm:.4g} is above the run's ceiling {run.max_update_norm:.4g}.",
            header,
        )
    clip = 1.0
    if Gate.NORM in run.gates:
        verdict = norm_gate(Seen(lease.worker, norm, header.steps), before.past)
        if verdict.refused:
            return Refused("norm", verdict.reason, header)
        clip = verdict.clip
    if sparse.count >= FEWEST_PLACES:
        mine = sparse.places()
        if any(is_copy(mine, theirs) for theirs in before.others()):
            return Refused("copy", "Another worker has delivered nearly this update.", header)
    return Passed(header, norm, clip)


def largest_places(path: Path, *, codec: Codec, layout: Layout) -> Places:
    """Where the largest values of a sparse update's frame stand. Raises `CorruptFile`."""
    found = _Largest()
    with path.open("rb") as file:
        read_header(file)
        for piece in codec.pieces(file, layout, chunk_values=CHUNK_VALUES):
            if isinstance(piece, SparsePiece):
                found.add(piece)
    return found.places()


class _Largest:
    """Gathers what sparse pieces name."""

    def __init__(self) -> None:
        self._where: list[Places] = []
        self._kept: list[FloatVector] = []
        self.count = 0

    def add(self, piece: SparsePiece) -> None:
        self._where.append(piece.places + piece.offset)
        self._kept.append(piece.kept)
        self.count += piece.places.size

    def places(self) -> Places:
        if not self._where:
            return np.empty(0, np.int64)
        return largest_of(np.concatenate(self._where), np.concatenate(self._kept))


def judge_header(
    run: RunRow, lease: LeaseRow, header: ReportHeader, *, lineage: int, given: Given
) -> Refused | None:
    """Whether the header describes a report of this lease; None: it does.

    An update weighs by its tokens and may be larger the more steps it took, so neither is taken on trust.
    """

    def refused(code: str, reason: str) -> Refused:
        return Refused(code, reason, header)

    if header.task != lease.task_id or header.fence != lease.fence:
        return refused("foreign_task", "The update belongs to another task or lease than it was sent for.")
    if header.run != run.name:
        return refused("foreign_run", f"The update belongs to the run {header.run!r}, this is {run.name!r}.")
    if header.layout_hash != run.layout_hash:
        return refused("layout_mismatch", "The update was made for another parameter layout.")
    if header.codec != run.codec:
        return refused("codec", f"The update uses {header.codec}, the run {run.codec}.")
    expected = codec_named(run.codec).encoded_size(run.layout)
    if header.payload_size != expected:
        return refused(
            "wrong_length", f"The payload has {header.payload_size} bytes, it must have {expected}."
        )
    if header.base_version != lease.base_version or header.lineage != lineage:
        return refused(
            "foreign_base",
            f"The update starts from version {header.base_version} of lineage {header.lineage}, not from "
            f"version {lease.base_version} of lineage {lineage}.",
        )
    if not 1 <= header.examples <= given.examples:
        return refused("counts", f"{header.examples} examples were used of a slice of {given.examples}.")
    if not 1 <= header.tokens <= (most := given.tokens_of(header.examples)):
        return refused("counts", f"The {header.examples} examples have {most} tokens, not {header.tokens}.")
    if not 1 <= header.steps <= (steps := math.ceil(header.examples / run.batch_examples)):
        return refused("counts", f"The {header.examples} examples make {steps} steps, not {header.steps}.")
    return None

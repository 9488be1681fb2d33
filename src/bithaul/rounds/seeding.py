"""What an operator may cut ahead of demand: so many tasks of so many examples, next in the endless order.

Pure: facts and wishes go in, the slices and what stays free come out, or sentences that say why not. The
slices are those that as many claims would cut: from the returned ranges first, then from the cursor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from bithaul.rounds.positions import Free, Span, shares

MOST_TASKS = 10_000
MOST_EXAMPLES = 200_000  # of one task: its ranges are one message, its examples lie in a worker's memory


@dataclass(frozen=True)
class SeedingFacts:
    """Of the run now. `remaining_*` of the budget, infinity without one; of tokens what no merged, accepted,
    leased or waiting work covers."""

    free: Free
    finished: bool
    batch_examples: int
    tokens_per_example: float
    remaining_tokens: float
    remaining_seconds: float


@dataclass(frozen=True)
class SeedingPlan:
    """`slices` are empty when there are `problems`."""

    slices: tuple[tuple[Span, ...], ...]
    free: Free  # what stays free
    problems: tuple[str, ...]

    @property
    def first(self) -> int:
        """The lowest position."""
        return min(span.start for slice_ in self.slices for span in slice_)

    @property
    def last(self) -> int:
        """The highest position."""
        return max(span.end for slice_ in self.slices for span in slice_) - 1

    @property
    def mark(self) -> str:
        """The same for the same slices, so that what was looked at is what is done. Empty with problems."""
        if not self.slices:
            return ""
        digest = hashlib.blake2b(digest_size=16)
        for slice_ in self.slices:
            digest.update(repr([(span.start, span.count) for span in slice_]).encode())
        return digest.hexdigest()


def plan_seeding(facts: SeedingFacts, *, tasks: int, examples: int) -> SeedingPlan:
    """`tasks` tasks of `examples` examples each."""
    problems = [*_senseless(facts, tasks=tasks, examples=examples)] or [
        *_refused(facts, tasks=tasks, examples=examples)
    ]
    if problems:
        return SeedingPlan((), facts.free, tuple(problems))
    taken, free = facts.free.cut(tasks * examples)
    return SeedingPlan(shares(taken, examples), free, ())


def _senseless(facts: SeedingFacts, *, tasks: int, examples: int) -> Sequence[str]:
    found = []
    if not 1 <= tasks <= MOST_TASKS:
        found.append(f"Give a number of tasks from 1 to {MOST_TASKS:,}.")
    if not 1 <= examples <= MOST_EXAMPLES:
        found.append(f"Give a number of examples for each task from 1 to {MOST_EXAMPLES:,}.")
    elif examples % facts.batch_examples:
        batch = facts.batch_examples
        below = examples // batch * batch
        near = f"{below:,} or {below + batch:,}" if below else f"{batch:,}"
        found.append(f"A task has whole inner batches of {batch:,} examples: take {near}.")
    return found


def _refused(facts: SeedingFacts, *, tasks: int, examples: int) -> Sequence[str]:
    found = []
    if facts.finished:
        found.append("The run has ended. Give it a larger budget first.")
    elif facts.remaining_seconds <= 0:
        found.append("The run's time is used up. Give it a larger budget first.")
    wanted = tasks * examples * facts.tokens_per_example
    if not facts.finished and wanted > facts.remaining_tokens:
        room = max(0, int(facts.remaining_tokens // (examples * facts.tokens_per_example)))
        found.append(
            f"The run's token budget has room for {room:,} more tasks of this size, not for {tasks:,}."
        )
    return found


def usual_examples(
    *, speed: float, task_seconds: float, tokens_per_example: float, batch_examples: int
) -> int:
    """What a worker of this speed does in a task's time, in whole inner batches, at least one."""
    batches = round(speed * task_seconds / (tokens_per_example * batch_examples))
    most = max(1, MOST_EXAMPLES // batch_examples)
    return min(max(1, batches), most) * batch_examples

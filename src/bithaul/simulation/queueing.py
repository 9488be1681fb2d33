"""An operator who seeds tasks, takes seedings back and kicks what is stuck, in the middle of a rehearsal."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random
from typing import TypeVar

from bithaul.coordinator.commands.kick import kick_stuck
from bithaul.coordinator.commands.seed_tasks import seed_tasks, withdraw_seeding
from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.queries.seeding import seedings_view
from bithaul.errors import Conflict, OutOfDisk
from bithaul.simulation.house import House
from bithaul.simulation.invariants import Checker
from bithaul.simulation.virtual import VirtualTime
from bithaul.worker.link import Later

T = TypeVar("T")
MOST_TASKS, MOST_EXAMPLES = 12, 1600  # of one seeding; the latter are hours of work for a slow machine


class QueueOperator:
    """Counts what came of it: tasks `withdrawn` and `taken` of the seedings, and `kicked` ones."""

    def __init__(self, house: House, time: VirtualTime, checker: Checker, task_seconds: float) -> None:
        self._house, self._time, self._checker = house, time, checker
        self._task_seconds = task_seconds
        self.withdrawn = self.taken = self.kicked = 0

    def plan(self, random: Random, *, seedings: int, kicks: int, within: tuple[float, float]) -> None:
        """At random moments. Each seeding is taken back half a task later."""
        begin, end = within
        for _ in range(seedings):
            tasks, share = random.randint(1, MOST_TASKS), random.random()
            at = begin + random.random() * (end - begin)
            self._time.at(at, partial(self._seed, tasks, share))
        for i in range(kicks):
            self._time.at(begin + (i + random.random()) / kicks * (end - begin), self._kick)

    def _seed(self, tasks: int, share: float) -> None:
        batch = self._batch()
        examples = batch * max(1, int(share * MOST_EXAMPLES / batch))
        made = self._do(lambda c: seed_tasks(c, tasks=tasks, examples=examples))
        if made is not None:
            self._time.after(0.5 * self._task_seconds, partial(self._take_back, made.seeding))

    def _take_back(self, seeding: int) -> None:
        done = self._do(lambda c: withdraw_seeding(c, seeding))
        if done is not None:
            self.withdrawn += done.withdrawn
            self.taken += done.taken

    def _kick(self) -> None:
        kicked = self._do(kick_stuck)
        self.kicked += 0 if kicked is None else len(kicked.tasks)

    def _batch(self) -> int:
        view = self._do(seedings_view)
        return 1 if view is None else view.batch_examples

    def _do(self, use: Callable[[Coordinator], T]) -> T | None:
        """None when it could not be. Everything is looked at after it."""
        try:
            done = self._house.call(use)
        except (Later, Conflict, OutOfDisk):
            return None
        self._checker.audit()
        return done

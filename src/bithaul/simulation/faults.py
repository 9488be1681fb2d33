"""What goes wrong, when and how often: one line per fault in a script, or rates for a storm.

Every place where something may fail asks `strike` with a `Moment`; the answer is a list of faults. Rules
written by hand come first and fire once; rates are drawn from a seeded stream. Everything that fired is
counted, so a run cannot pass because nothing happened.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from random import Random


class Kind(StrEnum):
    DROP_REQUEST = "drop_request"  # it never arrives
    DROP_ACK = "drop_ack"  # it arrives, the answer does not
    DUPLICATE = "duplicate"  # it arrives twice
    REORDER = "reorder"  # it arrives after what was sent later; value: seconds later
    COPY = "copy"  # with the payload that another worker sent last; who: which
    CORRUPT = "corrupt"  # one byte changes on the way; value: which, 0 to 1
    NAN = "nan"  # well-formed, with a scale that is no number
    SLOW = "slow"  # value: times as slow a line
    KILL_MID_UPLOAD = "kill_mid_upload"  # value: share of the body that was sent
    KILL = "kill"  # in the middle of training
    SIGN_FLIP = "sign_flip"  # value: times as large, in the wrong direction
    NOISE = "noise"  # as long as the work that was done, in any direction
    HALF = "half"  # half of the steps, told as all
    SLEEP = "sleep"  # the lid is closed; value: seconds
    SKEW = "skew"  # the wall clock jumps; value: seconds
    PARTITION = "partition"  # nothing gets through; value: seconds
    CRASH = "crash"  # of the coordinator or of a worker, at one of its named points


class Where(StrEnum):
    REQUEST = "request"
    TRAIN = "train"
    WORKER_POINT = "worker point"
    COORDINATOR_POINT = "coordinator point"


@dataclass(frozen=True)
class Moment:
    """A place where something may fail. `name`: the route or the crash point."""

    where: Where
    name: str = ""
    worker: str = ""
    task: int = 0


@dataclass(frozen=True)
class Fault:
    """`back_after`: seconds until what died is started again; `who`: another worker."""

    kind: Kind
    value: float = 0.0
    back_after: float = 60.0
    who: str = ""


@dataclass
class Rule:
    """A fault for the `nth` moment that fits, once."""

    fault: Fault
    where: Where
    name: str | None = None
    worker: str | None = None
    task: int | None = None
    nth: int = 1

    def fits(self, moment: Moment) -> bool:
        return (
            self.where is moment.where
            and self.name in (None, moment.name)
            and self.worker in (None, moment.worker)
            and self.task in (None, moment.task)
        )


@dataclass(frozen=True)
class Rates:
    """A storm: the probability of each kind at each of its moments."""

    request: Mapping[Kind, float] = field(default_factory=dict)
    submit: Mapping[Kind, float] = field(default_factory=dict)
    train: Mapping[Kind, float] = field(default_factory=dict)
    worker_point: float = 0.0


class Faults:
    """`rules` and `rates`; with neither nothing fails."""

    def __init__(self, random: Random, *, rates: Rates | None = None) -> None:
        self._random = random
        self._rates = rates or Rates()
        self._rules: list[Rule] = []
        self.calm = False  # no more rates; rules stay
        self.counts: Counter[str] = Counter()

    def add(self, rule: Rule) -> None:
        self._rules.append(rule)

    def at(self, *, worker: str | None = None, task: int | None = None, nth: int = 1) -> Line:
        """The beginning of one line of a script: `faults.at(task=7).drop_ack()`."""
        return Line(self, worker, task, nth)

    def crash_coordinator(self, point: str, *, nth: int = 1, back_after: float = 60.0) -> None:
        """The coordinator dies at a named point and is started again."""
        self.add(Rule(Fault(Kind.CRASH, 0.0, back_after), Where.COORDINATOR_POINT, name=point, nth=nth))

    @property
    def left(self) -> list[Rule]:
        """Rules that did not fire."""
        return list(self._rules)

    def strike(self, moment: Moment) -> list[Fault]:
        struck = []
        for rule in [r for r in self._rules if r.fits(moment)]:
            rule.nth -= 1
            if rule.nth == 0:
                self._rules.remove(rule)
                struck.append(rule.fault)
        if not struck and not self.calm:
            struck = self._drawn(moment)
        for fault in struck:
            self.counts[fault.kind] += 1
        return struck

    def _drawn(self, moment: Moment) -> list[Fault]:
        """At most one: two at once hide each other."""
        match moment.where:
            case Where.REQUEST:
                rates = self._rates.submit if moment.name == "submit" else self._rates.request
            case Where.TRAIN:
                rates = self._rates.train
            case Where.WORKER_POINT:
                rates = {Kind.CRASH: self._rates.worker_point}
            case _:
                return []
        if not rates:
            return []
        draw = self._random.random()
        for kind, rate in rates.items():
            if draw < rate:
                away = self._random.random()
                return [Fault(kind, self._value(kind), 60.0 + 3600.0 * away * away)]
            draw -= rate
        return []

    def _value(self, kind: Kind) -> float:
        share = self._random.random()
        match kind:
            case Kind.SIGN_FLIP:
                return 10.0
            case Kind.SLOW:
                return 5.0 + 20.0 * share
            case Kind.REORDER:
                return 100.0 + 1700.0 * share
            case Kind.SLEEP | Kind.PARTITION:
                return 600.0 + 6600.0 * share
            case Kind.SKEW:
                return 7200.0 * share - 3600.0
            case _:
                return share


@dataclass(frozen=True)
class Line:
    """The end of one line of a script."""

    faults: Faults
    worker: str | None
    task: int | None
    nth: int

    def _on(
        self,
        where: Where,
        kind: Kind,
        value: float = 0.0,
        *,
        name: str | None = None,
        back: float = 60.0,
        who: str = "",
    ) -> None:
        rule = Rule(Fault(kind, value, back, who), where, name, self.worker, self.task, self.nth)
        self.faults.add(rule)

    def drop_request(self, route: str = "submit") -> None:
        self._on(Where.REQUEST, Kind.DROP_REQUEST, name=route)

    def drop_ack(self, route: str = "submit") -> None:
        self._on(Where.REQUEST, Kind.DROP_ACK, name=route)

    def duplicate(self, route: str = "submit") -> None:
        self._on(Where.REQUEST, Kind.DUPLICATE, name=route)

    def reorder(self, seconds: float = 600.0, route: str = "submit") -> None:
        self._on(Where.REQUEST, Kind.REORDER, seconds, name=route)

    def copy_of(self, worker: str) -> None:
        self._on(Where.REQUEST, Kind.COPY, name="submit", who=worker)

    def corrupt(self, share: float = 0.9) -> None:
        self._on(Where.REQUEST, Kind.CORRUPT, share, name="submit")

    def nan(self) -> None:
        self._on(Where.REQUEST, Kind.NAN, name="submit")

    def slow(self, times: float, route: str = "submit") -> None:
        self._on(Where.REQUEST, Kind.SLOW, times, name=route)

    def kill_mid_upload(self, share: float, *, back_after: float = 60.0) -> None:
        self._on(Where.REQUEST, Kind.KILL_MID_UPLOAD, share, name="submit", back=back_after)

    def kill(self, *, back_after: float = 60.0) -> None:
        self._on(Where.TRAIN, Kind.KILL, back=back_after)

    def sign_flip(self, times: float = 10.0) -> None:
        self._on(Where.TRAIN, Kind.SIGN_FLIP, times)

    def noise(self) -> None:
        self._on(Where.TRAIN, Kind.NOISE)

    def half(self) -> None:
        self._on(Where.TRAIN, Kind.HALF)

    def sleep(self, seconds: float) -> None:
        self._on(Where.TRAIN, Kind.SLEEP, seconds)

    def clock_skew(self, seconds: float) -> None:
        self._on(Where.TRAIN, Kind.SKEW, seconds)

    def partition(self, seconds: float, route: str | None = None) -> None:
        self._on(Where.REQUEST, Kind.PARTITION, seconds, name=route)

    def crash(self, point: str, *, back_after: float = 60.0) -> None:
        self._on(Where.WORKER_POINT, Kind.CRASH, name=point, back=back_after)

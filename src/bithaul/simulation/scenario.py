"""A rehearsal from beginning to end: build run and fleet, let the storm pass and it get quiet, judge.

`storm` is the one that the promises are measured by; `calm` is the same fleet without faults. Everything is
drawn from the seed. The answer says what happened as well as what held, so that a storm in which nothing
failed does not pass for a proof.
"""

from __future__ import annotations

import hashlib
import time as wall
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

from bithaul.coordinator.commands.create_run import CreateRun, create_run
from bithaul.coordinator.commands.roll_back import roll_back
from bithaul.coordinator.commands.steer import pause_run
from bithaul.coordinator.context import Coordinator, CrashPoints
from bithaul.coordinator.database import runs
from bithaul.errors import Conflict, InvalidInput, OutOfDisk, UnknownName
from bithaul.exchange.messages import RunState
from bithaul.rounds.gates import Gate
from bithaul.rounds.rules import codec_of
from bithaul.simulation.disk import ForgetfulDisk, is_database
from bithaul.simulation.faults import Faults, Kind, Rates
from bithaul.simulation.house import House
from bithaul.simulation.invariants import Broken, Checker
from bithaul.simulation.link import Line
from bithaul.simulation.machine import Machine, Spec
from bithaul.simulation.picture import Timeline
from bithaul.simulation.queueing import QueueOperator
from bithaul.simulation.record import Record
from bithaul.simulation.subject import Subject
from bithaul.simulation.toy import Toy
from bithaul.simulation.virtual import VirtualTime
from bithaul.worker.link import Later

EPOCH = 4_000_000_000.0  # later than any file's time stamp: old files are told from new ones by age
HOUR = 3600.0
ENDLESS = 1e12  # tokens
LONGEST = 10.0  # times the hours planned: then a run with a budget is given up
CRASHES = [
    name for name in CrashPoints.NAMES if not name.startswith(("rollback.", "score."))
]  # always passed
STALL_ROUNDS = 8.0  # without a version while somebody could work: no progress


@dataclass(frozen=True)
class Scenario:
    """`spread`: how many times faster the fastest machine is. Of the coordinator: `crashes`, `rollbacks`,
    `seedings` and `kicks` by its operator, `pauses` in which its process stands still, `full_disks`.
    `poisoned` machines send updates ten times as large in the wrong direction, or what `poison` says."""

    name: str
    workers: int = 200
    hours: float = 10.0
    seed: int = 0
    rule: str = "sync"
    aggregator: str | None = None
    task_seconds: float = 600.0
    spread: float = 3.0
    slowest: float = 4.0  # tokens per second
    codec: str | None = None  # None: the rule's own
    weights: str = "fp32"  # how versions are published
    options: Mapping[str, float | str] = field(default_factory=dict)  # of the rule
    down: float = 2e5  # of the slowest line, bytes per second; the fastest has twice that
    up: float = 200.0  # of the slowest line; the fastest has ten times that
    budget_tokens: float | None = None  # the run goes on until it is done, `hours` are what it should take
    gates: tuple[str, ...] = ()
    poisoned: int = 0
    poison: str = "sign_flip"
    crashes: int = 0
    rollbacks: int = 0
    seedings: int = 0
    kicks: int = 0
    pauses: int = 0
    full_disks: int = 0
    rates: Rates = field(default_factory=Rates)
    quiet_hours: float = 12.0  # at most, until everything is delivered, merged or given up

    @property
    def rule_options(self) -> dict[str, float | str]:
        own = {} if self.aggregator is None else {"aggregator": self.aggregator}
        return {**self.options, **own}


STORM = Rates(
    request={Kind.DROP_REQUEST: 0.02, Kind.DROP_ACK: 0.02, Kind.DUPLICATE: 0.02, Kind.PARTITION: 0.002},
    submit={
        Kind.DROP_REQUEST: 0.03,
        Kind.DROP_ACK: 0.08,
        Kind.DUPLICATE: 0.08,
        Kind.CORRUPT: 0.02,
        Kind.NAN: 0.02,
        Kind.SLOW: 0.05,
        Kind.KILL_MID_UPLOAD: 0.05,
        Kind.REORDER: 0.02,
    },
    train={Kind.KILL: 0.20, Kind.SLEEP: 0.08, Kind.SIGN_FLIP: 0.03, Kind.SKEW: 0.02},
    worker_point=0.01,
)
POISONS = (Kind.SIGN_FLIP, Kind.NAN, Kind.NOISE, Kind.HALF, Kind.COPY)
SCENARIOS = {
    "calm": Scenario("calm"),
    "storm": Scenario("storm", crashes=5, rollbacks=1, pauses=2, full_disks=1, rates=STORM),
}


def scenario_named(name: str) -> Scenario:
    """`UnknownName` lists the known ones."""
    if name not in SCENARIOS:
        raise UnknownName(f"There is no scenario {name!r}; the scenarios are {', '.join(SCENARIOS)}.")
    return SCENARIOS[name]


def poison_named(name: str) -> str:
    """`UnknownName` lists the known ones."""
    if name not in POISONS:
        raise UnknownName(f"There is no poison {name!r}; the poisons are {', '.join(POISONS)}.")
    return name


@dataclass(frozen=True)
class Outcome:
    """What held (the first four must be 0, 0, 0 and True) and what happened. `broken`: the first promise that
    was not kept, empty if none."""

    double_applied: int
    acknowledged_lost: int
    slices_uncovered: int
    replay_identical: bool
    broken: str
    scenario: str
    seed: int
    workers: int
    rule: str
    gates: tuple[str, ...]
    poisoned: int
    poison: str
    hours: float
    simulated_hours: float
    wall_seconds: float
    events: int
    audits: int
    versions: int
    accepted: int
    acknowledged: int
    verdicts: dict[str, int]
    leases: dict[str, int]
    given_up: int
    faults: dict[str, int]
    worker_deaths: int
    coordinator_crashes: list[str]
    rollbacks: int
    restored: list[dict[str, float]]
    judged: dict[str, dict[str, int]]
    codec: str
    tokens: float
    longest_gap_rounds: float
    loss_first: float
    loss_last: float
    digest: str

    heldout_loss: float | None  # of the last version of a real model, on the whole held-out split

    @property
    def kept(self) -> bool:
        counts = self.double_applied + self.acknowledged_lost + self.slices_uncovered
        return counts == 0 and self.replay_identical and not self.broken


class Rehearsal:
    """One run in `folder`, which must be empty, of a toy or another `subject`. `faults` may be scripted
    before `run`; `on_version` hears number, tokens and loss of each version."""

    def __init__(
        self,
        scenario: Scenario,
        folder: Path,
        *,
        subject: Subject | None = None,
        on_version: Callable[[int, float, float], None] = lambda *_: None,
    ) -> None:
        if subject is None and Gate.SCORE in scenario.gates:
            raise InvalidInput(
                "The gate score cannot be rehearsed on the toy, whose loss does not depend on what it reads; "
                "name a real model's data with --corpus."
            )
        self.scenario = scenario
        self._on_version = on_version
        self.subject = subject or Toy(folder / "corpus", seed=scenario.seed)
        self.time = VirtualTime(EPOCH)
        self.faults = Faults(self._random("faults"), rates=scenario.rates)
        self.disk = ForgetfulDisk(folder, apart=is_database)
        self.house = House(
            folder / "run",
            self.time,
            self.faults,
            disk=self.disk,
            random=self._random("ids"),
            settings=_settings(scenario),
            merge_delay=scenario.task_seconds / 60,
            changed=self._changed,
            failed=self._failed,
        )
        create_run(
            self.house.c,
            CreateRun(
                run="rehearsal",
                model=self.subject.model,
                recipe=self.subject.recipe.model_dump(mode="json"),
                corpus_dir=self.subject.corpus,
                budget_tokens=scenario.budget_tokens or ENDLESS,
                merge_rule=scenario.rule,
                merge_options=scenario.rule_options,
                gates=scenario.gates,
                task_seconds=scenario.task_seconds,
                seed=scenario.seed,
                probe_every=self.subject.probe_every,
                codec=scenario.codec,
                weights=scenario.weights,
            ),
        )
        self.checker = Checker(self.house)
        self.queue = QueueOperator(self.house, self.time, self.checker, scenario.task_seconds)
        self.record = Record(self.house, begin=EPOCH, loss=self.subject.loss)
        self.machines = [
            Machine(
                spec,
                folder / "machines" / spec.name,
                self.house,
                self.time,
                self.faults,
                disk=self.disk,
                subject=self.subject,
                random=self._random(spec.name),
                heard=self.checker.heard,
            )
            for spec in self._fleet()
        ]
        self._digest = hashlib.sha256()
        self._broken = ""
        self._folder = folder
        self._forgotten: list[int] = []
        self.timeline: Timeline | None = None
        self._began = wall.perf_counter()

    def run(self) -> Outcome:
        """The storm, then the quiet. Never raises for a broken promise: the outcome says so."""
        with self.disk.watching():
            try:
                self._storm()
                self._quiet()
                self.checker.final()
            except Broken as broken:
                self._broken = str(broken)
            finally:
                self.time.end()
        outcome = self._outcome()
        self.timeline = self.record.timeline(
            f"{self.scenario.name}: {self.scenario.workers} machines, rule {self.scenario.rule}, "
            f"seed {self.scenario.seed}",
            names=[m.spec.name for m in self.machines],
            now=self.time.now(),
        )
        self.checker.close()
        self.house.close()
        return outcome

    # -- inside ---------------------------------------------------------------------------------------

    def _random(self, name: str) -> Random:
        return Random(f"{self.scenario.seed}/{name}")  # noqa: S311 - a rehearsal, not a secret

    def _fleet(self) -> list[Spec]:
        random = self._random("fleet")
        width = len(str(self.scenario.workers))
        specs = []
        for i in range(self.scenario.workers):
            speed = self.scenario.slowest * self.scenario.spread ** random.random()
            line = Line(
                0.02 + 0.2 * random.random(),
                self.scenario.down * (1 + random.random()),
                self.scenario.up * (1 + 9 * random.random()),
            )
            poison = Kind(self.scenario.poison) if i < self.scenario.poisoned else None
            specs.append(Spec(f"w{i + 1:0{width}}", speed, line, poison=poison))
        return specs

    def _storm(self) -> None:
        random, scenario = self._random("weather"), self.scenario
        end = EPOCH + self.scenario.hours * HOUR
        self.house.serve()
        for machine in self.machines:
            self.time.after(60.0 * random.random(), machine.start)
        for i in range(self.scenario.crashes):
            point = random.choice(CRASHES)
            share = (i + 0.2 + 0.6 * random.random()) / self.scenario.crashes
            self.time.at(EPOCH + share * (end - EPOCH), self._crash(point, 30.0 + 300.0 * random.random()))
        random = self._random("machine room")
        for i in range(self.scenario.pauses):
            share = (i + random.random()) / self.scenario.pauses
            self.time.at(EPOCH + share * (end - EPOCH), lambda: self.house.pause(90.0))
        for i in range(self.scenario.full_disks):
            at = EPOCH + (i + 0.9 * random.random()) / self.scenario.full_disks * (end - EPOCH)
            self.time.at(at, self.house.fill_disk)
            self.time.at(at + 900.0, lambda: self.house.fill_disk(full=False))
        random = self._random("operator")
        for i in range(self.scenario.rollbacks):
            share = (i + 0.3 + 0.5 * random.random()) / self.scenario.rollbacks
            self.time.at(EPOCH + share * (end - EPOCH), self._go_back)
        random, within = self._random("seeding"), (EPOCH, end)
        self.queue.plan(random, seedings=scenario.seedings, kicks=scenario.kicks, within=within)
        last = end if scenario.budget_tokens is None else EPOCH + LONGEST * scenario.hours * HOUR
        while self.time.now() < last and not self._finished():
            until = min(last, self.time.now() + scenario.task_seconds)
            self.time.run(until, after_each=self._after)

    def _finished(self) -> bool:
        """The budget is done."""
        return self.house.answers and self.house.call(_is_finished)

    def back_up(self) -> None:
        """Now; `restore` goes back to it."""
        copy = self.house.back_up(self._folder / f"backup-{self.time.events}.bithaul")
        self._backup = copy, self.checker.remember(), self.record.newest

    def restore(self, *, back_after: float = 60.0) -> None:
        """The disk is lost and the backup put in its place; whatever came since is said to be lost."""
        backup, memory, newest = self._backup
        self.house.restore(backup, back_after=back_after)
        self._forgotten.append(self.checker.forget_since(memory))
        self.record.newest = newest

    def _go_back(self) -> None:
        """Two versions back, by a patient operator: again later while that cannot be, the disk is full, or
        nobody answers."""
        if self.faults.calm:
            return
        try:
            self.house.call(lambda c: roll_back(c, max(1, self.record.newest - 2)))
        except (Later, Conflict, OutOfDisk):
            self.time.after(600.0, self._go_back)
        else:
            self._changed("operator")

    def _crash(self, point: str, back_after: float) -> Callable[[], None]:
        return lambda: self.faults.crash_coordinator(point, back_after=back_after)

    def _quiet(self) -> None:
        """No more faults and no more leases; everybody delivers what they have."""
        self.faults.calm = True
        self.record.storm_over(self.time.now())
        end = self.time.now() + self.scenario.quiet_hours * HOUR
        paused = False
        while self.time.now() < end:
            if self.house.answers and not paused:
                if not self._finished():
                    self.house.call(pause_run)
                paused = True
            self.time.run(self.time.now() + 0.5 * self.scenario.task_seconds, after_each=self._after)
            if paused and self.house.up and self.record.quiet():
                return

    def _after(self) -> None:
        self.checker.step()

    def _changed(self, what: str) -> None:
        """The coordinator's services did something, or it came back."""
        if what == "sweeper":
            self.checker.deadlines()
        made = what in ("merger", "operator") and self.record.new_version(self.time.now())
        if made:
            self._on_version(self.record.newest, self.record.tokens, self.record.losses[-1][1])
        if what == "rise" or made:
            self.checker.audit()
            self._digest.update(f"{self.time.now():.6f} {what} {self.record.newest}\n".encode())

    def _failed(self, what: str) -> None:
        """No fault of a rehearsal excuses it: there is room on the disk, and nothing is damaged there."""
        raise Broken(what)

    def _outcome(self) -> Outcome:
        scenario, facts = self.scenario, self.record.facts()
        self._digest.update(repr(sorted(facts.ledger)).encode())
        gap = self.record.longest_gap / scenario.task_seconds
        broken = self._broken
        if not broken and gap > STALL_ROUNDS:
            broken = f"no version for {gap:.1f} round lengths although machines were there"
        return Outcome(
            double_applied=self.checker.counts.double_applied,
            acknowledged_lost=self.checker.counts.acknowledged_lost,
            slices_uncovered=self.checker.counts.slices_uncovered,
            replay_identical=self.checker.replay.identical,
            broken=broken,
            scenario=scenario.name,
            seed=scenario.seed,
            workers=scenario.workers,
            rule=scenario.rule,
            gates=scenario.gates,
            poisoned=scenario.poisoned,
            poison=scenario.poison,
            hours=scenario.hours,
            simulated_hours=round((self.time.now() - EPOCH) / HOUR, 3),
            wall_seconds=round(wall.perf_counter() - self._began, 2),
            events=self.time.events,
            audits=self.checker.audits,
            versions=self.checker.replay.versions,
            accepted=facts.verdicts.get("accepted", 0),
            acknowledged=self.checker.acknowledged,
            verdicts=facts.verdicts,
            leases=facts.leases,
            given_up=facts.given_up,
            faults=dict(sorted(self.faults.counts.items())),
            worker_deaths=sum(m.deaths for m in self.machines),
            coordinator_crashes=[point for _, point in self.house.crashes],
            rollbacks=facts.rollbacks,
            restored=[
                {"versions": lost.versions, "reports": lost.reports, "acknowledged": forgotten}
                for lost, forgotten in zip(self.house.restored, self._forgotten, strict=True)
            ],
            judged=self.record.judged({m.spec.name for m in self.machines if m.spec.poison}),
            codec=scenario.codec or codec_of(scenario.rule),
            tokens=facts.tokens,
            longest_gap_rounds=round(gap, 2),
            loss_first=round(self.record.losses[0][1], 4),
            loss_last=round(self.record.losses[-1][1], 4),
            digest=self._digest.hexdigest(),
            heldout_loss=self.subject.heldout(self.record.theta),
        )


def rehearse(scenario: Scenario, folder: Path, **changes: object) -> Outcome:
    """Run `scenario` with `changes` to its fields in the empty `folder`."""
    return Rehearsal(replace(scenario, **changes), folder).run()  # type: ignore[arg-type]


def _is_finished(c: Coordinator) -> bool:
    with c.database.read() as connection:
        return runs.get_run(connection).state is RunState.FINISHED


def _settings(scenario: Scenario) -> dict[str, float]:
    """Intervals in the proportion to a task that the defaults have to the demo's; logs and rows are few."""
    seconds = scenario.task_seconds
    return {
        "heartbeat_seconds": seconds,
        "worker_gone_seconds": 3 * seconds,
        "merge_interval": seconds / 8,
        "sweep_interval": seconds / 8,
        "score_interval": seconds / 4,
        "retention_interval": seconds,
        "disk_interval": 10 * seconds,
        "prune_interval": 10 * seconds,
    }

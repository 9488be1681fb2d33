"""One `bithaul up`, from wishes to result: prepare or resume, start, watch, stop, evaluate."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from bithaul.cli.local import finish
from bithaul.cli.local.fleet import Fleet, threads_per_worker
from bithaul.cli.local.folder import RunFolder, RunSpec, usual_task_seconds, write_json
from bithaul.cli.local.prepare import TRUCK_MATE_EXAMPLES, data_digest, ensure_clients, prepare
from bithaul.cli.local.watch import Display, Standstill
from bithaul.coordinator.commands.steer import set_budget
from bithaul.coordinator.context import open_coordinator
from bithaul.coordinator.queries.progress import ProgressView, progress
from bithaul.coordinator.server import bind
from bithaul.coordinator.settings import load_settings
from bithaul.corpus.augment import Augmentation
from bithaul.errors import Conflict, NotFound
from bithaul.exchange.messages import RunState

POLL_SECONDS = 0.5
DEFAULT_BUDGET_TOKENS = 3_000_000
EXIT_STOPPED = 130
_FIXED = (
    *("vocab_size", "word_pieces", "as_given", "augmentation", "recipe"),
    *("merge_rule", "merge_options", "gates", "max_update_norm", "codec", "weights", "seed", "task_seconds"),
)  # wishes that a run keeps under the same name
_LOST = (
    "The database {database} of this run {state}: restore it from a backup, or give another --dir; "
    "nothing was changed."
)


@dataclass(frozen=True)
class Wishes:
    """What the command line asked for; None means: as the run has it, or the default for a new one."""

    preset: str | None
    workers: int | None
    train: Path | None
    valid: Path | None
    examples: int | None
    budget_tokens: int | None
    budget_seconds: float | None
    threads: int | None
    merge_rule: str | None
    merge_options: dict[str, float | str] | None
    gates: list[str] | None
    max_update_norm: float | None
    codec: str | None
    weights: str | None
    task_seconds: float | None
    vocab_size: int | None
    ternary: bool
    recipe: dict[str, Any] | None
    augmentation: Augmentation | None
    word_pieces: int | None
    as_given: bool | None
    seed: int | None
    port: int
    ask: str | None


@dataclass(frozen=True)
class Outcome:
    result: dict[str, object]
    exit_code: int


class Session:
    """Runs in the calling thread. Ctrl-C or SIGTERM: it stops everything it started, then itself."""

    def __init__(self, folder: RunFolder, wishes: Wishes, display: Display) -> None:
        self._folder, self._wishes, self._display = folder, wishes, display
        self._stop_asked = False

    def run(self) -> Outcome:
        spec = self._prepare_or_resume()
        view = self._read_progress()
        if view.state is not RunState.FINISHED:
            view = self._train(spec)
        finished = view.state is RunState.FINISHED
        result = finish.result_of(self._folder, spec, view, ask=self._wishes.ask, say=self._display.say)
        write_json(self._folder.result_file, result)
        if not finished:
            self._display.say(f"stopped; go on with: bithaul up --dir {self._folder.root}")
        return Outcome(result, 0 if finished else EXIT_STOPPED)

    def _prepare_or_resume(self) -> RunSpec:
        """The spec of the run in the folder, prepared now if there was none."""
        w, known = self._wishes, self._folder.read_spec()
        if known is not None:
            return self._resume(known)
        if w.port:  # said now, not after minutes of preparation
            bind(load_settings(self._folder.root).host, w.port).close()
        given = _given(w, (*_FIXED, "workers"))
        spec = RunSpec.model_validate(
            {
                "preset": w.preset or "small",
                "train": str(w.train.resolve()) if w.train else None,
                "valid": str(w.valid.resolve()) if w.valid else None,
                "data_sha256": data_digest(w.train, w.valid) if w.train and w.valid else None,
                "examples": None if w.train else (w.examples or TRUCK_MATE_EXAMPLES),
                "ternary": w.ternary,
                **given,
            }
        )
        if w.task_seconds is None:
            spec = spec.model_copy(update={"task_seconds": usual_task_seconds(spec.workers)})
        if w.budget_tokens is None and w.budget_seconds is None:
            tokens: int | None = DEFAULT_BUDGET_TOKENS
        else:
            tokens = w.budget_tokens
        prepare(
            self._folder, spec, budget_tokens=tokens, budget_seconds=w.budget_seconds, say=self._display.say
        )
        return spec

    def _resume(self, known: RunSpec) -> RunSpec:
        """`known`, once nothing that was asked for contradicts it; the number of workers may change."""
        w = self._wishes
        asked: dict[str, object] = _given(w, ("preset", "examples", *_FIXED))
        if not w.ternary:
            asked["ternary"] = False
        if w.train and w.valid:
            asked["data_sha256"] = data_digest(w.train, w.valid)
        for name, value in asked.items():
            if name == "data_sha256" and known.data_sha256 != value:
                before = known.train or "generated requests"
                raise Conflict(
                    f"The run in {self._folder.root} was trained on {before}, and the data given now is "
                    "not the same; leave --train and --valid out to resume it, or give another --dir."
                )
            if getattr(known, name) != value:
                raise Conflict(
                    f"The run in {self._folder.root} has {name} {getattr(known, name)}, not {value}; "
                    "leave the option out to resume it, or give another --dir."
                )
        spec = known.model_copy(update={"workers": w.workers or known.workers})
        settings = load_settings(self._folder.root)
        database = "of database_url" if settings.database_url else self._folder.root / "coordinator.db"
        if isinstance(database, Path) and not database.is_file():
            raise NotFound(_LOST.format(database=database, state="is missing"))
        with closing(open_coordinator(settings)) as coordinator:
            try:
                if w.budget_tokens is not None or w.budget_seconds is not None:
                    set_budget(coordinator, tokens=w.budget_tokens, seconds=w.budget_seconds)
                view = progress(coordinator)
            except NotFound as error:
                raise NotFound(_LOST.format(database=database, state="holds no run")) from error
        ensure_clients(self._folder, spec.workers)
        if view.state is not RunState.FINISHED:
            self._display.say(f"resuming {known.preset} at version {view.version}, {view.tokens:,} tokens")
        return spec

    def _train(self, spec: RunSpec) -> ProgressView:
        """Run the processes until the budget is spent or somebody asks to stop; returns the last view."""
        fleet = Fleet(
            self._folder,
            spec.workers,
            threads_per_worker(spec.workers, self._wishes.threads),
            self._wishes.port,
        )
        with self._stoppable():
            try:
                fleet.start()
                self._display.say(
                    f"coordinator at {fleet.url}, {spec.workers} workers with {fleet.threads} threads each"
                )
                self._watch(fleet, spec.task_seconds)
            finally:
                self._display.say("stopping workers")
                fleet.stop()
        return self._read_progress()

    def _watch(self, fleet: Fleet, task_seconds: float) -> None:
        standstill = Standstill(self._folder.logs, task_seconds=task_seconds, now=time.monotonic())
        while not self._stop_asked:
            fleet.revive(self._display.say)
            view = fleet.progress()
            if view is not None:
                self._display.show(view)
                if view.state is RunState.FINISHED:
                    return
            why = standstill.sentence(
                view, time.monotonic(), silence=fleet.silence, last_words=fleet.last_words
            )
            if why is not None:
                self._display.say(why)
            time.sleep(POLL_SECONDS)

    def _read_progress(self) -> ProgressView:
        with closing(open_coordinator(load_settings(self._folder.root))) as coordinator:
            return progress(coordinator)

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        """SIGINT and SIGTERM ask for a clean stop; a second one stops at once."""

        def ask(_signal: int, _frame: FrameType | None) -> None:
            if self._stop_asked:
                raise KeyboardInterrupt
            self._stop_asked = True

        earlier = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)


def _given(wishes: Wishes, names: tuple[str, ...]) -> dict[str, object]:
    return {name: value for name in names if (value := getattr(wishes, name)) is not None}

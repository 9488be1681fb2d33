"""When `up` says why nothing moves, and when it keeps quiet."""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest

from bithaul.cli.local.fleet import Fleet
from bithaul.cli.local.folder import RunFolder
from bithaul.cli.local.watch import PATIENCE_SECONDS, QUIET_SECONDS, SAY_AGAIN_SECONDS, Standstill
from bithaul.coordinator.queries.progress import ProgressView
from bithaul.exchange.messages import RunState

FULL = "Only 3 MiB are free; uploads are refused. Free some space."


def view(version: int, *problems: str, state: RunState = RunState.RUNNING) -> ProgressView:
    return ProgressView(
        run="test",
        state=state,
        progress=0.0,
        budget_tokens=1.0,
        budget_seconds=None,
        tokens=0,
        seconds=0.0,
        version=version,
        versions=version,
        tokens_per_second=0.0,
        eta_seconds=None,
        tasks={},
        open_leases=0,
        receipts={},
        rejected={},
        workers=[],
        series=[],
        problems=list(problems),
    )


class Watched:
    """A standstill that began at 0, asked at a time."""

    def __init__(self, *, task_seconds: float = 8.0) -> None:
        self.standstill = Standstill(Path("logs"), task_seconds=task_seconds, now=0.0)

    def at(self, now: float, seen: ProgressView | None) -> str | None:
        return self.standstill.sentence(seen, now, silence="HTTP 503", last_words=lambda: "worker-1: oh")


def test_a_problem_is_said_once_nothing_moves_and_then_now_and_then() -> None:
    """Catches a display that stays at 0 % for no reason, and one that says the same twice a second."""
    watched = Watched()
    assert watched.at(0.0, view(1, FULL)) is None
    assert watched.at(QUIET_SECONDS - 1, view(1, FULL)) is None
    assert watched.at(QUIET_SECONDS, view(1, FULL)) == f"no new version for 15 s: {FULL[:-1]}; see logs"
    assert watched.at(QUIET_SECONDS + SAY_AGAIN_SECONDS - 1, view(1, FULL)) is None
    assert "for 45 s" in str(watched.at(QUIET_SECONDS + SAY_AGAIN_SECONDS, view(1, FULL)))
    assert watched.at(100.0, view(2, FULL)) is None, "it moves again"


def test_a_silent_coordinator_is_said() -> None:
    watched = Watched()
    assert watched.at(10.0, view(1)) is None
    assert watched.at(10.0 + QUIET_SECONDS - 1, None) is None
    said = watched.at(10.0 + QUIET_SECONDS, None)
    assert said == "the coordinator has not answered for 15 s (HTTP 503); see logs"


@pytest.mark.parametrize(("task_seconds", "patience"), [(8.0, PATIENCE_SECONDS), (60.0, 600.0)])
def test_a_slow_run_is_left_alone_for_long(task_seconds: float, patience: float) -> None:
    """Catches alarm over a large model whose versions take minutes."""
    watched = Watched(task_seconds=task_seconds)
    watched.at(0.0, view(1))
    assert watched.at(patience - 1, view(1)) is None
    assert "worker-1: oh" in str(watched.at(patience, view(1)))


def test_a_warning_of_a_worker_is_said_early() -> None:
    """Catches minutes of silence while every task fails, as with weights that cannot be fetched."""
    watched = Watched()
    watched.at(0.0, view(1))
    words = "worker-1: 05:19 [warning  ] task failed"
    said = watched.standstill.sentence(view(1), QUIET_SECONDS, silence="", last_words=lambda: words)
    assert said == f"no new version for 15 s; {words}; see logs"


def test_a_paused_run_is_no_standstill() -> None:
    watched = Watched()
    assert watched.at(10 * PATIENCE_SECONDS, view(1, state=RunState.PAUSED)) is None
    assert watched.at(10 * PATIENCE_SECONDS + 1, view(1)) is None


def test_the_fleet_tells_why_there_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A throttled token is not a refused one: the next try may succeed."""
    folder = RunFolder(tmp_path)
    folder.write_secret("up", "secret")
    (tmp_path / "coordinator.url").write_text("http://127.0.0.1:1")
    fleet = Fleet(folder, workers=1, threads=1, port=0)
    monkeypatch.setattr(httpx2, "post", lambda *_, **__: httpx2.Response(429, json={"error": "slow_down"}))
    assert fleet.progress() is None
    assert fleet.silence == "HTTP 429"

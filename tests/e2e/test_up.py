"""`bithaul up` with real processes: it finishes, it resumes, it survives kill -9 of either side
and, by a backup, the loss of its folder."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.process

RESULT_KEYS = {
    "run",
    "preset",
    "tokens",
    "versions",
    "workers",
    "train_loss_first",
    "train_loss_last",
    "heldout_loss",
    "intent_accuracy",
    "slot_f1",
    "tokens_per_second",
    "updates_by_worker",
}
KEEP_ALL = {"BITHAUL_PAYLOAD_KEEP_VERSIONS": "100000", "BITHAUL_RETENTION_KEEP": "100000"}


def exactly_once(up) -> None:
    """Every accepted report is in exactly one version, every version's tokens are those of its reports."""
    assert up.query("SELECT count(*) FROM reports WHERE verdict='accepted' AND merged_in IS NULL") == [(0,)]
    assert (
        up.query("SELECT task_id FROM reports WHERE verdict='accepted' GROUP BY task_id HAVING count(*) > 1")
        == []
    )
    wrong = up.query(
        "SELECT v.version, v.tokens, sum(r.tokens) s, v.reports, count(*) n FROM versions v JOIN reports r "
        "ON r.merged_in = v.version AND r.verdict='accepted' "
        "GROUP BY v.version HAVING s <> v.tokens OR n <> v.reports"
    )
    assert wrong == []
    covered = up.query("SELECT positions FROM tasks WHERE state IN ('merged', 'accepted')")
    seen: set[int] = set()
    for (text,) in covered:
        for start, count in json.loads(str(text)):
            positions = set(range(start, start + count))
            assert not seen & positions, "an example position was trained twice"
            seen |= positions


def acknowledged(up) -> set[str]:
    """Fences of updates whose receipt `accepted` a worker has logged."""
    found = set()
    for log in (up.run / "logs").glob("worker-*.log"):
        for line in log.read_text(encoding="utf-8").splitlines():
            if "accepted" in line and "fence" in line:
                found |= {
                    word for word in line.replace('"', " ").replace("=", " ").split() if len(word) == 32
                }
    return found


def test_one_command_trains_evaluates_and_reports(up) -> None:
    """Catches: a loop that runs and learns nothing, a missing key, a worker that never contributes."""
    session = up.tiny()
    code, result, err = session.finish()
    assert code == 0, err
    assert result.keys() >= RESULT_KEYS
    assert result["train_loss_first"] > result["train_loss_last"] + 0.5
    assert result["tokens"] >= 149_000
    assert min(result["updates_by_worker"].values()) >= 0.3 * sum(result["updates_by_worker"].values())
    exactly_once(session)
    again = up.tiny()
    code, same, _ = again.finish(seconds=60)
    assert code == 0
    assert {k: same[k] for k in ("tokens", "versions")} == {k: result[k] for k in ("tokens", "versions")}


def test_killed_workers_and_coordinator_lose_nothing(up) -> None:
    """Catches: an update applied twice or lost when either side is killed at a bad moment."""
    session = up.tiny(tokens=400_000, environment=KEEP_ALL)
    for version, victim in ((3, "worker-1"), (5, "coordinator"), (7, "worker-2"), (9, "coordinator")):
        session.wait_for_version(version)
        session.children()[victim].send_signal(signal.SIGKILL)
    code, result, err = session.finish()
    assert code == 0, err
    assert result["tokens"] >= 399_000
    exactly_once(session)
    merged = {str(f) for (f,) in session.query("SELECT fence FROM reports WHERE verdict='accepted'")}
    receipts = acknowledged(session)
    assert receipts, "no worker logged a receipt: the check below would be empty"
    assert receipts <= merged
    logs = "".join(path.read_text() for path in (session.run / "logs").glob("worker-*.log"))
    assert "joined run" in logs
    assert "cannot register yet" not in logs  # nobody waits for its own death to be noticed


def test_killed_up_resumes(up) -> None:
    """Catches: orphaned children that keep the folder busy, a run that starts over."""
    first = up.tiny(tokens=600_000)
    first.wait_for_version(3)
    before = first.versions()
    first.process.kill()
    first.process.communicate()
    second = up.tiny(tokens=600_000)
    code, result, err = second.finish()
    assert code == 0, err
    assert "resuming" in err
    assert result["versions"] >= before
    exactly_once(second)


def test_ctrl_c_stops_cleanly_and_goes_on(up) -> None:
    """Catches: children left behind, a result that claims success, work lost on a clean stop."""
    first = up.tiny(tokens=600_000)
    first.wait_for_version(3)
    children = list(first.children().values())
    first.process.send_signal(signal.SIGINT)
    code, result, err = first.finish(seconds=60)
    assert code == 130
    assert "go on with" in err
    assert not any(child.is_running() and child.status() != "zombie" for child in children)
    code, result, err = up.tiny(tokens=600_000).finish()
    assert code == 0, err
    assert result["tokens"] >= 595_000


def backup(*words: str) -> dict[str, object]:
    """One `bithaul backup ... --json` as a process: the object on its last line."""
    command = [sys.executable, "-m", "bithaul", "backup", *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_a_run_goes_on_from_a_backup_made_while_it_trained(up, tmp_path: Path) -> None:
    """Catches: a backup that only works at rest; an update lost or trained twice on the way back."""
    first = up.tiny(tokens=500_000, environment=KEEP_ALL)
    made = {}
    for version in (2, 4):
        first.wait_for_version(version)
        file = tmp_path / f"at-{version}.bithaul"
        made = backup("create", "--dir", str(first.run), "--out", str(file))
        assert int(str(made["version"])) >= version
    first.wait_for_version(int(str(made["version"])) + 2)  # work that will be lost
    for child in psutil.Process(first.process.pid).children(recursive=True):
        child.send_signal(signal.SIGKILL)
    first.process.kill()
    first.process.communicate()
    shutil.rmtree(first.run)
    done = backup("restore", str(made["file"]), "--dir", str(first.run))
    assert (done["version"], set(done["clients_to_rotate"])) == (
        made["version"],
        {"up", "worker-1", "worker-2"},
    )
    second = up.tiny(tokens=500_000, environment=KEEP_ALL)
    code, result, err = second.finish()
    assert code == 0, err
    assert "resuming" in err
    assert int(str(result["tokens"])) >= 495_000
    assert int(str(result["versions"])) > int(str(made["version"]))
    exactly_once(second)


def test_second_up_on_the_same_folder_is_refused(up) -> None:
    first = up.tiny(tokens=600_000)
    first.wait_for_version(1)
    second = subprocess.run(
        [sys.executable, "-m", "bithaul", "up", "--dir", str(first.run)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert second.returncode == 5
    assert second.stderr.count("\n") == 1
    assert "Another `bithaul up`" in second.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--preset", "smal"], "small, medium, large"),
        (["--train", "missing.tsv", "--valid", "missing.tsv"], "missing.tsv"),
        (["--merge-rule", "nonsense"], "sync"),
        (["--codec", "nonsense"], "int8-block-v1"),
        (["--task-seconds", "inf"], "inf"),
        (["--as-given"], "your own plain text"),
        (["--train", "t.tsv", "--valid", "t.tsv", "--examples", "200"], "leave it out with --train"),
    ],
)
def test_bad_input_is_one_line_and_builds_nothing(up, options, words) -> None:
    """Catches: a traceback, a silent fallback, a half-made run folder that blocks the next try."""
    session = up(*options)
    code, _, err = session.finish(seconds=60)
    assert code in {2, 4}
    assert words in err
    assert err.count("\n") == 1
    assert {path.name for path in session.run.glob("*")} <= {"up.lock"}


def test_a_folder_with_other_files_is_left_alone(up) -> None:
    """Catches a run that clears the way for itself: `corpus` and `blobs` may be somebody's own folders."""
    run = up.root / "run"
    for name in ("corpus/mine.txt", "blobs/photo.jpg", "coordinator.db.backup"):
        path = run / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("precious")
    code, _, err = up("--examples", "100").finish(seconds=60)
    assert code == 5
    assert "nothing was touched" in err
    for name in ("corpus/mine.txt", "blobs/photo.jpg", "coordinator.db.backup"):
        assert (run / name).read_text() == "precious"


def test_a_preparation_that_was_interrupted_starts_over(up) -> None:
    """Leftovers of a half-made run neither block the next try nor get into it."""
    run = up.root / "run"
    (run / "corpus").mkdir(parents=True)
    (run / "corpus" / "train-00000.bin").write_bytes(b"half")
    (run / "preparing").touch()
    code, result, err = up.tiny(tokens=5_000).finish()
    assert code == 0, err
    assert result["versions"] > 1
    assert not (run / "preparing").exists()

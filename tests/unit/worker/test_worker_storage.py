"""Outbox, residual, log buffer, beacon, stop: what must survive and what must stay bounded."""

from __future__ import annotations

import hashlib
import io
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from bithaul.errors import OutOfDisk
from bithaul.exchange.frame import read_header, verify_payload
from bithaul.exchange.messages import LogBatch, LogEntry, ReportHeader
from bithaul.exchange.weights import open_weights
from bithaul.worker.health import Beacon
from bithaul.worker.logship import LogBuffer, worker_log
from bithaul.worker.outbox import Outbox
from bithaul.worker.residual import ResidualStore
from bithaul.worker.stop import Stop

PAYLOAD = b"payload" * 1000


def header(task: int = 1) -> ReportHeader:
    return ReportHeader(
        codec="int8-block-v1",
        run="r",
        layout_hash="a" * 64,
        base_version=4,
        task=task,
        fence=f"{task:032x}",
        examples=1,
        tokens=1,
        steps=1,
        seconds=1,
        loss_first=1,
        loss_last=1,
        loss_mean=1,
        payload_size=len(PAYLOAD),
        payload_sha256=hashlib.sha256(PAYLOAD).hexdigest(),
    )


def test_an_entry_survives_a_restart_byte_for_byte(tmp_path: Path) -> None:
    """Catches an update that lives in memory only (pitfall Q11)."""
    Outbox(tmp_path).put(header(), PAYLOAD, residual=np.ones(5, np.float32))
    (entry,) = Outbox(tmp_path).entries()
    assert entry.header == header()
    with entry.frame.open("rb") as file:
        read = read_header(file)
        verify_payload(file, read)
        assert file.read() == PAYLOAD
    weights = open_weights(entry.residual, expected_count=5)
    assert weights.version == 4  # the residual is stored with its base
    assert weights.vector.tolist() == [1] * 5


def test_half_written_entries_are_not_delivered(tmp_path: Path) -> None:
    aside = tmp_path / ".aside-1.f"
    aside.mkdir()
    (aside / "update.bhuf").write_bytes(b"half")
    broken = tmp_path / "2.f"
    broken.mkdir()
    (broken / "update.bhuf").write_bytes(b"half")
    told: list[tuple[Path, str]] = []
    outbox = Outbox(tmp_path, trouble=lambda place, why: told.append((place, why)))
    assert outbox.entries() == []
    assert [path.name for path in tmp_path.iterdir()] == [".refused"]
    ((place, why),) = told
    assert (place / "update.bhuf").read_bytes() == b"half"
    assert "damaged" in why


def test_an_entry_that_cannot_be_read_now_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches finished work deleted because for a moment no file could be opened (pitfall Q11)."""
    told: list[tuple[Path, str]] = []
    outbox = Outbox(tmp_path, trouble=lambda place, why: told.append((place, why)))
    outbox.put(header(), PAYLOAD, residual=None)

    def none_left(file: object) -> ReportHeader:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("bithaul.worker.outbox.read_header", none_left)
        assert outbox.entries() == []
    assert [why for _, why in told] == ["it cannot be read now ([Errno 24] Too many open files) and waits"]
    assert [e.header.task for e in outbox.entries()] == [1]


def test_of_those_set_aside_the_newest_few_stay(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    for task in range(1, 8):
        outbox.set_aside(outbox.put(header(task), PAYLOAD, residual=None))
    assert outbox.entries() == []
    kept = sorted(int(path.name.split(".")[0]) for path in (tmp_path / ".refused").iterdir())
    assert kept == [4, 5, 6, 7]


def test_a_crash_while_storing_leaves_no_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches an entry that is visible before its residual is written."""

    def killed(*args: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("bithaul.worker.outbox.write_weights", killed)
    with pytest.raises(KeyboardInterrupt):
        Outbox(tmp_path).put(header(), PAYLOAD, residual=np.ones(5, np.float32))
    assert Outbox(tmp_path).entries() == []


def test_entries_come_oldest_first_and_go_by_delete(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    for task in (5, 3):
        entry = outbox.put(header(task), PAYLOAD, residual=None)
        os.utime(entry.folder, ns=(0, 10**9 - task))
    assert [e.header.task for e in outbox.entries()] == [5, 3]
    outbox.delete(outbox.entries()[0])
    assert [e.header.task for e in outbox.entries()] == [3]


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    outbox = Outbox(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutOfDisk, match="task 1"):
        outbox.put(header(), PAYLOAD, residual=None)
    assert list(tmp_path.iterdir()) == []


def test_residual_changes_only_by_commit_and_twice_is_harmless(tmp_path: Path) -> None:
    """Catches a residual that advances with a refused update (pitfall T9)."""
    store = ResidualStore(tmp_path / "residual")
    target = store.path(run="r", lineage=1, layout_hash="a" * 64, codec="c")
    entry = Outbox(tmp_path / "outbox").put(header(), PAYLOAD, residual=np.ones(5, np.float32))
    assert store.load(target, count=5, base_version=5) is None
    store.commit(entry.residual, target)
    store.commit(entry.residual, target)
    loaded = store.load(target, count=5, base_version=5)
    assert loaded is not None
    assert loaded.tolist() == [1] * 5


def test_residual_of_another_base_or_damaged_counts_as_none(tmp_path: Path) -> None:
    store = ResidualStore(tmp_path / "residual")
    target = store.path(run="r", lineage=1, layout_hash="a" * 64, codec="c")
    entry = Outbox(tmp_path / "outbox").put(header(), PAYLOAD, residual=np.ones(5, np.float32))
    store.commit(entry.residual, target)
    assert store.load(target, count=5, base_version=4 + 16) is not None
    assert store.load(target, count=5, base_version=4 + 17) is None
    assert store.load(target, count=5, base_version=3) is None  # rolled back
    target.write_bytes(target.read_bytes()[:-1])
    assert store.load(target, count=5, base_version=5) is None


def test_the_residual_of_a_clipped_update_shrinks_with_it_twice_alike(tmp_path: Path) -> None:
    """Catches a cut that is banked: what a gate took off would come in the next update."""
    store = ResidualStore(tmp_path / "residual")
    target = store.path(run="r", lineage=1, layout_hash="a" * 64, codec="c")
    entry = Outbox(tmp_path / "outbox").put(header(), PAYLOAD, residual=np.ones(5, np.float32))
    for _ in range(2):  # a crash before the entry is deleted repeats it
        store.commit(entry.residual, target, clip=0.25)
        loaded = store.load(target, count=5, base_version=5)
        assert loaded is not None
        assert loaded.tolist() == [0.25] * 5
    assert [path.name for path in (tmp_path / "residual").iterdir()] == [target.name]


def test_the_residual_of_another_lineage_is_dropped(tmp_path: Path) -> None:
    """Catches a correction of weights that were given up, added to those that were restored."""
    store = ResidualStore(tmp_path / "residual")
    old, new = (store.path(run="r", lineage=n, layout_hash="a" * 64, codec="c") for n in (1, 2))
    entry = Outbox(tmp_path / "outbox").put(header(), PAYLOAD, residual=np.ones(5, np.float32))
    store.commit(entry.residual, old)
    assert store.load(new, count=5, base_version=5) is None
    assert list((tmp_path / "residual").iterdir()) == []


def test_residuals_are_kept_apart(tmp_path: Path) -> None:
    store = ResidualStore(tmp_path)
    keys = [("r", "a", "c"), ("s", "a", "c"), ("r", "b", "c"), ("r", "a", "d")]
    assert len({store.path(run=r, lineage=1, layout_hash=h, codec=c) for r, h, c in keys}) == 4


def entry(number: int) -> LogEntry:
    return LogEntry(time=0, level="info", event=str(number))


def test_logs_are_kept_within_a_bound_while_the_coordinator_is_away() -> None:
    """Catches unbounded memory, and losses nobody hears of."""
    buffer, sent = LogBuffer(bound=700), list[LogBatch]()
    for i in range(1000):
        buffer.add(entry(i))

    def away(batch: LogBatch) -> None:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        buffer.ship(away)
    while buffer.ship(sent.append):
        pass
    assert [e.event for b in sent for e in b.entries] == [str(i) for i in range(300, 1000)]
    assert [b.dropped for b in sent] == [300, 0]
    assert [len(b.entries) for b in sent] == [500, 200]


def test_log_lines_go_to_both_places_and_fields_are_bounded() -> None:
    buffer, out, sent = LogBuffer(), io.StringIO(), list[LogBatch]()
    log = worker_log(buffer, stream=out, clock=lambda: 12.5)
    log.info("trained", tokens=5, loss=float("nan"), path=Path("x"), text="y" * 2000)
    log.debug("hidden")
    try:
        raise ValueError("inner")
    except ValueError:
        log.error("broke", exc_info=True)
    buffer.ship(sent.append)
    first, second = sent[0].entries
    assert (first.time, first.level, first.event) == (12.5, "info", "trained")
    assert first.fields == {"tokens": 5, "loss": "nan", "path": "x", "text": "y" * 500}
    assert second.level == "error"
    assert "trained" in out.getvalue()
    assert "ValueError: inner" in out.getvalue()
    assert "hidden" not in out.getvalue()


def test_beacon_is_touched_at_most_once_a_second(tmp_path: Path) -> None:
    now = [0.0]
    beacon = Beacon(tmp_path / "health", clock=lambda: now[0])
    beacon.touch()
    (tmp_path / "health").unlink()
    now[0] = 0.9
    beacon.touch()
    assert not (tmp_path / "health").exists()
    now[0] = 1.0
    beacon.touch()
    assert (tmp_path / "health").exists()
    beacon.clear()
    assert not (tmp_path / "health").exists()


def test_stop_wakes_a_waiting_thread_and_then_counts_down() -> None:
    now = [0.0]
    stop = Stop(grace=10, clock=lambda: now[0])
    assert not stop.wait(0.0)
    heard: list[bool] = []
    thread = threading.Thread(target=lambda: heard.append(stop.wait(60)))
    thread.start()
    stop.request()
    thread.join(timeout=10)
    assert heard == [True]
    assert stop.requested
    assert not stop.expired
    assert not stop.wait(0.0, urgent=True)
    now[0] = 10.0
    assert stop.wait(5.0, urgent=True)
    stop.close()

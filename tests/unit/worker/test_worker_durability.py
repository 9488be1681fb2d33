"""What a worker has finished is on the disk before it is relied on: the order, and a power cut after it."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest

from bithaul.exchange.messages import ReportHeader
from bithaul.exchange.weights import open_weights
from bithaul.worker.outbox import Entry, Outbox
from bithaul.worker.residual import ResidualStore

sys.path.insert(0, str(Path(__file__).parents[2] / "disks"))
from disk_record import DiskRecord, needs_posix

pytestmark = needs_posix
PAYLOAD = b"payload" * 100  # stays in a buffer until it is flushed
NAME = f"1.{1:032x}"
KEY = {"run": "r", "lineage": 1, "layout_hash": "a" * 64, "codec": "c"}


def put(outbox: Outbox, *, residual: bool = True) -> Entry:
    header = ReportHeader(
        codec="int8-block-v1",
        run="r",
        layout_hash="a" * 64,
        base_version=4,
        task=1,
        fence=f"{1:032x}",
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
    return outbox.put(header, PAYLOAD, residual=np.ones(5, np.float32) if residual else None)


def test_an_update_is_synced_before_its_name_and_its_name_before_it_is_said_to_be_stored(
    tmp_path: Path,
) -> None:
    """Catches a finished update that a power cut empties, shortens, or lets vanish with its folder."""
    outbox, record = Outbox(tmp_path), DiskRecord(tmp_path)
    with record.watching():
        put(outbox)
    assert record.lines == [
        f"sync /.aside-{NAME}/update.bhuf",
        f"sync /.aside-{NAME}/residual.bgwt",
        f"sync /.aside-{NAME}/",
        f"move /.aside-{NAME}/ -> /{NAME}/",
        "sync /",
    ]
    assert record.disk.lost() == []
    record.disk.cut()
    (entry,) = Outbox(tmp_path).entries()
    assert entry.frame.read_bytes().endswith(PAYLOAD)
    assert open_weights(entry.residual, expected_count=5).vector.tolist() == [1] * 5


def test_a_new_worker_s_first_update_lasts_with_the_folders_it_lies_in(tmp_path: Path) -> None:
    """Catches an update that is synced with its name, in an outbox whose own name is not."""
    record = DiskRecord(tmp_path)
    with record.watching():
        entry = put(Outbox(tmp_path / "outbox"))
        store = ResidualStore(tmp_path / "residual")
        store.commit(entry.residual, store.path(**KEY))
    assert record.disk.lost() == []


def test_an_update_without_a_residual_lasts_too(tmp_path: Path) -> None:
    """Catches a sync of the folder that hangs on there being a residual."""
    outbox, record = Outbox(tmp_path), DiskRecord(tmp_path)
    with record.watching():
        put(outbox, residual=False)
    record.disk.cut()
    (entry,) = Outbox(tmp_path).entries()
    assert entry.frame.read_bytes().endswith(PAYLOAD)


def test_a_delivered_update_is_gone_from_the_disk_too(tmp_path: Path) -> None:
    """Catches an entry that comes back after a power cut and is sent again, its residual with it."""
    outbox = Outbox(tmp_path)
    entry = put(outbox)
    record = DiskRecord(tmp_path)
    with record.watching():
        outbox.delete(entry)
    assert record.lines == [f"move /{NAME}/ -> /.aside-{NAME}/", "sync /"]


@pytest.mark.parametrize("clip", [1.0, 0.25])
def test_a_residual_in_force_lasts(tmp_path: Path, clip: float) -> None:
    """Catches a residual that is empty, or an older one again, after the entry it came from was deleted."""
    outbox, store = Outbox(tmp_path / "outbox"), ResidualStore(tmp_path / "residual")
    target, record = store.path(**KEY), DiskRecord(tmp_path)
    store.commit(put(outbox).residual, target)
    entry = put(Outbox(tmp_path / "other"))
    with record.watching():
        store.commit(entry.residual, target, clip=clip)
    name = f"/residual/{target.name}"
    if clip == 1.0:
        moved = f"/other/{NAME}/residual.bgwt"
        assert record.lines == [f"move {moved} -> {name}", "sync /residual/", f"sync /other/{NAME}/"]
    else:
        assert record.lines == [f"sync {name}.new", f"move {name}.new -> {name}", "sync /residual/"]
    record.disk.cut()
    loaded = store.load(target, count=5, base_version=5)
    assert loaded is not None
    assert loaded.tolist() == [clip] * 5

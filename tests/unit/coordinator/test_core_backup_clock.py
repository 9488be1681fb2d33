"""Backups by the clock: when one is made, which one goes, and what happens when it cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bithaul.coordinator.identity.audit import read_audit
from bithaul.coordinator.services import backup as backup_service
from bithaul.coordinator.services.backup_clock import back_up_when_due
from bithaul.coordinator.services.restore import restore_backup
from bithaul.coordinator.services.runner import ServiceRunner, standard_services
from bithaul.coordinator.settings import load_settings
from bithaul.errors import InvalidConfig, OutOfDisk

House = Any


def nothing(_done: int) -> None:
    """Nobody looks at the progress."""


@pytest.fixture
def shelf(trained: House, tmp_path: Path) -> tuple[House, Path]:
    """A run that is to be backed up every two hours, three times, and the folder for it."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    trained.settings = {"backup_folder": str(folder), "backup_every_hours": 2.0, "backup_keep": 3}
    trained.reopen()
    return trained, folder


def test_a_backup_is_made_when_the_newest_is_old_and_the_oldest_goes(shelf: tuple[House, Path]) -> None:
    """Catches one at every look, none at all, and a shelf that fills up."""
    house, folder = shelf
    (folder / "notes.bithaul").write_text("somebody's own")
    (folder / "other-20200101T000000Z.bithaul").write_text("another run's")
    seen: set[Path] = set()
    for hours in range(10):
        back_up_when_due(house.c)
        seen |= set(folder.glob("test-*.bithaul"))
        assert len(seen) == hours // 2 + 1
        house.clock.time += 3600.0
    left = sorted(folder.iterdir())
    assert [path for path in left if path in seen] == sorted(seen)[-3:]
    assert len(left) == 5
    rows = read_audit(house.c, limit=50, action="backup.create")
    assert [row.actor for row in rows] == ["system"] * 5


def test_a_backup_by_the_clock_can_be_restored(shelf: tuple[House, Path], tmp_path: Path) -> None:
    house, folder = shelf
    back_up_when_due(house.c)
    (file,) = folder.iterdir()
    done = restore_backup(file, tmp_path / "again", on_size=nothing, on_progress=nothing)
    assert done.version == 3


def test_a_shelf_that_is_gone_is_said_and_comes_back(shelf: tuple[House, Path]) -> None:
    house, folder = shelf
    folder.rmdir()
    (service,) = [s for s in standard_services(house.c) if s.name == "backup"]
    runner = ServiceRunner(house.c, [service])
    told = runner.run_once(service)
    assert not told.ok
    assert str(folder) in told.message
    folder.mkdir()
    assert runner.run_once(service, before=told).ok
    assert len(list(folder.iterdir())) == 1


def test_a_backup_that_fails_takes_no_older_one_with_it(
    shelf: tuple[House, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    house, folder = shelf
    for _ in range(3):
        back_up_when_due(house.c)
        house.clock.time += 7200.0
    before = sorted(folder.iterdir())

    def full(*_unused: object, **_options: object) -> str:
        raise OutOfDisk("full")

    monkeypatch.setattr(backup_service, "write_archive", full)
    with pytest.raises(OutOfDisk):
        back_up_when_due(house.c)
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    "settings",
    [
        {"backup_folder": "backups"},
        {"backup_folder": "/backups", "database_url": "postgresql://somewhere/bithaul"},
        {"backup_folder": "/backups", "backup_keep": 0},
    ],
)
def test_settings_of_backups_that_cannot_work_are_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfig, match="backup"):
        load_settings(tmp_path, **settings)


def test_without_a_folder_nothing_is_made_by_the_clock(house: House) -> None:
    assert "backup" not in {s.name for s in standard_services(house.c)}

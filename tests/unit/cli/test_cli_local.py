"""What `bithaul up` decides by itself for a new run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from bithaul.cli.local import session
from bithaul.cli.local.folder import RunFolder, RunSpec
from bithaul.cli.local.session import Session, Wishes

NOTHING = Wishes(
    **{field.name: None for field in dataclasses.fields(Wishes)} | {"ternary": True, "port": 0}  # type: ignore[arg-type]
)


class Display:
    def say(self, line: str) -> None:
        pass


@pytest.mark.parametrize(
    ("workers", "asked", "expected"), [(1, None, 24.0), (2, None, 8.0), (None, None, 8.0), (1, 3.0, 3.0)]
)
def test_one_worker_gets_longer_tasks_unless_it_was_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, workers: int | None, asked: float | None, expected: float
) -> None:
    prepared: list[RunSpec] = []
    monkeypatch.setattr(session, "prepare", lambda folder, spec, **_: prepared.append(spec))
    wishes = dataclasses.replace(NOTHING, workers=workers, task_seconds=asked)
    spec = Session(RunFolder(tmp_path), wishes, Display())._prepare_or_resume()  # type: ignore[arg-type]
    assert prepared == [spec]
    assert spec.task_seconds == expected

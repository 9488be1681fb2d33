"""What really happens on a disk, in order: syncs, renames and commits, and what a power cut would take then.

The code under test is the real one, on a real folder and a real SQLite file. A line is `sync NAME`, with a
slash behind a folder's; `move NAME -> NAME`, with `(forgets ...)` behind it if bytes under the new name were
not synced before; or `commit synchronous=N`, with `(forgets ...)` if a power cut right then took a file.
Folders of two hexadecimal digits are written `ab`, SHA-256 sums `SHA`, names of the test's counting `N`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event

from bithaul.simulation.disk import ForgetfulDisk, heard_fsync, is_database

needs_posix = pytest.mark.skipif(os.name == "nt", reason="Windows syncs no folders")
SHORT = [(r"\b[0-9a-f]{64}\b", "SHA"), (r"/[0-9a-f]{2}/", "/ab/"), (r"\bn\d+\b", "N")]


class DiskRecord:
    """`lines`, see above; `disk` cuts the power. Files of databases, locks and `unneeded` folders may go."""

    def __init__(self, folder: Path, *, unneeded: tuple[str, ...] = ()) -> None:
        self.lines: list[str] = []
        self._folder = folder.absolute()
        self.disk = ForgetfulDisk(self._folder, apart=lambda path: is_database(path) or path.name in unneeded)

    @contextmanager
    def watching(self, engine: Engine | None = None) -> Iterator[DiskRecord]:
        """`engine` is the one that writes."""
        self.disk.trust()
        with ExitStack() as stack:
            stack.enter_context(heard_fsync(self._synced))
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            for name in ("replace", "rename", "link"):
                patch.setattr(os, name, self._moving(getattr(os, name)))
            if engine is not None:
                event.listen(engine, "commit", self._committing)
                stack.callback(event.remove, engine, "commit", self._committing)
            yield self

    def note(self, line: str) -> None:
        """Something that the test itself saw happen."""
        self.lines.append(line)

    def forgets(self) -> str:
        """What a power cut would take now, as a line's end."""
        lost = [self._name(path) for path in self.disk.lost()]
        return f" (forgets {', '.join(lost)})" if lost else ""

    def _name(self, path: Path) -> str:
        name = "/" + path.relative_to(self._folder).as_posix()
        if path.is_dir():
            name = f"{name}/".replace("/./", "/")
        for pattern, short in SHORT:
            name = re.sub(pattern, short, name)
        return name

    def _synced(self, descriptor: int) -> None:
        self.disk.synced(descriptor)
        found = os.fstat(descriptor)
        for path in (self._folder, *sorted(self._folder.rglob("*"))):
            if os.path.samestat(path.stat(), found):
                self.lines.append(f"sync {self._name(path)}")

    def _moving(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def move(source: str | Path, target: str | Path, **options: Any) -> None:
            before, after = Path(source).absolute(), Path(target).absolute()
            if not before.is_relative_to(self._folder):
                real(source, target, **options)  # somebody else's, such as a compiler's cache
                return
            name = self._name(before)
            files = [before] if before.is_file() else [p for p in before.rglob("*") if p.is_file()]
            half = [self._name(path) for path in files if not self.disk.whole(path)]
            real(source, target, **options)
            forgets = f" (forgets {', '.join(half)})" if half else ""
            self.lines.append(f"move {name} -> {self._name(after)}{forgets}")

        return move

    def _committing(self, connection: Connection) -> None:
        level = connection.exec_driver_sql("PRAGMA synchronous").scalar_one()
        self.lines.append(f"commit synchronous={level}{self.forgets()}")

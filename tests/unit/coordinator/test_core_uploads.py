"""Uploads that may break off: found by their lease without a look at the others, and forgotten when over."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bithaul.coordinator.blobs.uploads import Upload, UploadInfo, Uploads
from bithaul.errors import NotFound

FENCE = "f" * 32


def begin(uploads: Uploads, number: int, *, worker: str = "w1", task: int = 1, length: int = 4) -> Upload:
    info = UploadInfo(worker=worker, task=task, fence=FENCE, length=length, created=0.0)
    return uploads.create(f"{number:032x}", info)


def names(uploads: Uploads, *leases: tuple[str, int]) -> list[str | None]:
    found = [uploads.of_lease(worker, task=task, fence=FENCE) for worker, task in leases]
    return [None if upload is None else upload.id[-1] for upload in found]


class Unread(dict[str, Any]):
    """Somebody who looks for one entry may not go through them all."""

    def __iter__(self) -> Iterator[str]:
        raise AssertionError("every upload was looked at")

    items = values = keys = __iter__  # type: ignore[assignment]


def test_an_upload_is_found_by_its_lease_alone(tmp_path: Path) -> None:
    """Catches a look at every running upload for each request of a crowd."""
    uploads = Uploads(tmp_path)
    for number, (worker, task) in enumerate([("w1", 1), ("w2", 1), ("w1", 2)]):
        begin(uploads, number, worker=worker, task=task)
    uploads._states = Unread(uploads._states)
    assert names(uploads, ("w1", 1), ("w2", 1), ("w1", 2), ("w2", 2)) == ["0", "1", "2", None]
    assert uploads.of_lease("w1", task=1, fence="0" * 32) is None
    assert uploads.written_at("w2", task=1, fence=FENCE) is not None


def test_the_older_of_two_is_found_until_it_is_over(tmp_path: Path) -> None:
    """Two requests at once may begin two; catches one that hides or takes the other with it."""
    uploads = Uploads(tmp_path)
    first, second = begin(uploads, 1), begin(uploads, 2)
    assert names(uploads, ("w1", 1)) == ["1"]
    uploads.delete(first.id, worker="w1")
    assert names(uploads, ("w1", 1)) == ["2"]
    uploads.delete(second.id, worker="w1")
    assert names(uploads, ("w1", 1)) == [None]
    assert begin(uploads, 3).offset == 0
    assert names(uploads, ("w1", 1)) == ["3"]


def test_a_worker_s_oldest_makes_place_and_is_found_no_more(tmp_path: Path) -> None:
    """Catches a lease that leads to an upload given up for a newer one, and one of another worker gone."""
    uploads = Uploads(tmp_path)
    begin(uploads, 9, worker="w2", task=9)
    for number in range(1, 7):
        begin(uploads, number, task=number)
    leases = [("w1", number) for number in range(1, 7)]
    assert names(uploads, ("w2", 9), *leases) == ["9", None, None, "3", "4", "5", "6"]
    assert len(list(tmp_path.glob("*.upload"))) == 5


@pytest.mark.parametrize("how", ["taken", "deleted", "swept"])
def test_what_is_over_is_found_no_more_and_what_runs_is_after_a_restart(tmp_path: Path, how: str) -> None:
    """Catches a lease that leads to an upload whose file is gone, and one that a restart forgets."""
    uploads = Uploads(tmp_path)
    over, running = begin(uploads, 1), begin(uploads, 2, task=2)
    with uploads.writer(over.id, worker="w1", offset=0) as writer:
        writer.write(b"abcd")
    if how == "taken":
        with uploads.taking(over.id, worker="w1") as whole:
            assert whole.size == 4
    elif how == "deleted":
        uploads.delete(over.id, worker="w1")
    else:
        for path in tmp_path.glob(f"{over.id}.*"):
            os.utime(path, (0, 0))
        assert uploads.sweep(older_than=1.0) == 1
    assert names(uploads, ("w1", 1), ("w1", 2)) == [None, running.id[-1]]
    assert names(Uploads(tmp_path), ("w1", 1), ("w1", 2)) == [None, running.id[-1]]


class GivenUp(Uploads):
    """Whose worker gives an upload up in another request, right when its size is looked at."""

    def _size(self, name: str) -> int:
        size = super()._size(name)
        if name in self._states:
            self._states.pop(name)
            self._remove(name)
        return size


def test_an_upload_that_is_given_up_meanwhile_is_not_found(tmp_path: Path) -> None:
    """Catches a KeyError or a missing file, which a worker's two requests would see as a 500."""
    uploads = Uploads(tmp_path)
    first, second = begin(uploads, 1), begin(uploads, 2)
    with uploads.writer(second.id, worker="w1", offset=0) as writer:
        writer.write(b"1234")
    uploads.__class__ = GivenUp
    with pytest.raises(NotFound), uploads.writer(first.id, worker="w1", offset=0):
        pass
    with pytest.raises(NotFound), uploads.taking(second.id, worker="w1"):
        pass

"""Downloads: resumed, verified, cached; damaged files are never used."""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from bithaul.errors import CorruptFile
from bithaul.exchange.messages import RegisterRequest
from bithaul.worker import segments
from bithaul.worker.backoff import Backoff
from bithaul.worker.link import Refused, Stopped
from bithaul.worker.transfers import Transfers

DATA = np.random.default_rng(0).bytes(3_000_000)
SHA = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def transfers(bench: Any, tmp_path: Path) -> Transfers:
    bench.client.register(RegisterRequest(codecs=["fp32-v1"], weight_formats=["weights-v1"]))
    bench.fake.versions[7] = DATA
    return make(bench, tmp_path)


def make(bench: Any, tmp_path: Path) -> Transfers:
    return Transfers(
        bench.client,
        tmp_path / "cache",
        stop=bench.stop,
        moved=lambda n: None,
        backoff=Backoff(first=0.001, longest=0.002),
    )


def cut_after(count: int) -> Any:
    def answer(request: httpx2.Request) -> httpx2.Response:
        start = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))

        def body() -> Iterator[bytes]:
            yield DATA[start : start + count]
            raise httpx2.ReadError("cut", request=request)

        headers = {"Content-Range": f"bytes {start}-{len(DATA) - 1}/{len(DATA)}"} if start else {}
        return httpx2.Response(206 if start else 200, content=body(), headers=headers)

    return answer


def test_what_arrived_before_a_cut_is_kept(bench: Any, transfers: Transfers) -> None:
    """Catches starting over: on a bad line 470 MB would never arrive."""
    ranges: list[str | None] = []

    def note(inner: Any) -> Any:
        def answer(request: httpx2.Request) -> httpx2.Response:
            ranges.append(request.headers.get("Range"))
            return inner(request)

        return answer

    bench.fake.faults["weights"] = [note(cut_after(1_500_000)), note(cut_after(500_000))]
    path = transfers.weights(7, sha256=SHA, size=len(DATA))
    assert path.read_bytes() == DATA
    assert ranges == [None, "bytes=1500000-"]


def test_a_restarted_worker_continues_the_part(bench: Any, transfers: Transfers, tmp_path: Path) -> None:
    part = tmp_path / "cache/weights" / f"{SHA}.bgwt.part"
    part.write_bytes(DATA[:1_000_000])
    seen: list[str] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request.headers["Range"])
        headers = {"Content-Range": f"bytes 1000000-{len(DATA) - 1}/{len(DATA)}"}
        return httpx2.Response(206, content=iter([DATA[1_000_000:]]), headers=headers)

    bench.fake.faults["weights"] = [answer]
    assert transfers.weights(7, sha256=SHA, size=len(DATA)).read_bytes() == DATA
    assert seen == ["bytes=1000000-"]
    assert not part.exists()


def test_a_server_that_ignores_range_starts_the_file_anew(transfers: Transfers, tmp_path: Path) -> None:
    """Catches a whole file appended to its first half."""
    (tmp_path / "cache/weights" / f"{SHA}.bgwt.part").write_bytes(b"other content")
    assert transfers.weights(7, sha256=SHA, size=len(DATA)).read_bytes() == DATA


@pytest.mark.parametrize("bad", [DATA[:-1] + b"?", DATA + b"?"])
def test_damaged_downloads_are_never_used(
    bench: Any, transfers: Transfers, tmp_path: Path, bad: bytes
) -> None:
    bench.fake.faults["weights"] = [lambda request: httpx2.Response(200, content=iter([bad]))]
    assert transfers.weights(7, sha256=SHA, size=len(DATA)).read_bytes() == DATA
    bench.fake.faults["weights"] = [lambda request: httpx2.Response(200, content=iter([bad]))] * 3
    with pytest.raises(CorruptFile):
        transfers.fetch("/weights/7", tmp_path / "cache/again", sha256=SHA, size=len(DATA))
    assert not list(tmp_path.glob("cache/again*"))


def test_cache_hits_ask_nobody(bench: Any, transfers: Transfers, tmp_path: Path) -> None:
    transfers.weights(7, sha256=SHA, size=len(DATA))
    transfers.weights(7, sha256=SHA, size=len(DATA))
    make(bench, tmp_path).weights(7, sha256=SHA, size=len(DATA))
    assert bench.fake.calls["GET /weights/7"] == 1


def test_a_damaged_cache_is_fetched_again(bench: Any, transfers: Transfers, tmp_path: Path) -> None:
    """Catches trust in a file name: a bit flipped on disk would train on other weights."""
    path = transfers.weights(7, sha256=SHA, size=len(DATA))
    path.write_bytes(DATA[:-1] + b"?")
    assert make(bench, tmp_path).weights(7, sha256=SHA, size=len(DATA)).read_bytes() == DATA
    assert bench.fake.calls["GET /weights/7"] == 2


def test_the_newest_two_weight_files_are_kept(bench: Any, transfers: Transfers, tmp_path: Path) -> None:
    """Catches a disk that fills with every version of a long run."""
    for version in (1, 7, 8, 9):
        data = bench.fake.versions.setdefault(version, bytes([version]) * 100)
        transfers.weights(version, sha256=hashlib.sha256(data).hexdigest(), size=len(data))
    kept = {p.stem for p in (tmp_path / "cache/weights").iterdir()}
    assert kept == {hashlib.sha256(bench.fake.versions[v]).hexdigest() for v in (8, 9)}


def test_what_is_not_there_is_refused(transfers: Transfers) -> None:
    with pytest.raises(Refused):
        transfers.weights(99, sha256=SHA, size=10)


def test_stop_ends_a_download_and_keeps_its_part(bench: Any, transfers: Transfers, tmp_path: Path) -> None:
    bench.stop.request()
    with pytest.raises(Stopped):
        transfers.weights(7, sha256=SHA, size=len(DATA))
    assert list((tmp_path / "cache/weights").glob("*.part"))


def ranged(request: httpx2.Request) -> tuple[int, int]:
    first, _, last = request.headers["Range"].removeprefix("bytes=").partition("-")
    return int(first), int(last or len(DATA) - 1)


def piecemeal(request: httpx2.Request) -> httpx2.Response:
    """What was asked for, 64 KiB at a time."""
    first, last = ranged(request) if "Range" in request.headers else (0, len(DATA) - 1)
    pieces = (DATA[i : min(i + 65_536, last + 1)] for i in range(first, last + 1, 65_536))
    headers = {"Content-Range": f"bytes {first}-{last}/{len(DATA)}"} if "Range" in request.headers else {}
    return httpx2.Response(206 if headers else 200, content=pieces, headers=headers)


@pytest.fixture
def slow(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Transfers:
    """A line on which each piece of the first connection takes three seconds."""
    monkeypatch.setattr(segments, "SEGMENT", 200_000)
    monkeypatch.setattr(segments, "WORTH", 400_000)
    bench.client.register(RegisterRequest(codecs=["fp32-v1"], weight_formats=["weights-v1"]))
    bench.fake.versions[7] = DATA
    ticks = itertools.count(0.0, 3.0)
    backoff = Backoff(first=0.001, longest=0.002)
    return Transfers(
        bench.client,
        tmp_path / "cache",
        stop=bench.stop,
        moved=lambda n: None,
        backoff=backoff,
        clock=lambda: next(ticks),
    )


def test_a_slow_connection_gets_others_beside_it(bench: Any, slow: Transfers) -> None:
    """Catches a range fetched twice or left out, and a second request for the whole file."""
    asked: list[tuple[int, int]] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        if "Range" in request.headers:
            asked.append(ranged(request))
        return piecemeal(request)

    bench.fake.faults["weights"] = [answer] * 100
    assert slow.weights(7, sha256=SHA, size=len(DATA)).read_bytes() == DATA
    asked.sort()
    assert len(asked) > 10
    assert asked[0][0] > 0
    assert asked[-1][1] == len(DATA) - 1
    assert all(a[1] + 1 == b[0] for a, b in itertools.pairwise(asked))


def test_when_a_segment_breaks_what_is_whole_before_it_is_kept(bench: Any, slow: Transfers) -> None:
    """Catches a file with a hole that is taken for complete, and one that starts over."""
    asked: list[tuple[int, int]] = []

    whole, others = 0, threading.Event()  # those behind the broken one arrive first

    def breaks(request: httpx2.Request) -> httpx2.Response:
        nonlocal whole
        if "Range" not in request.headers:
            whole += 1
            return piecemeal(request)
        asked.append(ranged(request))
        if len(asked) == 8:
            assert others.wait(10)
            raise httpx2.ReadError("cut", request=request)
        if len(asked) == 11:
            others.set()
        return piecemeal(request)

    bench.fake.faults["weights"] = [breaks] * 200
    assert slow.weights(7, sha256=SHA, size=len(DATA)).read_bytes() == DATA
    again = [first for first, last in asked[8:] if last == len(DATA) - 1 and last - first > 200_000]
    assert again, "one connection went on where the first gap was"
    assert again[0] > 600_000
    assert whole == 1


def test_a_file_that_changes_meanwhile_is_fetched_anew(bench: Any, slow: Transfers) -> None:
    """Catches two files mixed: the coordinator was restored and sends another blob whole."""
    first = [piecemeal, *[lambda request: httpx2.Response(200, content=iter([DATA]))] * 8]
    bench.fake.faults["weights"] = [*first, *[piecemeal] * 100]
    assert slow.weights(7, sha256=SHA, size=len(DATA)).read_bytes() == DATA


@pytest.mark.parametrize(
    ("left", "got", "seconds", "worth"),
    [
        (2_730_000, 340_000, 2.0, True),  # a delta of 3 MB at a sixth of 10 Mbit/s: 16 s over one connection
        (2_730_000, 340_000, 1.9, False),  # too early to tell
        (2_730_000, 2_400_000, 2.0, False),  # over soon
        (900_000, 100_000, 2.0, False),  # fewer than a piece for each connection
        (450_000_000, 250_000_000, 2.0, False),  # a fast line gains nothing
    ],
)
def test_more_connections_where_they_are_worth_it(left: int, got: int, seconds: float, worth: bool) -> None:
    """Catches small deltas that crawl over one connection, and a crowd of connections for nothing."""
    assert segments.worth_it(left=left, got=got, seconds=seconds) == worth

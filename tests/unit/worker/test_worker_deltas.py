"""A worker rebuilds versions from deltas, and whatever goes wrong on that way ends at the whole file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from bithaul.exchange.deltas import NextVersion
from bithaul.exchange.messages import DeltaRef, RegisterRequest
from bithaul.exchange.weights import INT4_DELTA, weights_pieces, weights_size
from bithaul.model.config import ModelConfig
from bithaul.model.layout import layout_of
from bithaul.worker.backoff import Backoff
from bithaul.worker.link import Stopped
from bithaul.worker.transfers import Transfers, Way

MODEL = ModelConfig(
    vocab_size=48, hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2, context_length=16
)
LAYOUT = layout_of(MODEL)


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Chain:
    """Five versions by int4 deltas, on the fake coordinator; `get` fetches one as a task would."""

    def __init__(self, bench: Any, folder: Path) -> None:
        self.fake, self.moved, self.broken = bench.fake, 0, list[str]()
        random = np.random.default_rng(0)
        theta = random.standard_normal(LAYOUT.size, np.float32)
        files = {1: b"".join(weights_pieces(1, theta, INT4_DELTA))}
        for version in range(2, 6):
            theta = theta + random.standard_normal(LAYOUT.size).astype(np.float32) * np.float32(0.01)
            made = NextVersion(
                version,
                theta,
                np.frombuffer(files[version - 1], "<u2", offset=weights_size(0)),
                base_sha256=sha(files[version - 1]),
                layout=LAYOUT,
                form=INT4_DELTA,
            )
            ways, wholes = zip(*made.pieces(), strict=True)
            files[version], self.fake.deltas[version] = b"".join(wholes), b"".join(ways)
        self.fake.versions |= files
        self.refs = {
            version: DeltaRef(
                version=version, base_sha256=sha(files[version - 1]), sha256=sha(data), size=len(data)
            )
            for version, data in self.fake.deltas.items()
        }
        self.folder = folder / "cache" / "weights"
        self.transfers = Transfers(
            bench.client,
            folder / "cache",
            stop=bench.stop,
            moved=self._moved,
            broken=self.broken.append,
            backoff=Backoff(first=0.001, longest=0.002),
        )

    def _moved(self, count: int) -> None:
        self.moved += count

    def get(self, version: int, *deltas: int) -> None:
        """Checks what came, and that nothing is left lying about."""
        data = self.fake.versions[version]
        way = Way([self.refs[d] for d in deltas], LAYOUT, INT4_DELTA) if deltas else None
        self.moved = 0
        path = self.transfers.weights(version, sha256=sha(data), size=len(data), way=way)
        assert path.read_bytes() == data
        assert {p.suffix for p in self.folder.iterdir()} == {".bgwt"}

    def fetched(self, path: str) -> int:
        return int(self.fake.calls[f"GET /weights/{path}"])


@pytest.fixture
def chain(bench: Any, tmp_path: Path) -> Chain:
    bench.client.register(RegisterRequest(codecs=["fp32-v1"], weight_formats=["weights-v1"]))
    return Chain(bench, tmp_path)


def test_the_next_version_costs_its_delta(chain: Chain) -> None:
    """Catches a whole download although a delta was offered: two and three cost a quarter each."""
    chain.get(1)
    chain.get(2, 2)
    chain.get(3, 2, 3)
    assert chain.moved == chain.refs[3].size < 0.3 * len(chain.fake.versions[3])
    assert (chain.fetched("2"), chain.fetched("3")) == (0, 0)
    assert (chain.fetched("2/delta"), chain.fetched("3/delta")) == (1, 1)
    assert chain.broken == []
    assert len(list(chain.folder.iterdir())) == 2, "the newest two are kept"


def test_a_worker_that_missed_two_versions_goes_the_whole_way(chain: Chain) -> None:
    chain.get(1)
    chain.get(4, 2, 3, 4)
    assert chain.moved == sum(chain.refs[v].size for v in (2, 3, 4)) < len(chain.fake.versions[4])
    assert chain.fetched("4") == 0


def test_a_way_that_starts_elsewhere_is_not_begun(chain: Chain) -> None:
    """A new worker, or one too far behind: catches deltas fetched for nothing."""
    chain.get(3, 2, 3)
    chain.get(5, 5)
    assert [chain.fetched(p) for p in ("2/delta", "3/delta", "5/delta", "3", "5")] == [0, 0, 0, 1, 1]
    assert chain.broken == []


@pytest.mark.parametrize("spoil", ["gone", "other bytes", "cut in the middle of the way"])
def test_a_broken_delta_ends_at_the_whole_file(chain: Chain, spoil: str) -> None:
    """Catches a task that fails because of an optional saving."""
    chain.get(1)
    if spoil == "gone":
        del chain.fake.deltas[2]
    elif spoil == "other bytes":
        chain.fake.deltas[2] = bytes(len(chain.fake.deltas[2]))
    else:
        del chain.fake.deltas[3]
    chain.get(3, 2, 3)
    assert chain.fetched("3") == 1
    assert len(chain.broken) == 1


def test_a_rebuilt_file_of_another_hash_is_thrown_away(chain: Chain) -> None:
    """A base that the disk has changed: catches training from weights that nobody published."""
    chain.get(1)
    (base,) = chain.folder.iterdir()
    data = bytearray(base.read_bytes())
    data[100] ^= 1
    base.write_bytes(data)
    chain.get(2, 2)
    assert chain.fetched("2") == 1
    assert len(chain.broken) == 1
    assert "delta_mismatch" in chain.broken[0]
    assert not base.exists(), "the damaged one would spoil the next way too"


def test_a_broken_line_continues_the_delta(chain: Chain) -> None:
    """Catches the whole file fetched over a line that is merely bad."""
    chain.get(1)

    def cut(request: httpx2.Request) -> httpx2.Response:
        def body() -> Any:
            yield chain.fake.deltas[2][:500]
            raise httpx2.ReadError("cut", request=request)

        return httpx2.Response(200, content=body())

    chain.fake.faults["GET /weights/2/delta"] = [cut]
    chain.get(2, 2)
    assert (chain.fetched("2/delta"), chain.fetched("2")) == (2, 0)
    assert chain.moved == chain.refs[2].size


def test_a_stop_is_a_stop(chain: Chain, bench: Any) -> None:
    """Catches a worker that begins to fetch the whole file when it should end."""
    chain.get(1)
    bench.stop.request()
    with pytest.raises(Stopped):
        chain.get(2, 2)
    assert chain.fetched("2") == 0

"""`bithaul bench coordinator`: a crowd of workers, large uploads beside it, and transfers against nginx.

Three measurements, each on a coordinator process of its own with a real SQLite file over real HTTP:

- **small**: the whole crowd leases, trains as long as its tasks are, submits small updates that are merged.
  Memory of the coordinator over the number of updates comes from here.
- **large**: a run of a large model; the crowd leases, sends heartbeats and gives tasks back, while two of it
  upload updates as fast as they can. A run has one model, so small and large updates cannot be mixed.
- **transfers**: weights down and an update up, by turns through the coordinator and through nginx with the
  same bytes, where there is an nginx.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import httpx2
import psutil

from bithaul.coordinator.commands.create_run import CreateRun, create_run
from bithaul.coordinator.context import Coordinator, open_coordinator
from bithaul.coordinator.identity.clients import create_client
from bithaul.coordinator.settings import load_settings
from bithaul.errors import Unavailable
from bithaul.exchange.messages import WORKER_SCOPE
from bithaul.model.config import ModelConfig
from bithaul.simulation.crowd import Credential, Crowd, slope
from bithaul.simulation.toy import MODEL, write_corpus

MIB = 2**20
SETTLED_AFTER = 20  # updates: caches are filled
SAID_EVERY = 30  # seconds
Say = Callable[[str], None]


def make_run(c: Coordinator, config: ModelConfig, *, task_seconds: float, gates: Sequence[str] = ()) -> None:
    """A corpus and a run without an end in the coordinator's folder."""
    corpus = c.settings.directory / "corpus"
    write_corpus(corpus, seed=0, vocab_size=config.vocab_size)
    create_run(
        c,
        CreateRun(
            run="bench",
            model=config,
            recipe={"batch_examples": 4},
            corpus_dir=corpus,
            budget_tokens=1e12,
            merge_rule="buffered_nesterov",
            merge_options={"eta": 1.0, "mu": 0.0},
            gates=gates,
            task_seconds=task_seconds,
            probe_every=0,
        ),
    )


def prepare(folder: Path, config: ModelConfig, *, workers: int, task_seconds: float) -> list[Credential]:
    """A run, and a credential for each worker."""
    with closing(open_coordinator(load_settings(folder))) as c:
        make_run(c, config, task_seconds=task_seconds)
        names = [f"w{i:05}" for i in range(workers)]
        return [Credential(name, create_client(c, name, scope=WORKER_SCOPE)) for name in names]


@contextmanager
def coordinator_process(folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    process = subprocess.Popen(  # noqa: S603 - ourselves
        [sys.executable, "-m", "bithaul", "coordinator", "--dir", str(folder), "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise Unavailable("The coordinator did not start.")
        yield json.loads(line)["url"], psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(60)
        assert process.stdout is not None
        process.stdout.close()


class Watch:
    """Memory of a process and the updates it has accepted, each second; says so every half minute."""

    def __init__(self, process: psutil.Process, accepted: Callable[[], int], say: Say) -> None:
        self._process, self._accepted, self._say = process, accepted, say
        self.points: list[tuple[float, float]] = []  # (updates, bytes)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._ended.wait(1.0):
            self.points.append((float(self._accepted()), float(self._process.memory_info().rss)))
            if len(self.points) % SAID_EVERY == 0:
                updates, rss = self.points[-1]
                self._say(f"  {len(self.points)} s: {updates:.0f} updates accepted, {rss / MIB:.0f} MiB")

    def told(self) -> dict[str, object]:
        self._ended.set()
        self._thread.join()
        settled = [(n, rss) for n, rss in self.points if n >= SETTLED_AFTER]
        first = settled[0] if settled else (0.0, 0.0)
        last = self.points[-1] if self.points else (0.0, 0.0)
        return {
            "updates": int(last[0]),
            "rss_mib_settled": round(first[1] / MIB, 1),
            "rss_mib_end": round(last[1] / MIB, 1),
            "rss_mib_peak": round(max((rss for _, rss in self.points), default=0.0) / MIB, 1),
            "kib_per_update": round(slope(settled) / 1024, 2),
        }


def bench_crowd(
    config: ModelConfig, *, workers: int, seconds: float, task_seconds: float, heavy: int, say: Say
) -> dict[str, object]:
    """One coordinator under a crowd. With `heavy` uploaders the others give their tasks back."""
    with tempfile.TemporaryDirectory(prefix="bithaul-crowd-") as name:
        folder = Path(name)
        say(f"{workers} credentials and a run of {config.name}")
        credentials = prepare(folder, config, workers=workers, task_seconds=task_seconds)
        with coordinator_process(folder) as (url, process):
            crowd = Crowd(url, credentials, task_seconds=task_seconds, updates=heavy == 0, heavy=heavy)
            ramp = min(30.0, max(2.0, workers / 40))
            watch = Watch(process, lambda: crowd.tally.verdicts.get("accepted", 0), say)
            say(f"{workers} workers come in {ramp:.0f} s, then {seconds:.0f} s are measured")
            own, theirs = psutil.Process().cpu_times(), process.cpu_times()
            began = time.monotonic()
            asyncio.run(crowd.run(ramp=ramp, seconds=seconds))
            took = time.monotonic() - began
            memory = watch.told()
            cpu = process.cpu_times()
            mine = psutil.Process().cpu_times()
    uploads = crowd.uploads.seconds.get("submit", [])
    return {
        "workers": workers,
        "requests": crowd.tally.told(),
        "verdicts": crowd.tally.verdicts,
        "errors": len(crowd.tally.errors) + len(crowd.uploads.errors),
        "first_errors": (crowd.tally.errors + crowd.uploads.errors)[:3],
        "repeated": crowd.repeated,
        "uploads": len(uploads),
        "upload_seconds": round(statistics.median(uploads), 2) if uploads else None,
        "upload_verdicts": crowd.uploads.verdicts,
        "memory": memory,
        "coordinator_cores": round((cpu.user + cpu.system - theirs.user - theirs.system) / took, 2),
        "crowd_cores": round((mine.user + mine.system - own.user - own.system) / took, 2),
    }


@contextmanager
def nginx(folder: Path, port: int) -> Iterator[str | None]:
    """An nginx that serves `folder` and takes PUT there; None where there is no nginx."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        yield None
        return
    for part in ("body", "proxy", "fastcgi", "uwsgi", "scgi"):
        (folder / part).mkdir()
    temporary = "".join(
        f"{kind}_temp_path {folder / kind.split('_')[-1]};" for kind in ("proxy", "fastcgi", "uwsgi", "scgi")
    )
    text = f"""daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error;
        {"user root;" if os.getuid() == 0 else ""} events {{}}
        http {{ access_log off; sendfile on; client_max_body_size 0; client_body_temp_path {folder}/body;
        {temporary}
        server {{ listen 127.0.0.1:{port}; root {folder}; dav_methods PUT; }} }}"""
    (folder / "conf").write_text(text)
    arguments = [program, "-c", str(folder / "conf"), "-e", str(folder / "error")]
    process = subprocess.Popen(arguments)  # noqa: S603 - a configuration of ours
    try:
        for _ in range(100):
            try:
                httpx2.get(f"http://127.0.0.1:{port}/conf", trust_env=False)
                break
            except httpx2.TransportError:
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def bench_transfers(config: ModelConfig, *, turns: int, say: Say) -> dict[str, object]:
    """Weights down and an update up: seconds of each, by turns; the ratio is nginx's seconds over ours."""
    with tempfile.TemporaryDirectory(prefix="bithaul-transfer-") as name:
        folder = Path(name)
        (folder / "web").mkdir()
        (credential,) = prepare(folder / "run", config, workers=1, task_seconds=600.0)
        with coordinator_process(folder / "run") as (url, _), nginx(folder / "web", _free_port()) as web:
            mover = _Mover(url, credential)
            size = mover.download(f"{url}/weights/1", into=folder / "web" / "weights")
            update = asyncio.run(mover.update())
            asyncio.run(mover.upload())  # the first one loads what judges and merges it
            (folder / "web" / "update").write_bytes(b"".join(update))
            ours: dict[str, list[float]] = {"down": [], "up": []}
            theirs: dict[str, list[float]] = {"down": [], "up": []}
            for turn in range(turns):
                say(f"transfers, turn {turn + 1} of {turns}")
                ours["down"].append(_timed(lambda: mover.download(f"{url}/weights/1")))
                if web is not None:
                    theirs["down"].append(_timed(lambda: mover.download(f"{web}/weights")))
                ours["up"].append(asyncio.run(mover.upload()))
                if web is not None:
                    theirs["up"].append(_timed(lambda: _put(f"{web}/uploaded", update)))
    sizes = {"down": size, "up": sum(map(len, update))}
    return {
        f"{way}_{key}": value
        for way in ("down", "up")
        for key, value in _compared(sizes[way], ours[way], theirs[way]).items()
    }


def _compared(size: int, ours: Sequence[float], theirs: Sequence[float]) -> dict[str, object]:
    mine, other = statistics.median(ours), statistics.median(theirs) if theirs else None
    return {
        "mb": round(size / 1e6, 1),
        "mb_per_second": round(size / 1e6 / mine, 1),
        "nginx_mb_per_second": None if other is None else round(size / 1e6 / other, 1),
        "ratio_to_nginx": None if other is None else round(other / mine, 3),
    }


class _Mover:
    """One worker with raw requests."""

    def __init__(self, url: str, credential: Credential) -> None:
        self._url, self._credential = url, credential
        self._crowd = Crowd(url, [credential], task_seconds=0.0, updates=True)
        answer = httpx2.post(
            f"{url}/connect/token",
            data={"grant_type": "client_credentials"},
            auth=(credential.client_id, credential.secret),
            trust_env=False,
        )
        self._headers = {"Authorization": f"Bearer {answer.json()['access_token']}"}

    def download(self, url: str, *, into: Path | None = None) -> int:
        size = 0
        headers = {**self._headers, "Accept-Encoding": "identity"}
        with (
            (into or Path(os.devnull)).open("wb") as file,
            httpx2.stream("GET", url, headers=headers, timeout=120, trust_env=False) as response,
        ):
            response.raise_for_status()
            for piece in response.iter_raw():
                file.write(piece)
                size += len(piece)
        return size

    async def update(self) -> list[bytes]:
        """What `upload` sends, once: it is made when it is first needed."""
        return await self._crowd.members[0].one_update()

    async def upload(self) -> float:
        """Seconds of the one request that uploads and submits."""
        return await self._crowd.members[0].timed_submit()


def _put(url: str, parts: Sequence[bytes]) -> None:
    def body() -> Iterator[bytes]:
        for part in parts:
            for i in range(0, len(part), MIB):
                yield part[i : i + MIB]

    length = {"Content-Length": str(sum(map(len, parts)))}
    httpx2.put(url, content=body(), headers=length, timeout=120, trust_env=False).raise_for_status()


def _timed(do: Callable[[], object]) -> float:
    began = time.perf_counter()
    do()
    return time.perf_counter() - began


def _free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def bench_coordinator(
    large: ModelConfig, *, workers: int, seconds: float, task_seconds: float, turns: int, say: Say
) -> dict[str, dict[str, object]]:
    """All three. Raises `Unavailable` when the coordinator does not start or a request was no success."""
    crowds = {
        name: bench_crowd(
            config, workers=workers, seconds=seconds, task_seconds=task_seconds, heavy=heavy, say=say
        )
        for name, config, heavy in (("small", MODEL, 0), ("large", large, 2))
    }
    if any(crowd["errors"] for crowd in crowds.values()):
        raise Unavailable(f"Requests failed: {json.dumps(crowds)}")
    return {**crowds, "transfers": bench_transfers(large, turns=turns, say=say)}

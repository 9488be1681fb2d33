"""The largest preset through the whole loop: weights fetched, one step trained, update uploaded and merged.

A coordinator process and a worker process on this machine, speaking HTTP; a synthetic corpus that fills the
vocabulary. Before the worker starts, several clients fetch the weights at once, which shows what one transfer
costs the coordinator. Memory is the resident set, pages of mapped files included; `anonymous` leaves those
out, since the system may take them back at any time. The last line is JSON. Example:

    python benchmarks/large_model.py --preset large --downloads 4
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path

import httpx2
import psutil

from bithaul.coordinator.commands.create_run import CreateRun, create_run
from bithaul.coordinator.context import open_coordinator
from bithaul.coordinator.database import ledger, runs, versions
from bithaul.coordinator.identity.clients import create_client
from bithaul.coordinator.settings import load_settings
from bithaul.corpus.build import build_corpus
from bithaul.corpus.example import Example
from bithaul.exchange.messages import WORKER_SCOPE
from bithaul.exchange.weights import open_weights
from bithaul.model.config import load_config
from bithaul.model.layout import layout_of
from bithaul.training.recipe import TrainingRecipe

MIB = 2**20
WORDS_PER_EXAMPLE = 5


class Memory:
    """Samples the resident set of a process every 20 ms until `stop`. Bytes."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self.peak = self.peak_anonymous = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def now(self) -> int:
        return int(self._process.memory_info().rss)

    def restart(self) -> None:
        """Forget the peaks so far."""
        self.peak = self.peak_anonymous = 0

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(0.02):
            try:
                info = self._process.memory_info()
            except psutil.NoSuchProcess:
                return
            self.peak = max(self.peak, info.rss)
            self.peak_anonymous = max(self.peak_anonymous, info.rss - getattr(info, "shared", 0))


def prepare(folder: Path, *, preset: str, vocabulary: int, batch: int, codec: str) -> tuple[str, int]:
    """A run whose budget is one task of one step. Returns the worker's secret and the parameter count."""
    words = [f"w{_letters(i)}" for i in range(vocabulary + 500)]
    texts = [words[i : i + WORDS_PER_EXAMPLE] for i in range(0, len(words), WORDS_PER_EXAMPLE)]
    examples = [Example(" ".join(text), "navigate") for text in texts] * 2
    context = load_config(preset, vocab_size=vocabulary).context_length
    manifest = build_corpus(
        folder / "corpus", examples, examples[:64], vocab_size=vocabulary, max_tokens=context + 1, seed=0
    )
    config = load_config(preset, vocab_size=manifest.vocab_size)
    recipe = TrainingRecipe.for_preset(preset, "intents").model_copy(
        update={"batch_examples": batch, "warmup_share": 0.0}  # with warm-up the first step has rate 0
    )
    with closing(open_coordinator(load_settings(folder))) as coordinator:
        wanted = CreateRun(
            run="large",
            model=config,
            recipe=recipe.model_dump(mode="json"),
            corpus_dir=folder / "corpus",
            budget_tokens=1.0,
            codec=codec,
            probe_every=0,
        )
        create_run(coordinator, wanted)
        return create_client(coordinator, "worker-1", scope=WORKER_SCOPE), layout_of(config).size


def _letters(number: int) -> str:
    """Letters only: digits would be spelled out by the tokenizer."""
    text = ""
    for _ in range(4):
        number, rest = divmod(number, 26)
        text += chr(97 + rest)
    return text


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "bithaul", *arguments]


@contextmanager
def coordinator_process(folder: Path) -> Iterator[tuple[str, int]]:
    """Address and process id; stopped at the end."""
    process = subprocess.Popen(
        command("coordinator", "--dir", str(folder), "--port", "0", "--json"),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"], process.pid
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def download(url: str, token: str, into: list[tuple[int, str]]) -> None:
    """The weights of version 1, counted and hashed, never held."""
    digest, size = hashlib.sha256(), 0
    headers = {"Authorization": f"Bearer {token}", "Accept-Encoding": "identity"}
    with httpx2.stream("GET", f"{url}/weights/1", headers=headers, timeout=120) as response:
        response.raise_for_status()
        for piece in response.iter_raw():
            digest.update(piece)
            size += len(piece)
    into.append((size, digest.hexdigest()))


def downloads(url: str, secret: str, count: int) -> tuple[int, float]:
    """`count` downloads at the same time; (bytes of one, seconds for all). All must be the same bytes."""
    answer = httpx2.post(
        f"{url}/connect/token", data={"grant_type": "client_credentials"}, auth=("worker-1", secret)
    )
    token, found = str(answer.json()["access_token"]), list[tuple[int, str]]()
    threads = [threading.Thread(target=download, args=(url, token, found)) for _ in range(count)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == count, "a download failed"
    assert len(set(found)) == 1, "downloads differ"
    return found[0][0], time.perf_counter() - started


def train_one_task(url: str, secret: str, folder: Path, *, threads: int, timeout: float) -> dict[str, object]:
    """A worker process until the run is finished: seconds of its phases, its peak memory in bytes."""
    process = subprocess.Popen(
        command(
            *("worker", "--url", url, "--client-id", "worker-1", "--state-dir", str(folder)),
            *("--threads", str(threads), "--calibration-seconds", "1", "--exit-when-finished", "--json"),
        ),
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "BITHAUL_CLIENT_SECRET": secret},
    )
    memory, started = Memory(process.pid), time.perf_counter()
    try:
        _, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    finally:
        memory.stop()
    events = {}
    for line in errors.splitlines():
        entry = json.loads(line) if line.startswith("{") else {}
        events.setdefault(entry.get("event"), entry)
    assert process.returncode == 0, errors
    assert "update accepted" in events, errors
    at = {name: datetime.fromisoformat(str(e["timestamp"])).timestamp() for name, e in events.items() if name}
    return {
        "seconds": time.perf_counter() - started,
        "calibrated_tokens_per_second": events["calibrated"]["tokens_per_second"],
        "step_tokens": events["trained"]["tokens"],
        "step_seconds": events["trained"]["seconds"],
        "fetch_seconds": at["trained"] - at["task"] - float(events["trained"]["seconds"]),
        "upload_seconds": at["update accepted"] - at["trained"],
        "peak": memory.peak,
        "peak_anonymous": memory.peak_anonymous,
    }


def merged(folder: Path) -> dict[str, object]:
    """What the database and the stored weights say about the merge; fails unless it moved the weights."""
    with closing(open_coordinator(load_settings(folder))) as c:
        with c.database.read() as connection:
            run = runs.get_run(connection)
            newest = versions.newest_version(connection, run.id)
            first = versions.find_version(connection, run.id, 1)
            waiting = len(ledger.unmerged(connection, run.id))
        assert first is not None
        assert (newest.version, waiting) == (2, 0), f"not merged: {newest.version}, {waiting} waiting"
        old, new = (
            open_weights(c.blobs.verify(v.sha256).path, expected_count=run.layout.size).vector
            for v in (first, newest)
        )
        changed = sum(int((old[i : i + MIB] != new[i : i + MIB]).sum()) for i in range(0, old.size, MIB))
        assert changed > 0, "the merge changed nothing"
        return {"merge_seconds": newest.merge_seconds, "values_changed": changed, "state": str(run.state)}


def measure(
    folder: Path,
    *,
    preset: str,
    vocabulary: int,
    batch: int,
    codec: str,
    concurrent: int,
    threads: int,
    timeout: float = 540,
) -> dict[str, object]:
    """The whole loop in `folder`; raises when any part of it did not happen."""
    started = time.perf_counter()
    secret, parameters = prepare(folder, preset=preset, vocabulary=vocabulary, batch=batch, codec=codec)
    prepared = time.perf_counter() - started
    with coordinator_process(folder) as (url, pid):
        memory = Memory(pid)
        idle = memory.now()
        memory.restart()
        size, seconds = downloads(url, secret, concurrent)
        growth = max(0, memory.peak - idle)
        memory.restart()
        worker = train_one_task(url, secret, folder / "worker", threads=threads, timeout=timeout)
        memory.stop()
    megabytes = {
        "coordinator_idle_mib": idle,
        "coordinator_growth_by_downloads_mib": growth,
        "coordinator_peak_mib": memory.peak,
        "coordinator_peak_anonymous_mib": memory.peak_anonymous,
        "worker_peak_mib": worker.pop("peak"),
        "worker_peak_anonymous_mib": worker.pop("peak_anonymous"),
    }
    rounded = {k: round(v, 2) if isinstance(v, float) else v for k, v in (worker | merged(folder)).items()}
    return {
        "preset": preset,
        "vocabulary": vocabulary,
        "parameters": parameters,
        "weights_mb": round(size / 1e6, 1),
        "codec": codec,
        "prepare_seconds": round(prepared, 2),
        "concurrent_downloads": concurrent,
        "download_seconds_all": round(seconds, 2),
        "growth_per_download_in_copies": round(growth / concurrent / size, 4),
        **{k: round(int(str(v)) / MIB, 1) for k, v in megabytes.items()},
        **rounded,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--preset", default="large")
    parser.add_argument("--vocabulary", type=int, default=5_174)
    parser.add_argument("--batch", type=int, default=16, help="examples of the one step")
    parser.add_argument("--codec", default="int8-block-v1")
    parser.add_argument("--downloads", type=int, default=4, help="clients that fetch the weights at once")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of the worker")
    parser.add_argument("--dir", type=Path, default=None, help="where to work (a temporary folder)")
    args = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="bithaul-large-", dir=args.dir))
    try:
        result = measure(
            folder,
            preset=args.preset,
            vocabulary=args.vocabulary,
            batch=args.batch,
            codec=args.codec,
            concurrent=args.downloads,
            threads=args.threads,
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()

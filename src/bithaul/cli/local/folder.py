"""One run lives in one folder. This module names everything in it and guards it against a second `up`.

RUN/run.json            what was asked for; written last, so it exists only when preparation is complete
RUN/preparing           there while a run is prepared: only then may its leftovers be removed
RUN/corpus/             tokenizer, labels, shards, manifest
RUN/coordinator.db      the coordinator's database; RUN/blobs/ its weights, shards and updates
RUN/secrets/            one file per client, mode 0600
RUN/workers/<id>/       a worker's own state (outbox, residual, cache)
RUN/logs/               one file per process
RUN/model/              the newest model, ready for `classify`, `evaluate` and export
RUN/result.json         the last line that `up` printed
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bithaul.corpus.augment import Augmentation
from bithaul.errors import Conflict, CorruptFile, InvalidInput

_SETTINGS = "bithaul.toml"
_LOCK = "up.lock"


class RunSpec(BaseModel):
    """What a run is: fixed when it is prepared, compared when it is resumed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: str
    train: str | None = None  # file or folder; None: generated Truck Mate requests
    valid: str | None = None
    data_sha256: str | None = None  # over the bytes of `train` and `valid`
    examples: int | None = None  # how many Truck Mate requests were generated
    vocab_size: int = 5_174
    merge_rule: str = "sync"
    merge_options: dict[str, float | str] = {}
    gates: list[str] = []  # those switched on
    max_update_norm: float | None = None
    codec: str | None = None  # None: the merge rule's own
    weights: str = "fp32"  # how versions are published: fp32 or bf16
    ternary: bool = True
    as_given: bool = False
    word_pieces: int | None = None  # None: as the corpus builder chooses
    augmentation: Augmentation | None = None  # None: what is suggested for the data
    recipe: dict[str, Any] = {}  # fields that replace those of the preset's recipe
    seed: int = 0
    workers: int = Field(default=2, ge=1, le=256)
    task_seconds: float = Field(default=8.0, gt=0)


def usual_task_seconds(workers: int) -> float:
    """Short tasks keep several workers' weights together; one worker only pays for them (docs/lab/0013)."""
    return 8.0 if workers > 1 else 24.0


@dataclass(frozen=True)
class RunFolder:
    """Paths inside one run's folder."""

    root: Path

    @property
    def spec_file(self) -> Path:
        return self.root / "run.json"

    @property
    def corpus(self) -> Path:
        return self.root / "corpus"

    @property
    def secrets(self) -> Path:
        return self.root / "secrets"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def result_file(self) -> Path:
        return self.root / "result.json"

    @property
    def processes_file(self) -> Path:
        return self.root / "processes.json"

    @property
    def _preparing(self) -> Path:
        return self.root / "preparing"

    def begin_preparation(self) -> None:
        """Claim a folder that is empty or whose preparation was interrupted; any other is a `Conflict`.

        A settings file may lie in it: what it says, such as where the database is, counts from the start.
        """
        if not self._preparing.exists():
            foreign = sorted(p.name for p in self.root.iterdir() if p.name not in (_LOCK, _SETTINGS))
            if foreign:
                raise Conflict(
                    f"{self.root} holds no run but other files ({foreign[0]}); nothing was touched. "
                    "Give a --dir that is new or empty."
                )
            self._preparing.touch()

    def end_preparation(self) -> None:
        self._preparing.unlink(missing_ok=True)

    def worker_state(self, client_id: str) -> Path:
        return self.root / "workers" / client_id

    def secret_file(self, client_id: str) -> Path:
        return self.secrets / f"{client_id}.secret"

    def read_spec(self) -> RunSpec | None:
        """The spec of a prepared run, or None when the folder holds none yet."""
        if not self.spec_file.exists():
            return None
        try:
            return RunSpec.model_validate_json(self.spec_file.read_bytes())
        except ValidationError as error:
            raise CorruptFile(
                f"{self.spec_file} cannot be read ({error.error_count()} problems); "
                "restore it or use another --dir."
            ) from error

    def write_spec(self, spec: RunSpec) -> None:
        write_atomically(self.spec_file, spec.model_dump_json(indent=2).encode() + b"\n")

    def read_secret(self, client_id: str) -> str:
        return self.secret_file(client_id).read_text(encoding="utf-8").strip()

    def write_secret(self, client_id: str, secret: str) -> None:
        """Store a client's secret, readable by this user only."""
        self.secrets.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self.secret_file(client_id), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(secret + "\n")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process; a second `up` on it is a `Conflict`."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInput(f"{self.root} cannot be used as a run folder: {error.strerror}.") from error
        lock = FileLock(self.root / _LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise Conflict(
                f"Another `bithaul up` is using {self.root}; stop it first or choose another --dir."
            ) from None
        try:
            yield
        finally:
            lock.release()


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` so that a crash leaves the old or the new content, never a mixture."""
    aside = path.with_name(path.name + ".new")
    with aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def write_json(path: Path, value: object) -> None:
    write_atomically(path, json.dumps(value, indent=2).encode() + b"\n")

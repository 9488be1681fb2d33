"""The weights again, from the ledger alone: whole vectors, version by version, compared bit for bit.

A version follows from the one before, the payloads that name it and the numbers stored with it; one that a
rollback made is the version it restores, without momentum if that was not kept, and as it was published if
theta was not. What was applied twice, left out, weighed, rounded or stored differently shows here. Where
deltas are published, each must lead from the version before to the very bytes of the next one.
"""

from __future__ import annotations

import hashlib
import io
import json
import sqlite3
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from bithaul.coordinator.blobs.store import BlobStore
from bithaul.errors import CorruptFile
from bithaul.exchange.bf16 import to_bf16
from bithaul.exchange.codecs import codec_named
from bithaul.exchange.deltas import NextVersion, apply_delta
from bithaul.exchange.frame import read_header
from bithaul.exchange.weights import (
    FP32,
    WeightFormat,
    open_weights,
    read_weights,
    weights_named,
    weights_pieces,
)
from bithaul.model.config import ModelConfig
from bithaul.model.layout import Layout, layout_of
from bithaul.rounds.aggregate import Mix
from bithaul.rounds.merging import Plan, step
from bithaul.rounds.outer import OuterStep
from bithaul.simulation.house import House

FloatVector = npt.NDArray[np.float32]
REMEMBERED = 64  # versions a rollback may go back over


class Replay:
    """`identical` until a version differs; `catch_up` looks at versions made since."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._layout: Layout | None = None
        self._codec = ""
        self._form = FP32
        self._version = 0
        self._theta: FloatVector | None = None
        self._momentum: FloatVector | None = None
        self._shown: FloatVector | None = None  # what was published
        self._sha256 = ""  # of its file
        self._made: dict[int, tuple[FloatVector, FloatVector | None, FloatVector]] = {}
        self.identical = True
        self.differing: list[int] = []
        self.versions = 0

    @property
    def theta(self) -> FloatVector:
        """That of the newest version looked at, float32 [parameters]."""
        assert self._theta is not None, "no version was looked at"
        return self._theta

    @property
    def memory(self) -> Any:
        """Where it stands: a coordinator restored from a backup goes back to what was then."""
        return self._version, self._theta, self._momentum, self._shown, self._sha256, self._made

    @memory.setter
    def memory(self, memory: Any) -> None:
        self._version, self._theta, self._momentum, self._shown, self._sha256, self._made = memory

    def catch_up(self, db: sqlite3.Connection) -> None:
        if self._layout is None:
            model, self._codec, weights = db.execute("SELECT model, codec, weights FROM runs").fetchone()
            self._form = weights_named(weights)
            self._layout = layout_of(ModelConfig.model_validate(json.loads(model)))
        rows = db.execute(
            "SELECT version, sha256, theta_sha256, momentum_sha256, outer_step, restores, retired_at, "
            "delta_sha256 FROM versions WHERE version > ? ORDER BY version",
            (self._version,),
        ).fetchall()
        for version, sha256, theta, momentum, numbers, restores, retired, delta in rows:
            self._one(db, version, sha256, theta, momentum, numbers, restores, retired is not None, delta)

    def _one(
        self,
        db: sqlite3.Connection,
        version: int,
        sha256: str,
        theta: str | None,
        momentum: str | None,
        numbers: str | None,
        restores: int | None,
        retired: bool,
        delta: str | None,
    ) -> None:
        blobs, layout = self._house.c.blobs, self._layout
        assert layout is not None
        if self._theta is None:
            self._theta, self._shown = _vector(blobs, theta or sha256, layout), _vector(blobs, sha256, layout)
        else:
            if restores is not None:
                exact, carried, shown = self._made[restores]
                kept = theta in (None, _digest(version, exact, FP32))
                self._theta = exact if kept else shown
                self._momentum = carried if momentum is not None else None
            else:
                assert numbers is not None, "a version that restores none has the numbers of its step"
                payloads = db.execute(
                    "SELECT blob_sha256 FROM reports WHERE merged_in = ? ORDER BY seq", (version,)
                ).fetchall()
                updates = [self._update(blobs, sha, layout) for (sha,) in payloads]
                plan = plan_from(json.loads(numbers))
                moved = step(plan, self._theta, self._momentum, updates)
                self._theta, self._momentum = moved.theta, moved.momentum
            if delta is not None and not self._leads(blobs, delta, sha256, layout):
                self.identical = False
            weights, way = self._publish(version, layout, stepped=restores is None)
            same = weights == sha256 and delta in (None, way)
            if not retired:
                blobs.verify(sha256)
            if theta is not None:
                same = same and np.array_equal(self._theta, _vector(blobs, theta, layout))
            if momentum is not None and self._momentum is not None:
                same = same and np.array_equal(self._momentum, _vector(blobs, momentum, layout))
            if not same:
                self.identical = False
                self.differing.append(version)
                self._theta = _vector(blobs, theta or sha256, layout)
                self._shown = _vector(blobs, sha256, layout)
        self._version, self._sha256 = version, sha256
        assert self._shown is not None
        self._made[version] = self._theta, self._momentum, self._shown
        self._made.pop(version - REMEMBERED, None)
        self.versions += 1

    def _leads(self, blobs: BlobStore, delta: str, sha256: str, layout: Layout) -> bool:
        """Whether the delta, applied as a worker does to the version before, gives that file."""
        assert self._shown is not None, "a delta leads from one version to the next"
        with TemporaryDirectory() as folder:
            base = Path(folder) / "base"
            base.write_bytes(b"".join(weights_pieces(self._version, self._shown, self._form)))
            path, form, start = blobs.verify(delta).path, self._form, self._sha256
            try:
                found = apply_delta(base, path, io.BytesIO(), base_sha256=start, layout=layout, form=form)
            except CorruptFile:
                return False
        return found == sha256

    def _publish(self, version: int, layout: Layout, *, stepped: bool) -> tuple[str, str | None]:
        """SHA-256 of the file that theta must have been published as, and of the delta that leads to it."""
        assert self._theta is not None
        assert self._shown is not None
        if self._form is FP32:
            self._shown = self._theta
            return _digest(version, self._theta, FP32), None
        if self._form.delta is None or not stepped:
            whole, way = b"".join(weights_pieces(version, self._theta, self._form)), None
        else:
            made = NextVersion(
                version,
                self._theta,
                to_bf16(self._shown),
                base_sha256=self._sha256,
                layout=layout,
                form=self._form,
            )
            ways, wholes = zip(*made.pieces(), strict=True)
            whole, way = b"".join(wholes), hashlib.sha256(b"".join(ways)).hexdigest()
        self._shown = np.array(read_weights(whole, expected_count=layout.size).vector)
        return hashlib.sha256(whole).hexdigest(), way

    def _update(self, blobs: BlobStore, sha256: str, layout: Layout) -> Any:
        codec = codec_named(self._codec)
        with blobs.verify(sha256).path.open("rb") as file:
            read_header(file)
            (piece,) = codec.pieces(file, layout, chunk_values=layout.size)
        return piece.values()


def plan_from(stored: dict[str, Any]) -> Plan:
    """The numbers of a step as they stand beside its version."""
    mix = stored["mix"]
    return Plan(Mix(mix["aggregator"], tuple(mix["factors"]), mix["centre"]), OuterStep(**stored["outer"]))


def _digest(version: int, vector: FloatVector, form: WeightFormat) -> str:
    """SHA-256 of the file that this vector must have."""
    digest = hashlib.sha256()
    for piece in weights_pieces(version, vector, form):
        digest.update(piece)
    return digest.hexdigest()


def _vector(blobs: BlobStore, sha256: str, layout: Layout) -> FloatVector:
    return np.array(open_weights(blobs.verify(sha256).path, expected_count=layout.size).vector)

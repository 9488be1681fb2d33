"""What a version's ternary weights look like, layer by layer: shares of -1, 0, +1, a histogram, flips.

Absmean quantisation (BitNet b1.58, section 2): round(w / mean|w|) clipped to -1..1. Reads the whole weights
file; callers keep the result, which never changes while theta is kept.
"""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, ConfigDict

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import runs, versions
from bithaul.coordinator.queries.blobs import weights_blob
from bithaul.exchange.weights import open_weights
from bithaul.model.layout import PROJECTIONS, FloatVector

BINS = 41  # of w / mean|w| from -4 to 4; what is beyond counts in the outer ones
REACH = 4.0


class LayerView(BaseModel):
    """Shares are 0..1. `flips`: values that differ from the version compared with; None without one.
    `rounded`: values that differ from those of theta, by publication alone; None when theta is not kept."""

    model_config = ConfigDict(frozen=True)

    name: str
    values: int
    minus: float
    zero: float
    plus: float
    scale: float  # mean|w| of its matrices, weighted by size
    histogram: list[float]  # share of each bin, sums to 1
    flips: float | None
    rounded: float | None


class TernaryView(BaseModel):
    model_config = ConfigDict(frozen=True)

    version: int
    compared_with: int | None  # the nearest older version whose weights are kept
    layers: list[LayerView]


def ternary(c: Coordinator, version: int) -> TernaryView:
    """Raises `NotFound` for a version that is unknown or whose weights were retired."""
    with c.database.read() as connection:
        run = runs.get_run(connection)
        rows = versions.list_versions(connection, run.id)
    kept = [row.version for row in rows if row.version < version and row.retired_at is None]
    thetas = [row.theta_sha256 for row in rows if row.version == version and row.theta_sha256]
    before = kept[-1] if kept else None
    size = run.layout.size
    now = open_weights(weights_blob(c, version).path, expected_count=size).vector
    old = None if before is None else open_weights(weights_blob(c, before).path, expected_count=size).vector
    theta = open_weights(c.blobs.get(thetas[0]).path, expected_count=size).vector if thetas else None
    layers = []
    for number in range(run.model.num_layers):
        spans = [
            (spec.offset, spec.size)
            for spec in run.layout.tensors
            if spec.name in {f"model.layers.{number}.{part}.weight" for part in PROJECTIONS}
        ]
        layers.append(_layer(f"layer {number}", now, old, theta, spans))
    return TernaryView(version=version, compared_with=before, layers=layers)


def _layer(
    name: str,
    now: FloatVector,
    old: FloatVector | None,
    theta: FloatVector | None,
    spans: list[tuple[int, int]],
) -> LayerView:
    counts = np.zeros(3)
    bins = np.zeros(BINS)
    flips = rounded = scale = 0.0
    for start, size in spans:
        matrix = now[start : start + size]
        mean = float(np.abs(matrix).mean()) or 1.0
        relative = matrix / mean
        cut = _ternary(relative)
        counts += [(cut < 0).sum(), (cut == 0).sum(), (cut > 0).sum()]
        bins += np.histogram(np.clip(relative, -REACH, REACH), bins=BINS, range=(-REACH, REACH))[0]
        scale += mean * size
        if old is not None:
            flips += float((cut != _codes(old[start : start + size])).sum())
        if theta is not None:
            rounded += float((cut != _codes(theta[start : start + size])).sum())
    total = float(counts.sum()) or 1.0
    minus, zero, plus = (counts / total).tolist()
    return LayerView(
        name=name,
        values=int(total),
        minus=minus,
        zero=zero,
        plus=plus,
        scale=scale / total,
        histogram=(bins / total).tolist(),
        flips=None if old is None else flips / total,
        rounded=None if theta is None else rounded / total,
    )


def _codes(matrix: FloatVector) -> FloatVector:
    return _ternary(matrix / (float(np.abs(matrix).mean()) or 1.0))


def _ternary(relative: FloatVector) -> FloatVector:
    return np.clip(np.rint(relative), -1, 1)

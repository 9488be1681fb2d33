"""The figures behind GET /metrics, as plain samples; the door renders them for Prometheus."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bithaul.coordinator.context import Coordinator


@dataclass(frozen=True)
class Sample:
    """One value. `name` has no `bithaul_` prefix; `kind` is gauge or counter."""

    name: str
    kind: str
    help: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)


def metrics(c: Coordinator) -> list[Sample]:
    raise NotImplementedError

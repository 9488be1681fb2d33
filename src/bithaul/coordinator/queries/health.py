"""GET /health: can this coordinator do its work? Every part is really tried, none is assumed."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from bithaul.coordinator.context import Coordinator


class Check(BaseModel):
    """`name` is stable: database, blobs, disk, version, service.<name>."""

    model_config = ConfigDict(frozen=True)

    name: str
    ok: bool
    detail: str


class HealthView(BaseModel):
    model_config = ConfigDict(frozen=True)

    ok: bool
    checks: list[Check]


def health(c: Coordinator) -> HealthView:
    """Never raises: what cannot be checked is not ok."""
    raise NotImplementedError

"""Keys of workers beside what their machines do; keys of operators and applications, which only show."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import fleet
from bithaul.coordinator.identity.clients import list_clients
from bithaul.exchange.messages import WORKER_SCOPE


class KeyView(BaseModel):
    """`hint`: the first characters of the secret; the rest is stored nowhere."""

    model_config = ConfigDict(frozen=True)

    id: str
    scope: str
    hint: str
    disabled: bool
    created_at: float
    rotated_at: float | None
    last_used_at: float | None
    last_used_from: str | None
    is_worker: bool
    registered: bool
    last_seen: float | None


class KeyringView(BaseModel):
    model_config = ConfigDict(frozen=True)

    now: float
    workers: list[KeyView]
    others: list[KeyView]


def keyring(c: Coordinator) -> KeyringView:
    with c.database.read() as connection:
        seen = {w.id: w.last_seen for w in fleet.list_workers(connection)}
    keys = [
        KeyView(
            id=client.id,
            scope=client.scope,
            hint=client.hint,
            disabled=client.disabled,
            created_at=client.created_at,
            rotated_at=client.rotated_at,
            last_used_at=client.last_used_at,
            last_used_from=client.last_used_from,
            is_worker=client.scope == WORKER_SCOPE,
            registered=client.id in seen,
            last_seen=seen.get(client.id),
        )
        for client in list_clients(c)
    ]
    return KeyringView(
        now=c.clock.now(),
        workers=[key for key in keys if key.is_worker],
        others=[key for key in keys if not key.is_worker],
    )

"""Keys of workers beside what their machines do; keys of operators and applications, which only show."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import fleet
from bithaul.coordinator.identity.clients import list_clients
from bithaul.exchange.messages import WORKER_SCOPE

PAGE = 50  # each row has three dialogs, about 3 kB together


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
    """One page of the workers' keys that match. `next_after`: the name to go on from, None at the end."""

    model_config = ConfigDict(frozen=True)

    now: float
    workers: list[KeyView]
    others: list[KeyView]
    matching: int
    total: int
    next_after: str | None


def keyring(c: Coordinator, *, search: str = "", after: str = "", count: int | None = PAGE) -> KeyringView:
    """Keys of workers whose name, first characters or address has `search` in it; no `count`: all of them."""
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
    workers = sorted((key for key in keys if key.is_worker), key=lambda key: key.id)
    text = search.lower()
    matching = [key for key in workers if text in f"{key.id} {key.hint} {key.last_used_from or ''}".lower()]
    below = [key for key in matching if key.id > after]
    shown = below[:count]
    return KeyringView(
        now=c.clock.now(),
        workers=shown,
        others=[key for key in keys if not key.is_worker],
        matching=len(matching),
        total=len(workers),
        next_after=shown[-1].id if len(below) > len(shown) else None,
    )

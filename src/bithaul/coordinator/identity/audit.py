"""The audit log: one row for everything that changes who may do what, in the transaction that does it."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, insert, select

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.identity.tables import audit


@dataclass(frozen=True)
class AuditRow:
    """`actor` is a client id, a person's name, "cli" or "system"."""

    id: int
    time: float
    actor: str
    action: str
    subject: str
    detail: str


def record(
    connection: Connection, time: float, *, actor: str, action: str, subject: str, detail: str = ""
) -> None:
    """Add one audit row to the transaction that does the thing."""
    connection.execute(
        insert(audit).values(
            time=time, actor=actor[:64], action=action, subject=subject[:64], detail=detail[:400]
        )
    )


def read_audit(c: Coordinator, *, limit: int, action: str | None = None) -> list[AuditRow]:
    """The newest rows, newest first; with `action` only those whose action is or begins with it."""
    query = select(audit).order_by(audit.c.id.desc()).limit(limit)
    if action is not None:
        query = query.where(
            (audit.c.action == action) | audit.c.action.startswith(action + ".", autoescape=True)
        )
    with c.database.read() as connection:
        return [AuditRow(**row) for row in connection.execute(query).mappings()]

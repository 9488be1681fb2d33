"""The audit log: one row for everything that changes who may do what, in the transaction that does it."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, insert, select

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.identity.tables import audit

DETAIL = 400  # letters that are kept


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
            time=time, actor=actor[:64], action=action, subject=subject[:64], detail=detail[:DETAIL]
        )
    )


def last_details(connection: Connection, action: str) -> dict[str, str]:
    """What the newest row of each subject says, of one action."""
    query = select(audit.c.subject, audit.c.detail).where(audit.c.action == action).order_by(audit.c.id)
    return {row.subject: row.detail for row in connection.execute(query)}


def subjects_of(connection: Connection, action: str) -> list[str]:
    """Whom or what each row of one action is about, oldest first."""
    query = select(audit.c.subject).where(audit.c.action == action).order_by(audit.c.id)
    return list(connection.execute(query).scalars())


def read_audit(c: Coordinator, *, limit: int, action: str | None = None) -> list[AuditRow]:
    """The newest rows, newest first; with `action` only those whose action is or begins with it."""
    query = select(audit).order_by(audit.c.id.desc()).limit(limit)
    if action is not None:
        query = query.where(
            (audit.c.action == action) | audit.c.action.startswith(action + ".", autoescape=True)
        )
    with c.database.read() as connection:
        return [AuditRow(**row) for row in connection.execute(query).mappings()]

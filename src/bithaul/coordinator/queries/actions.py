"""What an operator just did, read back from the audit log: the page that follows an action shows it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from sqlalchemy import func, select

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.identity.tables import audit

FRESH_SECONDS = 120.0
SENTENCES = {
    "worker.drain": "{subject} finishes what it has and gets no more work.",
    "worker.resume": "{subject} gets work again.",
    "worker.gone": "{subject} is marked gone; what it held went back to the queue.",
    "worker.set-aside": "{subject} is set aside: no more work, and nothing of it is merged.",
    "worker.restore": "{subject} is on probation and gets work.",
    "worker.pin": "{subject} counts fully from now on.",
    "run.rollback": "Version {subject} is in force again, {detail}.",
    "run.pause": "The run is paused: open tasks go on, no new ones are given out.",
    "run.resume": "The run goes on.",
    "task.requeue": "Task {subject} was taken back and waits for the next worker.",
    "task.kick": "{detail}",
    "task.seed": "{detail}",
    "task.unseed": "{detail}",
    "version.pin": "Version {subject} is pinned and will be kept.",
    "version.unpin": "Version {subject} is no longer pinned.",
    "client.create": "The key {subject} was made.",
    "client.rotate": "{subject} has a new secret; what it held before is refused.",
    "client.disable": "The key {subject} is disabled; it is refused from now on.",
    "client.enable": "The key {subject} works again.",
    "client.delete": "The key {subject} is deleted.",
    "session.end": "Session {subject:.6} has ended; its browser has to sign in again.",
    "person.change-password": "{subject} has a new password; every other session has ended.",
}


NOTHING = 0  # the number of no audit row: what was asked for was so already


class DoneView(BaseModel):
    """`changed`: an audit row tells of it."""

    model_config = ConfigDict(frozen=True)

    time: float
    sentence: str
    changed: bool = True


def newest_action(c: Coordinator, actor: str) -> int:
    """The number of this person's newest audit row, `NOTHING` before the first."""
    with c.database.read() as connection:
        query = select(func.max(audit.c.id)).where(audit.c.actor == actor[:64])
        number = connection.execute(query).scalar_one()
    return NOTHING if number is None else int(number)


def done(c: Coordinator, number: int) -> DoneView | None:
    """The sentence for a fresh audit row; None for an old or unknown one, so an old link says nothing."""
    if number == NOTHING:
        return DoneView(time=c.clock.now(), sentence="Nothing was changed: it was so already.", changed=False)
    with c.database.read() as connection:
        row = connection.execute(select(audit).where(audit.c.id == number)).mappings().one_or_none()
    if row is None or c.clock.now() - row["time"] > FRESH_SECONDS or row["action"] not in SENTENCES:
        return None
    text = SENTENCES[row["action"]].format(subject=row["subject"], detail=row["detail"])
    return DoneView(time=row["time"], sentence=text)

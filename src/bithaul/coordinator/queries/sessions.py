"""Where a person is signed in."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from bithaul.coordinator.identity.sessions import Session, Sessions


class SessionView(BaseModel):
    """`sid` names the session and opens nothing. `agent`: what its browser says of itself."""

    model_config = ConfigDict(frozen=True)

    sid: str
    here: bool  # the one that asks
    last_seen_at: float
    address: str
    agent: str


def sessions_view(sessions: Sessions, here: Session) -> list[SessionView]:
    """The live sessions of the person of this one, the newest activity first."""
    return [
        SessionView(
            sid=session.sid,
            here=session.sid == here.sid,
            last_seen_at=session.last_seen_at,
            address=session.address,
            agent=session.agent,
        )
        for session in sessions.live(here.person_id)
    ]

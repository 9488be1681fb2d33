"""RP-initiated logout: whether to ask first, and where to send the browser afterwards.

A hint counts when it is an ID token of ours for a client of ours; an access token does not. Without a good
hint the person is asked, and without a registered address nobody is sent anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from authlib.common.urls import add_params_to_uri
from sqlalchemy import Connection

from bithaul.coordinator.identity import clients
from bithaul.coordinator.identity.sessions import Session
from bithaul.coordinator.identity.tokens import InvalidToken, Tokens


@dataclass(frozen=True)
class Logout:
    """`confirmed`: a valid hint names this very session. `location`: where to go after it, if anywhere."""

    confirmed: bool
    location: str | None
    problem: str | None = None


def plan_logout(
    connection: Connection, tokens: Tokens, fields: Mapping[str, str], session: Session | None
) -> Logout:
    client_id = fields.get("client_id")
    confirmed = False
    hint = fields.get("id_token_hint")
    if hint is not None:
        try:
            claims = tokens.read_id_token(hint)
        except InvalidToken:
            return Logout(False, None, "The id_token_hint is not valid.")
        if client_id not in (None, claims["aud"]):
            return Logout(False, None, "The id_token_hint belongs to another client.")
        client_id = claims["aud"]
        confirmed = session is not None and claims["sid"] == session.sid
    wanted = fields.get("post_logout_redirect_uri")
    if wanted is None:
        return Logout(confirmed, None)
    row = None if client_id is None else clients.find(connection, client_id)
    if row is None or row["disabled"] or wanted not in (row["logout_uris"] or []):  # byte for byte
        return Logout(confirmed, None, "The post_logout_redirect_uri is not registered.")
    state = fields.get("state")
    return Logout(confirmed, wanted if state is None else str(add_params_to_uri(wanted, {"state": state})))

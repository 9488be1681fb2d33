"""Applications that sign people in here (relying parties), their addresses, and our own admin site.

Registered addresses are compared byte for byte, so they are checked when they are registered: https, or plain
http on loopback or wherever this coordinator itself is plain http.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

from sqlalchemy import insert, select, update
from sqlalchemy.exc import IntegrityError

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.identity.audit import record
from bithaul.coordinator.identity.clients import (
    ADMIN_SITE,
    APP_SCOPE,
    HINT,
    SecretHasher,
    check_client_id,
    first_cv,
    new_secret,
)
from bithaul.coordinator.identity.tables import clients
from bithaul.coordinator.identity.transport import is_loopback
from bithaul.errors import Conflict, InvalidInput

CALLBACK_PATH: Final = "/admin/callback"
SIGNED_OUT_PATH: Final = "/admin/signed-out"
_LONGEST: Final = 2000


def register_app(
    c: Coordinator,
    client_id: str,
    *,
    redirect_uris: Sequence[str],
    logout_uris: Sequence[str] = (),
    public: bool = False,
    actor: str = "cli",
) -> str | None:
    """Register a client of the code flow. Its secret, shown once; None for a public one."""
    check_client_id(client_id)
    if not redirect_uris:
        raise InvalidInput("Name at least one --redirect-uri.", code="invalid_redirect_uri")
    for uri in (*redirect_uris, *logout_uris):
        check_address(uri, plain_http=c.settings.base_url.startswith("http:"))
    return _insert(
        c, client_id, redirect_uris=redirect_uris, logout_uris=logout_uris, public=public, actor=actor
    )


def ensure_admin_site(c: Coordinator) -> None:
    """The admin site's own client, with the addresses of this public URL."""
    base = c.settings.base_url
    wanted = {"redirect_uris": [base + CALLBACK_PATH], "logout_uris": [base + SIGNED_OUT_PATH]}
    with c.database.read() as connection:
        row = connection.execute(select(clients).where(clients.c.id == ADMIN_SITE)).mappings().one_or_none()
    if row is None:
        _insert(c, ADMIN_SITE, public=True, actor="system", **wanted)
    elif any(row[name] != value for name, value in wanted.items()):
        with c.database.write() as connection:
            connection.execute(update(clients).where(clients.c.id == ADMIN_SITE).values(wanted))


def check_address(uri: str, *, plain_http: bool) -> None:
    """Whether a browser may be sent to `uri` with a code. Raises `InvalidInput`."""
    try:
        parts = urlsplit(uri)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host, parts = None, urlsplit("")
    secure = parts.scheme == "https" or (parts.scheme == "http" and (plain_http or is_loopback(host or "")))
    plain = uri.isascii() and uri.isprintable() and not set(uri) & set(" \\\"'<>*")
    if not (host and secure and plain and len(uri) <= _LONGEST) or "@" in parts.netloc or "#" in uri:
        raise InvalidInput(
            f"{uri[:80]!r} is not an address an application can have: it must be https (plain http on "
            "loopback only), without user, fragment or wildcard.",
            code="invalid_redirect_uri",
        )


def _insert(
    c: Coordinator,
    client_id: str,
    *,
    redirect_uris: Sequence[str],
    logout_uris: Sequence[str],
    public: bool,
    actor: str,
) -> str | None:
    secret = new_secret(APP_SCOPE)
    now = c.clock.now()
    row = {
        "id": client_id,
        "scope": APP_SCOPE,
        "secret_hash": SecretHasher.of(c).hash(secret),  # of a public client: of a secret nobody knows
        "secret_hint": "" if public else secret[:HINT],
        "cv": first_cv(),
        "created_at": now,
        "public": public,
        "redirect_uris": list(redirect_uris),
        "logout_uris": list(logout_uris),
    }
    try:
        with c.database.write() as connection:
            connection.execute(insert(clients).values(row))
            record(connection, now, actor=actor, action="client.create", subject=client_id, detail=APP_SCOPE)
    except IntegrityError as error:
        raise Conflict(f"The client {client_id!r} exists already.", code="client_exists") from error
    return None if public else secret

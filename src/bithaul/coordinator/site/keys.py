"""API keys and the install page. A secret is on the page that answers its making, and never again."""

from __future__ import annotations

import threading
from typing import Annotated

from fastapi import APIRouter, Path
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from bithaul.coordinator.api.forms import read_form
from bithaul.coordinator.identity.clients import (
    LONGEST_GRACE,
    create_client,
    delete_client,
    disable_client,
    enable_client,
    list_clients,
    rotate_client,
)
from bithaul.coordinator.identity.sessions import Session
from bithaul.coordinator.queries.installer import PREFIX, install_lines
from bithaul.coordinator.queries.keyring import keyring
from bithaul.coordinator.queries.wheel import build_wheel, wheel_name
from bithaul.coordinator.site.admin import ADMIN_HOME
from bithaul.coordinator.site.export import export
from bithaul.coordinator.site.frame import Frame
from bithaul.errors import Forbidden, InvalidInput
from bithaul.exchange.messages import WORKER_SCOPE, Name

KeyName = Annotated[Name, Path()]
KEYS = f"{ADMIN_HOME}/keys"
INSTALL = f"{ADMIN_HOME}/install"


def key_pages(router: APIRouter, frame: Frame) -> None:
    c = frame.c

    @router.get(KEYS)
    async def keys(request: Request, q: str = "", after: str = "") -> Response:
        def build() -> dict[str, object]:
            return {"view": keyring(c, search=q, after=after), "q": q, "after": after}

        return await frame.show(request, "keys.html", build)

    @router.get(f"{KEYS}.{{kind}}")
    async def keys_file(request: Request, kind: str, q: str = "") -> Response:
        def build() -> Response:
            return export([keyring(c, search=q, count=None).workers], name="keys", kind=kind)

        return await frame.data(request, build)

    @router.post(f"{KEYS}/{{key}}/rotate")
    async def rotate(request: Request, key: KeyName) -> Response:
        session = await frame.visits.admin(request)
        grace = _grace((await read_form(request)).get("grace", "0"))

        def build() -> Response:
            _refuse_others(key)
            secret = rotate_client(c, key, grace_seconds=grace, actor=session.name)
            return _secret_page(request, session, key, secret, rotated=True)

        return await run_in_threadpool(build)

    @router.post(f"{KEYS}/{{key}}/{{what}}")
    async def change(request: Request, key: KeyName, what: str) -> Response:
        commands = {"disable": disable_client, "enable": enable_client, "delete": delete_client}
        if what not in commands:
            raise InvalidInput("Keys can be rotated, disabled, enabled and deleted.")

        def command(name: str) -> None:
            _refuse_others(key)
            commands[what](c, key, actor=name)

        return await frame.act(request, lambda session: command(session.name), back=KEYS)

    @router.get(INSTALL)
    async def install(request: Request) -> Response:
        return await frame.show(request, "install.html", dict)

    @router.post(INSTALL)
    async def make(request: Request) -> Response:
        session = await frame.visits.admin(request)
        name = (await read_form(request)).get("name", "").strip().lower()

        def build() -> Response:
            secret = create_client(c, name, scope=WORKER_SCOPE, actor=session.name)
            return _secret_page(request, session, name, secret, rotated=False)

        return await run_in_threadpool(build)

    @router.get(f"{INSTALL}/{{key}}/state")
    async def state(request: Request, key: KeyName) -> Response:
        """The part of the page that turns green when the worker has registered."""

        def build() -> dict[str, object]:
            found = [k for k in keyring(c, search=key, count=None).workers if k.id == key]
            return {"key": found[0] if found else None, "name": key}

        return await frame.part(request, "installstate.html", build)

    wheel = _Wheel()

    @router.get(PREFIX + "{name}")
    async def wheel_file(name: str) -> Response:
        """This program, for machines that have no key yet."""
        if name != wheel_name():
            raise InvalidInput(f"This coordinator has {wheel_name()} only.", code="unknown_wheel")
        content = await run_in_threadpool(wheel.read)
        return Response(content, media_type="application/zip", headers={"cache-control": "no-cache"})

    def _secret_page(request: Request, session: Session, key: str, secret: str, *, rotated: bool) -> Response:
        values = {
            "name": key,
            "secret": secret,
            "lines": install_lines(c.settings.base_url, worker=key, secret=secret),
            "rotated": rotated,
            "key": None,
            "here": INSTALL,  # what a refresh asks for: never the making again
        }
        return frame.render(request, session, "secret.html", values)

    def _refuse_others(key: str) -> None:
        if any(client.id == key and client.scope != WORKER_SCOPE for client in list_clients(c)):
            raise Forbidden(
                "Keys of operators and applications are changed with `bithaul keys` on the machine.",
                code="needs_machine_access",
            )


class _Wheel:
    """Built when first asked for, once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._content = b""

    def read(self) -> bytes:
        with self._lock:
            if not self._content:
                self._content = build_wheel()
            return self._content


def _grace(text: str) -> float:
    if not text.isdecimal() or not 0 <= int(text[:9]) <= LONGEST_GRACE:
        raise InvalidInput("The grace must be a number of seconds.", code="invalid_grace")
    return float(text)

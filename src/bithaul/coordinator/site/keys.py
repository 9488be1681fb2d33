"""API keys and the install page. A secret is on the page that answers its making, and never again.

Loading that page again sends its form again. Each form says what it was made for, the secret as it was then
or the time, so that a second sending of it is known, also after a restart, and changes nothing.
"""

from __future__ import annotations

import math
import threading
from typing import Annotated

from fastapi import APIRouter, Path
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from bithaul.coordinator.api.forms import read_form
from bithaul.coordinator.identity.clients import (
    LONGEST_GRACE,
    Client,
    create_client,
    delete_client,
    disable_client,
    enable_client,
    list_clients,
    rotate_client,
)
from bithaul.coordinator.identity.sessions import Session
from bithaul.coordinator.queries.installer import PREFIX, install_lines
from bithaul.coordinator.queries.keyring import KeyView, keyring
from bithaul.coordinator.queries.wheel import build_wheel, wheel_name
from bithaul.coordinator.site.admin import ADMIN_HOME
from bithaul.coordinator.site.export import export
from bithaul.coordinator.site.frame import Frame
from bithaul.coordinator.site.pages import go
from bithaul.errors import Conflict, Forbidden, InvalidInput
from bithaul.exchange.messages import WORKER_SCOPE, Name

KeyName = Annotated[Name, Path()]
KEYS = f"{ADMIN_HOME}/keys"
INSTALL = f"{ADMIN_HOME}/install"


def key_pages(router: APIRouter, frame: Frame) -> None:
    c = frame.c

    @router.get(KEYS)
    async def keys(request: Request, q: str = "", after: str = "", shown: str = "") -> Response:
        """`shown`: the key whose secret is not shown twice."""

        def build() -> dict[str, object]:
            view = keyring(c, search=q, after=after)
            return {"view": view, "q": q, "after": after, "mark": _mark, "shown": worker_key(shown)}

        return await frame.show(request, "keys.html", build)

    @router.get(f"{KEYS}.{{kind}}")
    async def keys_file(request: Request, kind: str, q: str = "") -> Response:
        def build() -> Response:
            return export([keyring(c, search=q, count=None).workers], name="keys", kind=kind)

        return await frame.data(request, build)

    @router.get(f"{KEYS}/operators.{{kind}}")
    async def others_file(request: Request, kind: str) -> Response:
        """Of operators and applications."""
        return await frame.data(request, lambda: export([keyring(c).others], name="operators", kind=kind))

    @router.get(f"{KEYS}/{{key}}/rotate")
    async def rotated(request: Request, key: KeyName) -> Response:
        """The address of a page with a secret, which has no other way to be asked for."""
        await frame.visits.admin(request)
        return go(f"{KEYS}?q={key}")

    rotating = threading.Lock()  # of two sendings of a form at the same time one rotates

    @router.post(f"{KEYS}/{{key}}/rotate")
    async def rotate(request: Request, key: KeyName) -> Response:
        """The new secret; for a form that was sent before, where to rotate again."""
        session = await frame.visits.admin(request)
        form = await read_form(request)
        grace = _grace(form.get("grace", "0"))

        def build() -> Response:
            _refuse_others(key)
            with rotating:
                before = worker_key(key)
                if before is not None and form.get("mark", "") != _mark(before):
                    return go(f"{KEYS}?q={key}&shown={key}")
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
        return await frame.show(request, "install.html", blank)

    @router.post(INSTALL)
    async def make(request: Request) -> Response:
        """The secret of a new key; the form again, as it was filled in, when there can be none."""
        session = await frame.visits.admin(request)
        form = await read_form(request)
        typed = form.get("name", "").strip()
        name = typed.lower()

        def build() -> Response:
            try:
                secret = create_client(c, name, scope=WORKER_SCOPE, actor=session.name)
            except (Conflict, InvalidInput) as error:
                values = blank() | {"typed": typed[:64], "status": error.http_status, "here": INSTALL}
                values |= refused(name, form.get("since", ""))
                return frame.render(request, session, "install.html", values)
            return _secret_page(request, session, name, secret, rotated=False)

        return await run_in_threadpool(build)

    def blank() -> dict[str, object]:
        return {"typed": "", "why": "", "name": "", "key": None, "since": c.clock.now()}

    def refused(name: str, since: str) -> dict[str, object]:
        """Why there is no new key: `sent` this form has made it already, `taken`, `other` or `bad`."""
        if all(client.id != name for client in list_clients(c)):
            return {"why": "bad"}
        key = worker_view(name)
        if key is None:
            return {"why": "other", "name": name}
        return {"why": "sent" if key.created_at >= _moment(since) else "taken", "name": name, "key": key}

    @router.get(f"{INSTALL}/{{key}}/state")
    async def state(request: Request, key: KeyName) -> Response:
        """The part of the page that turns green when the worker has registered."""

        def build() -> dict[str, object]:
            return {"key": worker_view(key), "name": key}

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
            "here": f"{KEYS}?q={key}" if rotated else INSTALL,  # of a refresh: never the making again
        }
        return frame.render(request, session, "secret.html", values)

    def worker_key(key: str) -> Client | None:
        found = [client for client in list_clients(c) if client.id == key and client.scope == WORKER_SCOPE]
        return found[0] if found else None

    def worker_view(key: str) -> KeyView | None:
        found = [view for view in keyring(c, search=key, count=None).workers if view.id == key]
        return found[0] if found else None

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


def _mark(key: Client | KeyView) -> str:
    """Of the secret that a key has now; another one has another."""
    return f"{key.hint}.{key.rotated_at or key.created_at:.6f}"


def _moment(text: str) -> float:
    """A time that a form of ours carries; later than all for anything else."""
    try:
        return float(text[:40])
    except ValueError:
        return math.inf


def _grace(text: str) -> float:
    if not text.isdecimal() or not 0 <= int(text[:9]) <= LONGEST_GRACE:
        raise InvalidInput("The grace must be a number of seconds.", code="invalid_grace")
    return float(text)

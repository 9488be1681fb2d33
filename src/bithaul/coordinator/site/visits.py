"""Who is visiting: the session of the request's cookie, the rules for pages that need one.

`Visits.admin` is the door of every page of the admin site. What would let a leaked session dig in (clients of
operators, signing keys, the provider) has no page, and changing a password asks for the present one.
"""

from __future__ import annotations

from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from bithaul.coordinator.api.cookies import Cookies
from bithaul.coordinator.api.peer import Peers
from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.identity.provider import Identity
from bithaul.coordinator.identity.sessions import Session
from bithaul.coordinator.identity.signin import Visitor
from bithaul.coordinator.site.pages import GoTo

AUTO_REFRESH = "x-auto-refresh"


class Visits:
    def __init__(self, c: Coordinator, identity: Identity, cookies: Cookies, peers: Peers) -> None:
        self._c = c
        self._identity = identity
        self._cookies = cookies
        self._peers = peers

    def cookie(self, request: Request) -> str | None:
        """The session cookie, alive or not."""
        return self._cookies.read(request.headers, self._cookies.session)

    def sign_in_cookie(self, request: Request) -> str | None:
        return self._cookies.read(request.headers, self._cookies.sign_in)

    def csrf(self, request: Request) -> str:
        """The token the forms of this visitor must carry."""
        cookie = self.cookie(request) or self.sign_in_cookie(request)
        return "" if cookie is None else self._identity.sessions.csrf(cookie)

    async def begin_sign_in(self, request: Request) -> str:
        """A new sign-in's cookie. Raises `TooManyAttempts`: each is a row, and anybody may ask for one."""
        self._identity.sign_in_pace.step(self._peers.address_of(request))
        return await run_in_threadpool(self._identity.sessions.begin_sign_in)

    def visitor(self, request: Request) -> Visitor:
        return Visitor(self._peers.address_of(request), request.headers.get("user-agent", ""))

    async def session(self, request: Request) -> Session | None:
        """The live session, if any. A page that refreshes itself says so and is no activity."""
        active = AUTO_REFRESH not in request.headers
        return await run_in_threadpool(self._identity.sessions.find, self.cookie(request), active=active)

    async def signed_in(self, request: Request) -> Session:
        """The session of a page that needs one. Raises `GoTo`: sign in, or replace a generated password."""
        session = await self.session(request)
        if session is None:
            raise GoTo(f"/signin?next={_here(request)}")
        if session.must_change and request.scope["path"] != "/account/password":
            raise GoTo(f"/account/password?next={_here(request)}")
        return session

    async def admin(self, request: Request) -> Session:
        """The session of a page of the admin site: one it has accepted as a relying party."""
        session = await self.session(request)
        if session is None or session.admin_since is None:
            raise GoTo(f"/admin/signin?next={_here(request)}")
        if session.must_change:
            raise GoTo(f"/account/password?next={_here(request)}")
        return session


def _here(request: Request) -> str:
    """This page as a path; a form's own address is no page to come back to."""
    if request.method != "GET":
        return ""
    query = request.scope["query_string"].decode("ascii", errors="replace")
    path = request.scope["path"]
    return quote(path + (f"?{query}" if query else ""), safe="")

"""Who is visiting: the session of the request's cookie, the rules for pages that need one.

`Visits.admin` is the door of every page of the admin site. What would let a leaked session dig in (clients of
operators, signing keys, the provider) has no page, and changing a password asks for the present one.
"""

from __future__ import annotations

from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from bithaul.coordinator.api.cookies import Cookies
from bithaul.coordinator.api.peer import Peers
from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.identity.provider import Identity
from bithaul.coordinator.identity.sessions import Session
from bithaul.coordinator.identity.signin import Visitor
from bithaul.coordinator.site.pages import HOME, GoTo, safe_next

AUTO_REFRESH = "x-auto-refresh"
ADMIN_SIGN_IN = "/admin/signin"
PAGES_WITH_FORMS = ("/admin", "/account")
FILES = (".csv", ".json", "/weights")  # ends of addresses whose answers are kept, not looked at


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

    async def session(self, request: Request, *, active: bool = True) -> Session | None:
        """The live session, if any. A page that refreshes itself says so and is no activity."""
        active = active and AUTO_REFRESH not in request.headers
        return await run_in_threadpool(self._identity.sessions.find, self.cookie(request), active=active)

    async def signed_in(self, request: Request) -> Session:
        """The session of a page that needs one. Raises `GoTo`: sign in, or replace a generated password."""
        session = await self.session(request)
        if session is None:
            raise GoTo(self._sign_in(request, "/signin"))
        if session.must_change and request.scope["path"] != "/account/password":
            raise GoTo(f"/account/password?next={quote(self.page_of(request), safe='')}")
        return session

    async def admin(self, request: Request) -> Session:
        """The session of a page of the admin site: one it has accepted as a relying party."""
        session = await self.session(request)
        if session is None or session.admin_since is None:
            raise GoTo(self._sign_in(request, ADMIN_SIGN_IN, ended=session is None))
        if session.must_change:
            raise GoTo(f"/account/password?next={quote(self.page_of(request), safe='')}")
        return session

    def page_of(self, request: Request) -> str:
        """The page to come back to, as a path: this one, or that of a form or a file; "" for none."""
        if request.method != "GET" or request.scope["path"].endswith(FILES):
            return self.page_of_form(request)
        query = request.scope["query_string"].decode("ascii", errors="replace")
        path: str = request.scope["path"]
        return path + (f"?{query}" if query else "")

    def page_of_form(self, request: Request) -> str:
        """The page of this site that a form was on, without what it said of an action before; "" for none.

        Who comes from another site cannot say that: browsers write Referer themselves.
        """
        hosts = (request.headers.get("host"), urlsplit(self._c.settings.base_url).netloc)
        try:
            told = urlsplit(request.headers.get("referer", ""))
        except ValueError:
            return ""
        pairs = [
            (name, text) for name, text in parse_qsl(told.query, keep_blank_values=True) if name != "did"
        ]
        page = told.path + (f"?{urlencode(pairs)}" if pairs else "")
        ours = told.netloc in hosts and told.path.startswith(PAGES_WITH_FORMS)
        return page if ours and safe_next(page) == page else ""

    def signed_out(self, page: str) -> str:
        """The sign-in page for somebody whose form was not heard; it says so, and `page` comes after it."""
        if not page.startswith(HOME):
            page = f"{ADMIN_SIGN_IN}?next={quote(page, safe='')}"
        return f"/signin?ended=1&next={quote(page, safe='')}"

    def _sign_in(self, request: Request, address: str, *, ended: bool = True) -> str:
        if request.method == "POST" and ended:
            page = self.page_of_form(request)
            return self.signed_out(page or (HOME if address == "/signin" else ""))
        return f"{address}?next={quote(self.page_of(request), safe='')}"

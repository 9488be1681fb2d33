"""The sign-in page: a form without script, bound to a sign-in that this browser has begun."""

from __future__ import annotations

from urllib.parse import parse_qs, quote, urlencode, urlsplit

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from bithaul.coordinator.api.cookies import Cookies
from bithaul.coordinator.api.forms import read_form, read_query
from bithaul.coordinator.api.problems import headers_of
from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.identity.authorize import AUTHORIZE_PATH
from bithaul.coordinator.identity.provider import Identity
from bithaul.coordinator.identity.signin import PasswordsOff, WrongPassword, sign_in
from bithaul.coordinator.identity.throttle import TooManyAttempts
from bithaul.coordinator.site.pages import Pages, go, safe_next
from bithaul.coordinator.site.visits import ADMIN_SIGN_IN, Visits

ENDED = "You had been signed out; nothing was changed."


def sign_in_pages(
    router: APIRouter, c: Coordinator, identity: Identity, cookies: Cookies, pages: Pages, visits: Visits
) -> None:
    sessions = identity.sessions

    async def form(
        request: Request,
        next_page: str,
        *,
        status: int = 200,
        problem: str = "",
        note: str = "",
        name: str = "",
        fresh: bool = False,
    ) -> Response:
        """The page; it begins a sign-in where the browser has none."""
        begun = visits.sign_in_cookie(request)
        new = None
        if fresh or not await run_in_threadpool(sessions.is_sign_in, begun):
            new = await visits.begin_sign_in(request)
        token = visits.csrf(request) if new is None or visits.cookie(request) else sessions.csrf(new)
        origin = await run_in_threadpool(_client_origin, identity, next_page)
        page = pages.show(
            "signin.html",
            status=status,
            form_action=origin,
            problem=problem,
            note=note,
            name=name,
            csrf_token=token,
            next=next_page,
            provider="" if identity.foreign is None else identity.foreign.issuer,
            by_provider=f"/admin/signin?{urlencode({'by': 'provider', 'next': next_page})}",
        )
        if new is not None:
            cookies.put(page, cookies.sign_in, new)
        return page

    @router.get("/signin")
    async def ask(request: Request) -> Response:
        fields = read_query(request)
        next_page = safe_next(fields.get("next"))
        note = ENDED if fields.get("ended") else ""
        if not await run_in_threadpool(lambda: identity.passwords_count):
            begins = urlsplit(next_page).path == ADMIN_SIGN_IN
            provider = next_page if begins else f"{ADMIN_SIGN_IN}?next={quote(next_page, safe='')}"
            if note:
                return pages.message("Signed out", note, link=provider, link_text="Sign in again")
            return go(provider)
        return await form(request, next_page, note=note)

    @router.post("/signin")
    async def answer(request: Request) -> Response:
        if identity.foreign is not None and not await run_in_threadpool(lambda: identity.passwords_count):
            raise PasswordsOff(identity.foreign.issuer)
        fields = await read_form(request)
        with identity.password_threads.place():
            return await prove(request, fields)

    async def prove(request: Request, fields: dict[str, str]) -> Response:
        next_page = safe_next(fields.get("next"))
        begun = visits.sign_in_cookie(request)
        typed = fields.get("name", "").strip()[:64]

        def attempt() -> str | None:
            """The session's cookie; None when this browser has begun no sign-in. All in one thread's turn."""
            if not sessions.is_sign_in(begun):
                return None
            return sign_in(
                c,
                sessions,
                identity.sign_in_throttle,
                name=fields.get("name", "").strip().lower(),
                password=fields.get("password", ""),
                replaces=visits.cookie(request),
                visitor=visits.visitor(request),
            )

        try:
            cookie = await identity.password_threads.run(attempt)
        except (WrongPassword, TooManyAttempts) as error:
            page = await form(request, next_page, status=error.http_status, problem=error.message, name=typed)
            if not isinstance(error, WrongPassword):  # its challenge is for programs
                page.headers.update(headers_of(error))
            return page
        if cookie is None:
            text = "This page was open for too long, or your browser keeps no cookies. Sign in again."
            return await form(request, next_page, status=403, problem=text, name=typed)
        response = go(next_page)
        cookies.put(response, cookies.session, cookie)
        return response


def _client_origin(identity: Identity, next_page: str) -> str:
    """Of the client that the visitor goes on to, if its address is a registered one: for form-action."""
    parts = urlsplit(next_page)
    if parts.path != AUTHORIZE_PATH:
        return ""
    fields = {name: values[0] for name, values in parse_qs(parts.query).items()}
    return identity.client_origin(fields)

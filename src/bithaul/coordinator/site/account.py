"""A person's own pages: sessions, sign out here and everywhere, change the password."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from bithaul.coordinator.api.cookies import Cookies
from bithaul.coordinator.api.forms import read_form, read_query
from bithaul.coordinator.identity.provider import Identity
from bithaul.coordinator.identity.sessions import Session
from bithaul.coordinator.identity.signin import WrongPassword, change_password
from bithaul.coordinator.identity.throttle import TooManyAttempts
from bithaul.coordinator.queries.actions import newest_action
from bithaul.coordinator.queries.sessions import sessions_view
from bithaul.coordinator.site.export import export
from bithaul.coordinator.site.frame import Frame
from bithaul.coordinator.site.pages import HOME, go, safe_next
from bithaul.errors import Forbidden, InvalidInput


def account_pages(router: APIRouter, frame: Frame, identity: Identity, cookies: Cookies) -> None:
    c, pages, visits = frame.c, frame.pages, frame.visits
    sessions = identity.sessions

    @router.get(HOME)
    async def account(request: Request) -> Response:
        here = await visits.signed_in(request)

        def build() -> Response:
            values = {"name": here.name, "sessions": sessions_view(sessions, here)}
            return frame.own(request, here, "account.html", values)

        return await run_in_threadpool(build)

    @router.get(f"{HOME}/sessions.{{kind}}")
    async def sessions_file(request: Request, kind: str) -> Response:
        here = await visits.signed_in(request)
        return await run_in_threadpool(
            lambda: export([sessions_view(sessions, here)], name="sessions", kind=kind)
        )

    @router.post("/account/sessions/{sid}/end")
    async def end(request: Request, sid: str) -> Response:
        here = await visits.signed_in(request)
        await run_in_threadpool(sessions.end, sid, actor=here.name, person_id=here.person_id)
        return await home(here)

    async def home(session: Session) -> Response:
        """The page that shows what was just done."""
        return go(f"{HOME}?did={await run_in_threadpool(newest_action, c, session.name)}")

    @router.post("/account/sign-out")
    async def sign_out(request: Request) -> Response:
        here = await visits.session(request)
        if here is not None:
            await run_in_threadpool(sessions.end, here.sid, actor=here.name)
        return _signed_out(cookies)

    @router.post("/account/sign-out-everywhere")
    async def sign_out_everywhere(request: Request) -> Response:
        here = await visits.session(request)
        if here is not None:
            await run_in_threadpool(sessions.end_all, here.person_id, actor=here.name)
        return _signed_out(cookies)

    def form(
        request: Request, session: Session, next_page: str, *, status: int = 200, problem: str = ""
    ) -> Response:
        return pages.show(
            "password.html",
            status=status,
            name=session.name,
            forced=session.must_change,
            problem=problem,
            next=next_page,
            csrf_token=visits.csrf(request),
        )

    @router.get("/account/password")
    async def ask(request: Request) -> Response:
        session = await visits.signed_in(request)
        return form(request, session, safe_next(read_query(request).get("next")))

    @router.post("/account/password")
    async def change(request: Request) -> Response:
        session = await visits.signed_in(request)
        fields = await read_form(request)
        next_page = safe_next(fields.get("next"))
        if fields.get("new") != fields.get("again"):
            return form(
                request, session, next_page, status=422, problem="The new passwords are not the same."
            )
        attempt = partial(
            change_password,
            c,
            sessions,
            identity.password_throttle,
            session=session,
            current=fields.get("current", ""),
            new=fields.get("new", ""),
            visitor=visits.visitor(request),
        )
        try:
            with identity.password_threads.place():
                cookie = await identity.password_threads.run(attempt)
        except (WrongPassword, TooManyAttempts, InvalidInput, Forbidden) as error:
            return form(request, session, next_page, status=error.http_status, problem=error.message)
        response = await home(session) if next_page == HOME else go(next_page)
        cookies.put(response, cookies.session, cookie)
        return response


def _signed_out(cookies: Cookies) -> Response:
    response = go("/admin/signed-out")
    cookies.drop(response, cookies.session)
    cookies.drop(response, cookies.sign_in)
    return response

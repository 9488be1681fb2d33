"""The two addresses of the provider that a browser is sent to: authorize, and the end of a session."""

from __future__ import annotations

from urllib.parse import quote

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from bithaul.coordinator.api.cookies import Cookies
from bithaul.coordinator.api.csrf import FIELD
from bithaul.coordinator.api.forms import read_form, read_query
from bithaul.coordinator.api.problems import BadRequest
from bithaul.coordinator.identity.authorize import AUTHORIZE_PATH, Redirect, Refused, origin_of
from bithaul.coordinator.identity.provider import END_SESSION_PATH, Identity
from bithaul.coordinator.site.pages import Pages, go
from bithaul.coordinator.site.visits import Visits

_LOGOUT_FIELDS = ("id_token_hint", "client_id", "post_logout_redirect_uri", "state")


def openid_pages(
    router: APIRouter, identity: Identity, cookies: Cookies, pages: Pages, visits: Visits
) -> None:
    async def authorize(request: Request, fields: dict[str, str]) -> Response:
        session = await visits.session(request)
        decided = await run_in_threadpool(identity.authorize, fields, session)
        if isinstance(decided, Refused):
            raise BadRequest(decided.message, code="invalid_request")
        if isinstance(decided, Redirect):
            return RedirectResponse(decided.location, status_code=303)
        page = "/account/password" if decided.must_change else "/signin"
        return go(f"{page}?next={quote(decided.resume, safe='')}")

    @router.get(AUTHORIZE_PATH)
    async def authorize_by_query(request: Request) -> Response:
        return await authorize(request, read_query(request))

    @router.post(AUTHORIZE_PATH)
    async def authorize_by_form(request: Request) -> Response:
        return await authorize(request, await read_form(request))

    async def end_session(request: Request, fields: dict[str, str], *, asked: bool) -> Response:
        session = await visits.session(request)
        plan = await run_in_threadpool(identity.plan_logout, fields, session)
        if plan.problem is not None:
            raise BadRequest(plan.problem, code="invalid_request")
        if session is not None and not (plan.confirmed or asked):
            shown = {name: fields[name] for name in _LOGOUT_FIELDS if name in fields}
            leads_to = "" if plan.location is None else origin_of(plan.location)
            csrf_token = visits.csrf(request)
            return pages.show("signout.html", form_action=leads_to, fields=shown, csrf_token=csrf_token)
        if session is not None:
            await run_in_threadpool(identity.sessions.end, session.sid, actor=session.name)
        response = RedirectResponse(plan.location or "/admin/signed-out", status_code=303)
        cookies.drop(response, cookies.session)
        return response

    @router.get(END_SESSION_PATH)
    async def end_session_by_query(request: Request) -> Response:
        return await end_session(request, read_query(request), asked=False)

    @router.post(END_SESSION_PATH)
    async def end_session_by_form(request: Request) -> Response:
        """Our own page's form carries the token of the session; another site's form is asked like a GET."""
        fields = await read_form(request)
        return await end_session(request, fields, asked=FIELD in fields)

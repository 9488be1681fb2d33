"""The admin site as a relying party: it signs people in by authorization code with PKCE like any application.

State, nonce and verifier are derived from the sign-in that the browser has begun, so nothing of them rests
anywhere. The call to the embedded token endpoint stays in this process: signing in works before DNS, TLS or a
tunnel does.
"""

from __future__ import annotations

import hmac
from urllib.parse import quote, unquote, urlencode

import httpx2
from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from bithaul.coordinator.api.cookies import Cookies
from bithaul.coordinator.api.forms import read_query
from bithaul.coordinator.api.problems import BadRequest
from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.identity.apps import CALLBACK_PATH, SIGNED_OUT_PATH
from bithaul.coordinator.identity.authorize import AUTHORIZE_PATH
from bithaul.coordinator.identity.clients import ADMIN_SITE, APP_SCOPE
from bithaul.coordinator.identity.foreign import BadAnswer, ForeignProvider
from bithaul.coordinator.identity.pkce import challenge_of
from bithaul.coordinator.identity.provider import TOKEN_PATH, Identity
from bithaul.coordinator.identity.signin import Visitor, refused_foreign, sign_in_foreign
from bithaul.coordinator.identity.throttle import TooManyAttempts
from bithaul.coordinator.site.pages import Pages, go, safe_next
from bithaul.coordinator.site.visits import Visits
from bithaul.errors import Forbidden

ADMIN_HOME = "/admin"


def admin_pages(
    router: APIRouter, c: Coordinator, identity: Identity, cookies: Cookies, pages: Pages, visits: Visits
) -> None:
    base = c.settings.base_url
    callback = base + CALLBACK_PATH
    sessions = identity.sessions

    @router.get("/admin/signin")
    async def begin(request: Request) -> Response:
        """Off to the provider, with a sign-in that only this browser has begun."""
        fields = read_query(request)
        next_page = safe_next(fields.get("next") or ADMIN_HOME)
        own = await run_in_threadpool(lambda: identity.passwords_count) and fields.get("by") != "provider"
        cookie = await visits.begin_sign_in(request)
        if identity.foreign is not None and not own:
            away = await identity.foreign.threads.run(
                identity.foreign.address,
                callback=callback,
                state=_state(identity, cookie, next_page, identity.foreign.issuer),
                nonce=sessions.derive(cookie, "nonce"),
                challenge=challenge_of(sessions.derive(cookie, "verifier")),
            )
            response = go(away)
            cookies.put(response, cookies.sign_in, cookie)
            return response
        parameters = {
            "response_type": "code",
            "client_id": ADMIN_SITE,
            "redirect_uri": callback,
            "scope": APP_SCOPE,
            "state": _state(identity, cookie, next_page, base),
            "nonce": sessions.derive(cookie, "nonce"),
            "code_challenge": challenge_of(sessions.derive(cookie, "verifier")),
            "code_challenge_method": "S256",
        }
        response = go(f"{AUTHORIZE_PATH}?{urlencode(parameters)}")
        cookies.put(response, cookies.sign_in, cookie)
        return response

    @router.get(CALLBACK_PATH)
    async def finish(request: Request) -> Response:
        fields = read_query(request)
        cookie = visits.sign_in_cookie(request)
        next_page = safe_next(unquote(fields.get("state", "").partition(".")[2]))
        if cookie is None or not await run_in_threadpool(sessions.is_sign_in, cookie):
            raise _failed("Signing in took too long")
        asked = await run_in_threadpool(who_was_asked, cookie, next_page, fields.get("state", ""))
        if asked is None:
            raise _failed("The answer belongs to another sign-in")
        foreign = identity.foreign if asked != base else None
        if foreign is None:
            from_here = fields.get("iss") == base
        else:
            from_here = await foreign.threads.run(foreign.came_from_here, fields.get("iss"))
        if not from_here:
            raise _failed("The answer is from another provider")
        if "error" in fields or "code" not in fields:
            raise _failed("The provider has refused")
        if not await run_in_threadpool(sessions.end_sign_in, cookie):
            raise _failed("This sign-in was finished already")
        if foreign is not None:
            known = await foreign.threads.run(
                by_provider,
                foreign,
                fields["code"],
                cookie=cookie,
                replaces=visits.cookie(request),
                visitor=visits.visitor(request),
            )
            return finished(next_page, known)
        id_token, access_token = await _redeem(
            request, fields["code"], callback, verifier=sessions.derive(cookie, "verifier")
        )
        here = await visits.session(request)
        renewed = await run_in_threadpool(
            identity.accept_admin,
            id_token,
            access_token,
            nonce=sessions.derive(cookie, "nonce"),
            sid=None if here is None else here.sid,
        )
        return finished(next_page, renewed)

    def who_was_asked(cookie: str, next_page: str, state: str) -> str | None:
        """The provider that this sign-in was begun with; None when the state is not of it."""
        issuers = [] if identity.foreign is None else [identity.foreign.issuer]
        issuers += [base] if identity.passwords_count else []
        for issuer in issuers:
            expected = _state(identity, cookie, next_page, issuer)
            if hmac.compare_digest(expected.encode(), state.encode()):
                return issuer
        return None

    def by_provider(
        foreign: ForeignProvider, code: str, *, cookie: str, replaces: str | None, visitor: Visitor
    ) -> str:
        """The cookie of the session of whom a foreign provider has sent. Raises `TooManyAttempts`: each
        answer makes us ask the provider and is a row when it is refused, and anybody may bring one."""
        throttle = identity.sign_in_throttle
        wait = throttle.blocked(foreign.issuer, visitor.address)
        if wait is not None:
            raise TooManyAttempts(wait)
        try:
            who = foreign.redeem(
                code,
                callback=callback,
                verifier=sessions.derive(cookie, "verifier"),
                nonce=sessions.derive(cookie, "nonce"),
            )
            return sign_in_foreign(c, sessions, who, replaces=replaces, visitor=visitor)
        except (BadAnswer, Forbidden) as error:
            refused_foreign(c, error.reason if isinstance(error, BadAnswer) else error.error_code, visitor)
            throttle.failed(foreign.issuer, visitor.address)
            raise

    def finished(next_page: str, session: str) -> Response:
        response = go(next_page)
        cookies.put(response, cookies.session, session)
        cookies.drop(response, cookies.sign_in)
        return response

    @router.get(SIGNED_OUT_PATH)
    async def signed_out() -> Response:
        return pages.message("Signed out", "You are signed out.", link="/admin", link_text="Sign in again")


async def _redeem(request: Request, code: str, callback: str, *, verifier: str) -> tuple[str, str]:
    """ID token and access token for a code, from the token endpoint of this very process."""
    transport = httpx2.ASGITransport(app=request.app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://embedded") as client:
        answer = await client.post(
            TOKEN_PATH,
            data={
                "grant_type": "authorization_code",
                "client_id": ADMIN_SITE,
                "code": code,
                "redirect_uri": callback,
                "code_verifier": verifier,
            },
        )
    if answer.status_code != 200:
        raise _failed("The provider has refused the code")
    body = answer.json()
    return body["id_token"], body["access_token"]


def _state(identity: Identity, cookie: str, next_page: str, issuer: str) -> str:
    """Bound to the browser, to the page to go on to, and to the provider that is asked."""
    return f"{identity.sessions.derive(cookie, f'state {issuer} {next_page}')}.{quote(next_page, safe='')}"


def _failed(what: str) -> BadRequest:
    return BadRequest(f"{what}; open {ADMIN_HOME} and sign in again.", code="sign_in_failed")

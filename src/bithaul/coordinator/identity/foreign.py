"""Signing people in through a foreign OpenID provider: discovery, code with PKCE, every check of its answer.

Nothing of a token decides how it is checked: issuer, algorithms, audience and who is an admin are settings or
constants of ours (OpenID Connect Core 3.1.3.7, RFC 9207, RFC 9700). Decided anew at each sign-in; nothing of
the provider is stored. Calls are synchronous, and only for `ProviderThreads`: a provider that hangs holds
those, for seconds, and no thread of anybody else.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import ssl
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, ParamSpec, TypeVar
from urllib.parse import urlencode

import anyio.to_thread
import httpx2
from anyio import CapacityLimiter
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, GuestProtocol, KeySet, RSAKey

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.identity.keys import SKEW_SECONDS
from bithaul.coordinator.identity.tokens import at_hash
from bithaul.coordinator.identity.transport import is_safe_url
from bithaul.errors import Forbidden, InvalidConfig, Unauthorized, Unavailable

ALGORITHMS: Final = ("RS256", "ES256", "PS256")
LARGEST_ANSWER: Final = 256 * 1024
LONGEST_TOKEN: Final = 16 * 1024
MAX_AGE: Final = 600  # seconds since the person has proven to be there; the provider asks again when older
KEEP_SECONDS: Final = 300.0  # discovery and keys
ASK_AGAIN_SECONDS: Final = 10.0  # an unknown key makes us fetch them at most so often
DEADLINE_SECONDS: Final = 5.0  # for all that one question takes, from the name's look-up to the last byte
AWAY_SECONDS: Final = 10.0  # so long nobody asks again a provider that was away
THREADS: Final = 4
QUEUE: Final = 16  # people who ask or wait to ask
SCOPE: Final = "openid email"
_DISCOVERY: Final = "/.well-known/openid-configuration"
_HEADERS: Final = {"Accept": "application/json", "Accept-Encoding": "identity"}

Given = ParamSpec("Given")
Result = TypeVar("Result")


class BadAnswer(Unauthorized):
    """What the provider sent does not prove who came. One sentence for every reason; the audit log has it."""

    def __init__(self, reason: str) -> None:
        super().__init__("The sign-in provider's answer is not valid; open /admin and sign in again.")
        self.reason = reason


@dataclass(frozen=True)
class Recognised:
    """Who came: the name that the settings give this account."""

    name: str
    subject: str
    auth_time: float


@dataclass(frozen=True)
class _Fetched:
    document: dict[str, Any]
    keys: KeySet
    time: float


class ProviderThreads:
    """The threads that may wait for the provider: few, with a short queue. One per application."""

    def __init__(self) -> None:
        self._limiter = CapacityLimiter(THREADS)
        self._waiting = 0

    async def run(self, call: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs) -> Result:
        """What `call` returns or raises. Raises `Unavailable` at once when the queue is full."""
        if self._waiting >= QUEUE:
            raise Unavailable("Too many people sign in at this moment; try again.", code="sign_in_busy")
        self._waiting += 1
        try:
            return await anyio.to_thread.run_sync(lambda: call(*args, **kwargs), limiter=self._limiter)
        finally:
            self._waiting -= 1


class ForeignProvider:
    def __init__(self, c: Coordinator) -> None:
        self._c = c
        self._settings = c.settings
        self.threads = ProviderThreads()
        self._turn = threading.Lock()  # of the three below; nobody asks the provider with it
        self._fetched: _Fetched | None = None
        self._flight: Future[_Fetched] | None = None  # the one question under way
        self._failed: tuple[float, str] | None = None  # when, and what to say
        self._authorities = _authorities(c)

    @property
    def issuer(self) -> str:
        return self._settings.oidc_issuer

    def address(self, *, callback: str, state: str, nonce: str, challenge: str) -> str:
        """Where the browser goes to sign in. Raises `Unavailable`."""
        parameters = {
            "response_type": "code",
            "client_id": self._settings.oidc_client_id,
            "redirect_uri": callback,
            "scope": SCOPE,
            "state": state,
            "nonce": nonce,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
            "max_age": str(MAX_AGE),
        }
        endpoint = str(self._known().document["authorization_endpoint"])
        return f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(parameters)}"

    def came_from_here(self, iss: str | None) -> bool:
        """RFC 9207: the `iss` of the answer, which must be there when the provider says that it sends it."""
        if iss is None:
            announced = self._known().document.get("authorization_response_iss_parameter_supported")
            return announced is not True
        return iss == self.issuer

    def redeem(self, code: str, *, callback: str, verifier: str, nonce: str) -> Recognised:
        """Who a code stands for. Raises `BadAnswer`, `Forbidden` (not an admin), `Unavailable`."""
        answer = self._tokens(code, callback=callback, verifier=verifier)
        token, access = answer.get("id_token"), answer.get("access_token")
        if not isinstance(token, str) or len(token) > LONGEST_TOKEN:
            raise BadAnswer("no ID token")
        claims = self._claims(token)
        self._check(claims, nonce=nonce, access=access if isinstance(access, str) else None)
        name = self._name_of(claims)
        if name is None:
            raise Forbidden(
                "This account may not operate the coordinator; its owner names who may in oidc_admins.",
                code="not_an_admin",
            )
        return Recognised(name=name, subject=str(claims["sub"]), auth_time=float(claims["auth_time"]))

    def _check(self, claims: dict[str, Any], *, nonce: str, access: str | None) -> None:
        now = self._c.clock.now()
        client = self._settings.oidc_client_id
        audience = claims.get("aud")
        audiences = audience if isinstance(audience, list) else [audience]
        authorised = claims.get("azp")
        wrong = {
            "iss": claims.get("iss") != self.issuer,
            "aud": client not in audiences,
            "azp": authorised != client if authorised is not None else len(audiences) > 1,
            "exp": not (_is_time(claims.get("exp")) and now < claims["exp"] + SKEW_SECONDS),
            "iat": not (_is_time(claims.get("iat")) and claims["iat"] <= now + SKEW_SECONDS),
            "nbf": "nbf" in claims and not (_is_time(claims["nbf"]) and claims["nbf"] <= now + SKEW_SECONDS),
            "nonce": not _is_same(claims.get("nonce"), nonce),
            "sub": not (isinstance(claims.get("sub"), str) and 0 < len(claims["sub"]) <= 255),
            "at_hash": "at_hash" in claims
            and (access is None or not _is_same(claims["at_hash"], at_hash(access))),
            "auth_time": not (
                _is_time(claims.get("auth_time"))
                and now - MAX_AGE - SKEW_SECONDS <= claims["auth_time"] <= now + SKEW_SECONDS
            ),
        }
        for claim, is_wrong in wrong.items():
            if is_wrong:
                raise BadAnswer(claim)

    def _name_of(self, claims: dict[str, Any]) -> str | None:
        """An exact subject, or an address that the provider says it has verified."""
        known = {f"sub:{claims['sub']}"}
        email = claims.get("email")
        if claims.get("email_verified") is True and isinstance(email, str):
            known.add(f"email:{email}")
        return next((name for name, account in self._settings.oidc_admins.items() if account in known), None)

    def _claims(self, token: str) -> dict[str, Any]:
        """The claims of a token with a good signature; keys are fetched again for one we do not know."""
        for again in (False, True):
            keys = self._known(again=again).keys
            try:
                decoded = jwt.decode(token, partial(_key, keys), algorithms=[*ALGORITHMS])
            except _UnknownKey:
                continue
            except (JoseError, ValueError, TypeError, AttributeError, KeyError) as error:
                raise BadAnswer(f"signature: {type(error).__name__}") from error
            if not isinstance(decoded.claims, dict):
                raise BadAnswer("claims")
            return decoded.claims
        raise BadAnswer("unknown key")

    def _tokens(self, code: str, *, callback: str, verifier: str) -> dict[str, Any]:
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": callback,
            "code_verifier": verifier,
            "client_id": self._settings.oidc_client_id,
        }
        secret = self._settings.oidc_client_secret
        auth = (self._settings.oidc_client_id, secret) if secret else None
        if auth is not None:
            del form["client_id"]
        endpoint = str(self._known().document["token_endpoint"])
        until = time.monotonic() + DEADLINE_SECONDS
        return self._fetch("POST", endpoint, until=until, data=form, auth=auth)

    def _known(self, *, again: bool = False) -> _Fetched:
        """Discovery document and keys. `again`: newer ones, unless they were fetched a moment ago.

        One caller asks and the others wait for what he gets, at most `DEADLINE_SECONDS`.
        """
        with self._turn:
            now = self._c.clock.monotonic()
            fetched, failed = self._fetched, self._failed
            if fetched is not None and now - fetched.time < (ASK_AGAIN_SECONDS if again else KEEP_SECONDS):
                return fetched
            if failed is not None and now - failed[0] < AWAY_SECONDS:
                raise Unavailable(failed[1], code="provider_away")
            flight, mine = self._flight, self._flight is None
            if flight is None:
                flight = self._flight = Future()
        if mine:
            self._ask(flight)
        return flight.result()

    def _ask(self, flight: Future[_Fetched]) -> None:
        """Ends `flight`, with or without an answer."""
        fetched, failed = None, None
        try:
            fetched = self._discover()
        except Unavailable as error:
            failed = error
        finally:
            with self._turn:
                self._flight = None
                self._fetched = fetched or self._fetched
                self._failed = None if failed is None else (self._c.clock.monotonic(), failed.message)
            if fetched is not None:
                flight.set_result(fetched)
            else:
                flight.set_exception(failed or self._away("could not be asked"))

    def _discover(self) -> _Fetched:
        until, now = time.monotonic() + DEADLINE_SECONDS, self._c.clock.monotonic()
        document = self._fetch("GET", self.issuer.rstrip("/") + _DISCOVERY, until=until)
        if document.get("issuer") != self.issuer:
            raise self._away("calls itself by another name")
        for name in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
            if not is_safe_url(document.get(name)):
                raise self._away(f"has no safe {name}")
        jwks = self._fetch("GET", document["jwks_uri"], until=until)
        try:
            keys = KeySet([_public(key) for key in jwks["keys"] if _is_for_signatures(key)])
        except (JoseError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise self._away("shows keys that cannot be read") from error
        return _Fetched(document, keys, now)

    def _fetch(self, method: str, url: str, *, until: float, **options: Any) -> dict[str, Any]:
        """A JSON object. No redirect is followed, nothing is unpacked, and no answer larger than
        `LARGEST_ANSWER` is kept.

        On an event loop of its own, which can end any step at `until`: timeouts count each byte anew.
        """
        try:
            status, body = _run(self._answer(method, url, until=until, **options))
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise self._away("does not answer") from error
        except TimeoutError as error:
            raise self._away("does not answer in time") from error
        if method == "POST" and 400 <= status < 500:
            raise BadAnswer(f"token endpoint: {status}")
        if status != 200:
            raise self._away(f"answers {status}")
        try:
            found = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise self._away("does not answer in JSON") from error
        if not isinstance(found, dict):
            raise self._away("does not answer with an object")
        return found

    async def _answer(self, method: str, url: str, *, until: float, **options: Any) -> tuple[int, bytes]:
        async with (
            asyncio.timeout(until - time.monotonic()),
            httpx2.AsyncClient(
                timeout=DEADLINE_SECONDS, follow_redirects=False, trust_env=False, verify=self._authorities
            ) as http,
            http.stream(method, url, headers=_HEADERS, **options) as answer,
        ):
            body = bytearray()
            async for piece in answer.aiter_raw():
                body += piece
                if len(body) > LARGEST_ANSWER:
                    raise self._away("answers too much")
            return answer.status_code, bytes(body)

    def _away(self, what: str) -> Unavailable:
        message = f"The sign-in provider {self.issuer} {what}; who is signed in stays so. Try again later."
        return Unavailable(message, code="provider_away")


def _authorities(c: Coordinator) -> ssl.SSLContext | bool:
    """Whose certificates count: those of `oidc_ca_file` and no others, or the usual ones."""
    if not c.settings.oidc_ca_file:
        return True
    file = c.settings.directory / c.settings.oidc_ca_file
    try:
        return ssl.create_default_context(cafile=file)
    except OSError as error:  # not there, or no certificates
        raise InvalidConfig(f"oidc_ca_file: {file} holds no certificates in PEM ({error}).") from error


def _run(work: Coroutine[None, None, Result]) -> Result:
    """What `work` returns or raises, like `asyncio.run`, which also waits for threads.

    The system cannot be told to end the look-up of a name: its thread is left to itself.
    """
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(work)
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


class _UnknownKey(Exception):  # a reason to fetch the keys again
    pass


def _key(keys: KeySet, signed: GuestProtocol) -> RSAKey | ECKey:
    """The one key of this id; without an id the only key there is. What else a header says is not read."""
    kid = signed.headers().get("kid")
    fitting = [key for key in keys.keys if kid is None or key.as_dict().get("kid") == kid]
    if len(fitting) != 1 or not isinstance(fitting[0], RSAKey | ECKey):
        raise _UnknownKey
    return fitting[0]


def _public(key: dict[str, Any]) -> RSAKey | ECKey:
    return RSAKey.import_key(key) if key["kty"] == "RSA" else ECKey.import_key(key)


def _is_for_signatures(key: dict[str, Any]) -> bool:
    return key.get("kty") in ("RSA", "EC") and key.get("use", "sig") == "sig"


def _is_same(given: object, expected: str) -> bool:
    return isinstance(given, str) and hmac.compare_digest(given.encode(), expected.encode())


def _is_time(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**40

"""SEC-19 to SEC-27: the code flow and OpenID Connect, seen from an application and from who attacks it."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from sqlalchemy import update

from bithaul.coordinator.identity import codes
from bithaul.coordinator.identity.apps import register_app
from bithaul.coordinator.identity.clients import create_client
from bithaul.coordinator.identity.tables import clients
from bithaul.errors import InvalidInput
from bithaul.exchange.messages import ADMIN_SCOPE

CALLBACK = "https://app.example/cb"
AFTER = "https://app.example/bye"
VERIFIER = "v" * 50


def challenge(verifier=VERIFIER):
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()


def claims(token):
    body = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))


class App:
    """An application with a secret, and one person's browser that is signed in."""

    def __init__(self, site):
        site.person()
        self.site = site
        self.secret = register_app(site.c, "app", redirect_uris=[CALLBACK], logout_uris=[AFTER])
        self.browser = site.browser()
        assert self.browser.sign_in().status_code == 303

    def url(self, **changes):
        fields = {
            "response_type": "code",
            "client_id": "app",
            "redirect_uri": CALLBACK,
            "scope": "openid profile",
            "state": "st&te ü",
            "nonce": "n-1",
            "code_challenge": challenge(),
            "code_challenge_method": "S256",
            **changes,
        }
        return "/connect/authorize?" + urlencode({k: v for k, v in fields.items() if v is not None})

    def answer(self, browser=None, **changes):
        """The parameters the application is sent."""
        response = (browser or self.browser).get(self.url(**changes))
        assert response.status_code == 303, response.text
        location = response.headers["location"]
        assert location.startswith(CALLBACK + "?"), location
        return {name: values[0] for name, values in parse_qs(urlsplit(location).query).items()}

    def redeem(self, code, *, auth=True, **changes):
        fields = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": CALLBACK,
            "code_verifier": VERIFIER,
            **changes,
        }
        fields = {name: value for name, value in fields.items() if value is not None}
        return self.site.ask(fields, auth=("app", self.secret) if auth else None)

    def tokens(self, **changes):
        response = self.redeem(self.answer(**changes)["code"])
        assert response.status_code == 200, response.text
        return response.json()

    def userinfo(self, token):
        return self.site.http.get("/connect/userinfo", headers={"Authorization": f"Bearer {token}"})


@pytest.fixture
def app(site):
    return App(site)


def test_sec_23_the_whole_flow(app):
    """Wrong result: a state, an issuer, a nonce or a hash that is not the one that belongs there."""
    answer = app.answer()
    issuer = app.site.c.settings.base_url
    assert (answer["state"], answer["iss"]) == ("st&te ü", issuer)
    response = app.redeem(answer["code"])
    assert response.headers["cache-control"] == "no-store"
    tokens = response.json()
    assert set(tokens) == {"access_token", "id_token", "token_type", "expires_in", "scope"}
    assert tokens["expires_in"] == 900
    told = claims(tokens["id_token"])
    half = hashlib.sha256(tokens["access_token"].encode()).digest()[:16]
    assert told["at_hash"] == base64.urlsafe_b64encode(half).rstrip(b"=").decode()
    now = int(app.site.clock.time)
    assert {told[name] for name in ("iss", "aud", "nonce")} == {issuer, "app", "n-1"}
    assert (told["iat"], told["exp"], told["auth_time"]) == (now, now + 300, now)
    assert "ann" not in json.dumps(told) + json.dumps(claims(tokens["access_token"]))
    about = app.userinfo(tokens["access_token"])
    assert about.headers["cache-control"] == "no-store"
    assert about.json() == {"sub": told["sub"], "name": "ann", "preferred_username": "ann"}
    by_form = app.site.http.post("/connect/userinfo", data={"access_token": tokens["access_token"]})
    assert by_form.json() == about.json()
    alone = app.tokens(scope="openid unknown", nonce=None)
    assert alone["scope"] == "openid"
    assert "nonce" not in claims(alone["id_token"])
    assert app.userinfo(alone["access_token"]).json() == {"sub": told["sub"]}


def test_sec_14_a_token_of_the_code_flow_opens_nothing_else(app):
    tokens = app.tokens()
    for name in ("access_token", "id_token"):
        headers = {"Authorization": f"Bearer {tokens[name]}"}
        for operation in app.site.operations():
            if operation.scope is not None:
                assert app.site.call(operation, headers).status_code in (401, 403), operation
    assert app.userinfo(tokens["id_token"]).status_code == 401
    assert app.userinfo(app.site.token("w1")).status_code == 401


@pytest.mark.parametrize(
    "changes",
    [
        {"code_challenge_method": "plain"},
        {"code_challenge_method": None},
        {"code_challenge": None},
        {"code_challenge": None, "code_challenge_method": None},
        {"code_challenge": "a" * 42},
        {"code_challenge": "a" * 44},
        {"code_challenge": "a" * 43 + "\n"},
        {"code_challenge": "ä" * 43},
        {"code_challenge_method": "S256\n"},
        {"code_challenge_method": "s256"},
    ],
)
def test_sec_19_s256_is_demanded_where_the_code_is_asked_for(app, changes):
    """A5. Wrong result: a code without a challenge, that only the token endpoint would refuse."""
    answer = app.answer(**changes)
    assert answer["error"] == "invalid_request"
    assert answer["state"] == "st&te ü"
    assert "code" not in answer


@pytest.mark.parametrize("verifier", [None, "", "w" * 50, "v" * 42, "v" * 129, "v" * 50 + "\n", "é" * 50])
def test_sec_19_the_verifier_must_match(app, verifier):
    code = app.answer()["code"]
    assert app.redeem(code, code_verifier=verifier).json()["error"] == "invalid_grant"
    assert app.redeem(code).status_code == 200  # a wrong guess has not used it up


def test_sec_19_a_verifier_that_was_not_announced_is_refused(app):
    """Only a row written by hand may leave PKCE out; then a verifier is a sign of a swapped code."""
    with app.site.c.database.write() as connection:
        connection.execute(update(clients).where(clients.c.id == "app").values(require_pkce=False))
    bare = {"code_challenge": None, "code_challenge_method": None}
    assert app.redeem(app.answer(**bare)["code"]).json()["error"] == "invalid_grant"
    assert app.redeem(app.answer(**bare)["code"], code_verifier=None).status_code == 200
    assert app.answer(code_challenge=None)["error"] == "invalid_request"


def test_sec_20_redirect_addresses_match_byte_for_byte(app):
    """Wrong result: the browser is sent anywhere but to the registered address."""
    wrong = [
        "https://app.example/CB",
        "https://APP.example/cb",
        "HTTPS://app.example/cb",
        "https://app.example:443/cb",
        "https://app.example:8443/cb",
        "https://app.example/cb/",
        "https://app.example/x/..;/cb",
        "https://app.example/x/../cb",
        "https://app.example/%63b",
        "https://app.example/cb%2e",
        "https://app.example@evil.example/cb",
        "https://evil.example/cb",
        "https://app.example.evil.example/cb",
        "https://app.example/cb#x",
        "https://app.example/cb?x=1",
        "https://аpp.example/cb",
        "https://app.example\\@evil.example/cb",
        "javascript:alert(1)//https://app.example/cb",
        "http://app.example/cb",
        "//app.example/cb",
        "/cb",
        CALLBACK + "\n",
        " " + CALLBACK,
        CALLBACK + '"',
        "",
        None,
    ]
    for uri in wrong:
        for extra in ({}, {"prompt": "none"}, {"response_type": "token"}, {"scope": "x"}):
            response = app.browser.get(app.url(redirect_uri=uri, **extra))
            assert response.status_code == 400, uri
            assert "location" not in response.headers
            assert response.headers["content-type"].startswith("text/html")
            assert "evil" not in response.text
    for client_id in ("nobody", "", "w1", "bithaul-admin"):
        create = client_id == "w1" and create_client(app.site.c, "w1", scope="bithaul.worker")
        assert create is not None
        assert app.browser.get(app.url(client_id=client_id)).status_code == 400
    twice = app.url() + "&redirect_uri=https%3A%2F%2Fevil.example"
    assert app.browser.get(twice).status_code == 400


@pytest.mark.parametrize(
    "uri",
    [
        "http://app.example/cb#f",
        "https://a@app.example/cb",
        "https://*.example/cb",
        "javascript:alert(1)",
        "https://",
        "/cb",
        "https://x.example/ü",
        "https://x.example:99999/",
        "https://x.example/a b",
        "com.app:/cb",
    ],
)
def test_sec_20_such_addresses_cannot_be_registered(site, uri):
    with pytest.raises(InvalidInput):
        register_app(site.c, "app", redirect_uris=[uri])
    with pytest.raises(InvalidInput):
        register_app(site.c, "app", redirect_uris=[CALLBACK], logout_uris=[uri])


def test_sec_21_fifty_at_once_and_one_wins(app):
    """A7. Wrong result: two requests race and both get a token; a replay leaves the token alive."""
    code = app.answer()["code"]
    answers = []
    start = threading.Barrier(50)

    def redeem():
        start.wait()
        answers.append(app.redeem(code))

    threads = [threading.Thread(target=redeem) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer.status_code for answer in answers) == [200] + [400] * 49
    won = next(answer for answer in answers if answer.status_code == 200).json()
    assert app.userinfo(won["access_token"]).status_code == 401  # the forty-nine others were replays


def test_sec_21_only_one_update_wins(app):
    """A7, below the lock of SQLite's writer. Wrong result: two replicas redeem one code."""
    code = app.answer()["code"]
    with app.site.c.database.write() as connection:
        found = codes.find(connection, code, client_id="app", now=app.site.clock.time)
        assert codes.redeem(connection, found, jti="1", now=1.0)
        assert not codes.redeem(connection, found, jti="2", now=1.0)


def test_sec_21_a_replay_ends_what_the_code_gave(app):
    answer = app.answer()
    token = app.redeem(answer["code"]).json()["access_token"]
    assert app.userinfo(token).status_code == 200
    wrong = app.redeem(answer["code"], code_verifier="w" * 50)
    assert wrong.status_code == 400
    assert app.userinfo(token).status_code == 200  # who only saw the code cannot end anything
    assert app.redeem(answer["code"]).json()["error"] == "invalid_grant"
    assert app.userinfo(token).status_code == 401
    assert app.browser.get("/account").status_code == 303  # the session too


def test_sec_22_a_code_is_bound_and_short_lived(app):
    site = app.site
    other = register_app(site.c, "other", redirect_uris=[CALLBACK])
    stolen = site.ask(
        {
            "grant_type": "authorization_code",
            "code": app.answer()["code"],
            "redirect_uri": CALLBACK,
            "code_verifier": VERIFIER,
        },
        auth=("other", other),
    )
    assert stolen.json()["error"] == "invalid_grant"
    for wrong in (CALLBACK + "/", None, "https://evil.example"):
        response = app.redeem(app.answer()["code"], redirect_uri=wrong)
        assert response.json()["error"] == "invalid_grant", wrong
    code = app.answer()["code"]
    site.clock.time += 59.9
    assert app.redeem(code).status_code == 200
    code = app.answer()["code"]
    site.clock.time += 60
    assert app.redeem(code).json()["error"] == "invalid_grant"
    code = app.answer()["code"]
    app.browser.submit(app.browser.get("/account"), "/account/sign-out")
    assert app.redeem(code).json()["error"] == "invalid_grant"


def test_sec_22_nothing_else_is_taken_for_a_code(app):
    tokens = app.tokens()
    told = claims(tokens["access_token"])
    for text in (
        told["jti"],
        told["sid"],
        told["sub"],
        tokens["access_token"],
        *app.browser.cookies.values(),
    ):
        assert app.redeem(text).json()["error"] == "invalid_grant"
    for code in ("", "x", "ü", "a" * 10_000, "\0"):
        assert app.redeem(code).status_code == 400
    code = app.answer()["code"]
    for name in list(app.browser.cookies):
        thief = app.site.browser()
        thief.cookies[name] = code
        assert thief.get("/account").status_code == 303
    assert app.userinfo(code).status_code == 401


def test_sec_23_prompt_and_max_age(app):
    site = app.site
    stranger = site.browser()
    assert app.answer(stranger, prompt="none")["error"] == "login_required"
    assert "code" in app.answer(prompt="none")
    assert app.answer(prompt="none login")["error"] == "invalid_request"
    assert app.answer(prompt="dance")["error"] == "invalid_request"
    for wrong in ("-1", "x", "1.5", "²"):
        assert app.answer(max_age=wrong)["error"] == "invalid_request"
    first = claims(app.tokens()["id_token"])["auth_time"]
    site.clock.time += 100
    assert claims(app.tokens(max_age="10000")["id_token"])["auth_time"] == first
    assert app.answer(max_age="50", prompt="none")["error"] == "login_required"
    for changes in ({"prompt": "login"}, {"max_age": "50"}, {"prompt": "select_account"}):
        site.clock.time += 100
        asked = app.browser.get(app.url(**changes))
        assert asked.headers["location"].startswith("/signin?next=")
        again = app.browser.sign_in(url=app.url(**changes))
        back = app.browser.get(again.headers["location"])
        code = parse_qs(urlsplit(back.headers["location"]).query)["code"][0]
        told = claims(app.redeem(code).json()["id_token"])
        assert told["auth_time"] == int(site.clock.time)


def test_sec_23_a_hint_of_another_person_asks_again(app):
    hint = app.tokens()["id_token"]
    assert "code" in app.answer(id_token_hint=hint, prompt="none")
    app.site.person("bob")
    other = app.site.browser()
    other.sign_in("bob")
    assert app.answer(other, id_token_hint=hint, prompt="none")["error"] == "login_required"
    access = app.tokens()["access_token"]
    for bad in ("x", hint[:-2] + "AA", access):
        assert app.answer(id_token_hint=bad)["error"] == "invalid_request"


def test_sec_24_other_flows_are_absent_and_refused(app):
    document = app.site.http.get("/.well-known/openid-configuration").json()
    assert document["response_types_supported"] == ["code"]
    assert document["grant_types_supported"] == ["authorization_code", "client_credentials"]
    assert not [name for name in document if "device" in name or "registration" in name]
    for kind in ("token", "id_token", "code id_token", "code token", "none", "", "ü", 'x"\\', None):
        answer = app.answer(response_type=kind)
        assert answer["error"] in ("unsupported_response_type", "invalid_request"), kind
        assert answer["iss"] == app.site.c.settings.base_url
    for mode in ("fragment", "form_post", "x"):
        assert app.answer(response_mode=mode)["error"] == "invalid_request"
    for grant in ("password", "urn:ietf:params:oauth:grant-type:device_code", "refresh_token", "implicit"):
        posted = {"grant_type": grant, "username": "ann", "password": "correct horse battery staple"}
        response = app.site.ask(posted, auth=("app", app.secret))
        assert response.json()["error"] == "unsupported_grant_type"
    response = app.site.ask({"grant_type": "client_credentials"}, auth=("app", app.secret))
    assert response.json()["error"] == "unauthorized_client"
    worker = app.site.client("w1")
    posted = {"grant_type": "authorization_code", "code": app.answer()["code"], "redirect_uri": CALLBACK}
    response = app.site.ask(posted, auth=("w1", worker))
    assert response.json()["error"] == "unauthorized_client"
    for name in ("request", "request_uri", "registration"):
        assert app.answer(**{name: "x"})["error"] == f"{name}_not_supported"


def test_sec_24_a_public_client_proves_its_code_and_gets_nothing_by_itself(app):
    site = app.site
    assert register_app(site.c, "phone", redirect_uris=[CALLBACK], public=True) is None
    code = app.answer(client_id="phone")["code"]
    assert app.redeem(code, auth=False, client_id="phone").status_code == 200
    grant = {"grant_type": "client_credentials", "client_id": "phone"}
    assert site.ask(grant).json()["error"] == "unauthorized_client"
    assert site.ask({**grant, "client_secret": ""}).status_code == 401
    assert app.redeem(app.answer()["code"], auth=False, client_id="app").status_code == 401


def test_sec_25_the_issuer_is_the_public_url_and_what_is_announced_works(app):
    site = app.site
    for host in ("localhost", "127.0.0.1"):
        document = site.http.get(
            "/.well-known/openid-configuration", headers={"Host": f"{host}:{site.port}"}
        ).json()
        assert document["issuer"] == site.c.settings.base_url
    assert document["id_token_signing_alg_values_supported"] == ["RS256"]
    header = app.tokens()["id_token"].split(".")[0]
    assert json.loads(base64.urlsafe_b64decode(header + "=="))["alg"] == "RS256"
    posted = app.browser.ask("POST", "/connect/authorize", data={})
    assert posted.status_code == 403  # with a cookie and without its token
    bare = site.browser().ask("POST", "/connect/authorize", data=dict(parse_one(app.url())))
    assert bare.headers["location"].startswith("/signin?next=")


def parse_one(url):
    return [(name, values[0]) for name, values in parse_qs(urlsplit(url).query).items()]


def test_sec_26_signing_out_goes_to_registered_addresses_only(app):
    tokens = app.tokens()
    hint = tokens["id_token"]

    def end(**fields):
        return app.browser.get("/connect/endsession?" + urlencode(fields))

    for wrong in ("https://evil.example", AFTER + "/", AFTER + "?x=1", "javascript:alert(1)", CALLBACK):
        response = end(id_token_hint=hint, post_logout_redirect_uri=wrong)
        assert response.status_code == 400, wrong
        assert "location" not in response.headers
    for bad in ("x", hint[:-2] + "AA", tokens["access_token"]):
        response = end(id_token_hint=bad, post_logout_redirect_uri=AFTER)
        assert response.status_code == 400
    assert end(id_token_hint=hint, client_id="other").status_code == 400
    assert end(post_logout_redirect_uri=AFTER).status_code == 400
    for fields in ({}, {"state": "x"}, {"client_id": "app", "post_logout_redirect_uri": AFTER}):
        page = end(**fields)  # nothing but a link of anybody's: asks first
        assert (page.status_code, "Sign out?" in page.text) == (200, True)
    assert app.browser.get("/account").status_code == 200
    gone = end(id_token_hint=hint, post_logout_redirect_uri=AFTER, state="s 1")
    assert (gone.status_code, gone.headers["location"]) == (303, AFTER + "?state=s+1")
    assert app.browser.get("/account").status_code == 303
    assert app.userinfo(tokens["access_token"]).status_code == 401


def test_sec_26_a_hint_of_another_session_asks_first(app):
    """Wrong result: any good ID token, my own too, signs a victim out by a link."""
    app.site.person("bob")
    for name in ("ann", "bob"):  # the same person elsewhere, and another one
        browser = app.site.browser()
        assert browser.sign_in(name).status_code == 303
        hint = app.redeem(app.answer(browser)["code"]).json()["id_token"]
        fields = {"id_token_hint": hint, "post_logout_redirect_uri": AFTER}
        page = app.browser.get("/connect/endsession?" + urlencode(fields))
        assert (page.status_code, "Sign out?" in page.text) == (200, True), name
        assert app.browser.get("/account").status_code == 200
        assert browser.get("/account").status_code == 200


def test_sec_26_who_is_asked_and_says_yes_is_signed_out(app):
    fields = {"client_id": "app", "post_logout_redirect_uri": AFTER}
    page = app.browser.get("/connect/endsession?" + urlencode(fields))
    policy = page.headers["content-security-policy"]
    assert "form-action 'self' https://app.example;" in policy, "Chromium applies it to the redirect too"
    gone = app.browser.submit(page, "/connect/endsession")
    assert gone.headers["location"] == AFTER
    assert app.browser.get("/account").status_code == 303


def test_sec_27_revocation_of_ones_own(app):
    """A11. Wrong result: another client's token is revoked, or is told apart from an unknown one."""
    site = app.site
    token = app.tokens()["access_token"]
    worker, secret = site.token("w1"), site.client("w1")

    def revoke(value, auth):
        return site.http.post("/connect/revoke", data={"token": value}, auth=auth)

    answers = {
        (r.status_code, r.text) for r in (revoke(v, ("w1", secret)) for v in (token, "x", worker + "x"))
    }
    assert answers == {(200, "{}")}
    assert app.userinfo(token).status_code == 200
    assert revoke(token, ("app", "wrong")).status_code == 401
    assert revoke(token, ("app", app.secret)).status_code == 200
    assert revoke(token, ("app", app.secret)).status_code == 200
    assert app.userinfo(token).status_code == 401
    headers = {"Authorization": f"Bearer {worker}"}
    assert site.http.get("/work", headers=headers).status_code != 401
    revoke(worker, ("w1", secret))
    assert site.http.get("/work", headers=headers).status_code == 401
    assert site.http.post("/connect/revoke", auth=("w1", secret), data={"x": "1"}).status_code == 400


def test_sec_27_introspection_needs_the_role(app):
    site = app.site
    token = app.tokens()["access_token"]
    admin = site.client("operator", scope=ADMIN_SCOPE)

    def ask(value, auth):
        return site.http.post("/connect/introspect", data={"token": value}, auth=auth)

    for auth in (("app", app.secret), ("w1", site.client("w1"))):
        assert ask(token, auth).status_code == 403
    assert ask(token, ("nobody", "x")).status_code == 401
    told = ask(token, ("operator", admin))
    assert told.headers["cache-control"] == "no-store"
    assert (told.json()["active"], told.json()["client_id"]) == (True, "app")
    site.http.post("/connect/revoke", data={"token": token}, auth=("app", app.secret))
    for dead in (token, "x", "", app.tokens()["id_token"]):
        assert ask(dead, ("operator", admin)).json() == {"active": False}

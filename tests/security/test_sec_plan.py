"""The OpenID Basic OP plan, module by module: `test_oidcc_userinfo_get` is `oidcc-userinfo-get`.

Ported from what the modules of oidcc-basic-certification-test-plan ask for. The suite itself needs https and
a browser that it drives; `plan.py` writes the table of docs/openid-plan.md from these tests. All of them send
PKCE, which bithaul demands and most modules do not.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from test_sec_openid import CALLBACK, VERIFIER, App, claims

HERE = Path(__file__).parent


@pytest.fixture
def app(site):
    return App(site)


def entered(app, **changes):
    """The claims of an ID token, of a request with these parameters, and the access token."""
    tokens = app.tokens(**changes)
    return claims(tokens["id_token"]), tokens["access_token"]


def code_of(response):
    return parse_qs(urlsplit(response.headers["location"]).query)["code"][0]


def test_oidcc_server(app):
    told, access = entered(app)
    assert told["iss"] == app.site.http.get("/.well-known/openid-configuration").json()["issuer"]
    assert (told["aud"], told["nonce"]) == ("app", "n-1")
    assert told["iat"] <= app.site.clock.time < told["exp"]
    assert app.userinfo(access).json()["sub"] == told["sub"]


def test_oidcc_server_client_secret_post(app):
    fields = {"client_id": "app", "client_secret": app.secret}
    answer = app.redeem(app.answer()["code"], auth=False, **fields)
    assert answer.status_code == 200
    methods = app.site.http.get("/.well-known/openid-configuration").json()
    assert "client_secret_post" in methods["token_endpoint_auth_methods_supported"]


def test_oidcc_userinfo_get(app):
    told, access = entered(app)
    answer = app.userinfo(access)
    assert (answer.headers["content-type"], answer.json()["sub"]) == ("application/json", told["sub"])


def test_oidcc_userinfo_post_header(app):
    told, access = entered(app)
    answer = app.site.http.post("/connect/userinfo", headers={"Authorization": f"Bearer {access}"})
    assert answer.json()["sub"] == told["sub"]


def test_oidcc_userinfo_post_body(app):
    told, access = entered(app)
    assert app.site.http.post("/connect/userinfo", data={"access_token": access}).json()["sub"] == told["sub"]


def test_oidcc_ensure_request_without_nonce_succeeds_for_code_flow(app):
    told, _ = entered(app, nonce=None)
    assert "nonce" not in told


def test_oidcc_scope_profile(app):
    _, access = entered(app, scope="openid profile")
    assert app.userinfo(access).json()["preferred_username"] == "ann"
    _, access = entered(app, scope="openid")
    assert app.userinfo(access).json().keys() == {"sub"}


def test_oidcc_ensure_other_scope_order_succeeds(app):
    _, access = entered(app, scope="profile openid")
    assert app.userinfo(access).json()["preferred_username"] == "ann"


@pytest.mark.parametrize("display", ["page", "popup"])
def test_oidcc_display_page_and_popup(app, display):
    assert entered(app, display=display)[0]["sub"]


def test_oidcc_prompt_none_not_logged_in(app):
    answer = app.answer(app.site.browser(), prompt="none")
    assert (answer["error"], answer["state"]) == ("login_required", "st&te ü")


def test_oidcc_prompt_none_logged_in(app):
    first, _ = entered(app)
    again, _ = entered(app, prompt="none")
    assert (again["sub"], again["auth_time"]) == (first["sub"], first["auth_time"])


def test_oidcc_prompt_login(app):
    first, _ = entered(app)
    app.site.clock.time += 2
    answer = app.browser.sign_in(url=app.url(prompt="login"))
    code = code_of(app.browser.get(answer.headers["location"]))
    assert claims(app.redeem(code).json()["id_token"])["auth_time"] > first["auth_time"]


def test_oidcc_max_age_1(app):
    first, _ = entered(app)
    app.site.clock.time += 2
    answer = app.browser.sign_in(url=app.url(max_age="1"))
    told = claims(app.redeem(code_of(app.browser.get(answer.headers["location"]))).json()["id_token"])
    assert told["auth_time"] > first["auth_time"]


def test_oidcc_max_age_10000(app):
    first, _ = entered(app, max_age="10000")
    app.site.clock.time += 2
    again, _ = entered(app, max_age="10000")
    assert again["auth_time"] == first["auth_time"]


def test_oidcc_ensure_request_with_unknown_parameter_succeeds(app):
    assert entered(app, extra="foobar")[0]["sub"]


def test_oidcc_id_token_hint(app):
    hint = app.tokens()["id_token"]
    assert entered(app, id_token_hint=hint, prompt="none")[0]["sub"] == claims(hint)["sub"]


def test_oidcc_login_hint(app):
    assert entered(app, login_hint="ann@example.com")[0]["sub"]


def test_oidcc_ui_locales(app):
    assert entered(app, ui_locales="se")[0]["sub"]


def test_oidcc_claims_locales(app):
    assert entered(app, claims_locales="se")[0]["sub"]


def test_oidcc_ensure_request_with_acr_values_succeeds(app):
    assert entered(app, acr_values="1 2")[0]["sub"]


def test_oidcc_claims_essential(app):
    """The claim is in userinfo by its scope; the parameter is announced as not supported, and ignored."""
    _, access = entered(app, claims='{"userinfo": {"name": {"essential": true}}}')
    assert app.userinfo(access).json()["name"] == "ann"


def test_oidcc_codereuse(app):
    code = app.answer()["code"]
    assert app.redeem(code).status_code == 200
    assert (app.redeem(code).status_code, app.redeem(code).json()["error"]) == (400, "invalid_grant")


def test_oidcc_codereuse_30seconds(app):
    code = app.answer()["code"]
    access = app.redeem(code).json()["access_token"]
    app.site.clock.time += 30
    assert app.redeem(code).json()["error"] == "invalid_grant"
    assert app.userinfo(access).status_code == 401


def test_oidcc_ensure_post_request_succeeds(app):
    """As a form of another site sends it: without our cookie, so the person signs in and goes on."""
    browser = app.site.browser()
    fields = {name: values[0] for name, values in parse_qs(urlsplit(app.url()).query).items()}
    asked = browser.ask("POST", "/connect/authorize", data=fields)
    answer = browser.sign_in(url=asked.headers["location"])
    assert app.redeem(code_of(browser.get(answer.headers["location"]))).status_code == 200


def test_oidcc_ensure_request_with_valid_pkce_succeeds(app):
    assert app.redeem(app.answer()["code"], code_verifier=VERIFIER).status_code == 200


def test_oidcc_response_type_missing(app):
    assert app.answer(response_type=None)["error"] in ("invalid_request", "unsupported_response_type")


def test_oidcc_ensure_registered_redirect_uri(app):
    page = app.browser.get(app.url(redirect_uri=CALLBACK + "x"), headers={"Accept": "text/html"})
    assert (page.status_code, "location" in page.headers) == (400, False)
    assert "not registered" in page.text


def test_oidcc_ensure_request_object_with_redirect_uri(app):
    assert app.answer(request="eyJhbGciOiJub25lIn0.e30.")["error"] == "request_not_supported"


@pytest.mark.parametrize("scope", ["email", "address", "phone"])
def test_oidcc_scopes_that_are_not_offered(app, scope):
    document = app.site.http.get("/.well-known/openid-configuration").json()
    assert scope not in document["scopes_supported"]
    assert not [name for name in document["claims_supported"] if name.startswith(scope)]
    answer = app.answer(scope=f"openid {scope}")
    if "code" in answer:
        tokens = app.redeem(answer["code"]).json()
        assert scope not in tokens["scope"].split()
    else:
        assert answer["error"] == "invalid_scope"


def test_oidcc_refresh_token(app):
    document = app.site.http.get("/.well-known/openid-configuration").json()
    assert "refresh_token" not in document["grant_types_supported"]
    assert "refresh_token" not in app.tokens()


def test_oidcc_unsigned_request_object_supported_correctly_or_rejected_as_unsupported(app):
    document = app.site.http.get("/.well-known/openid-configuration").json()
    assert document["request_parameter_supported"] is False
    assert document["request_uri_parameter_supported"] is False
    assert app.answer(request="eyJhbGciOiJub25lIn0.e30.")["error"] == "request_not_supported"
    assert app.answer(request_uri="https://app.example/r")["error"] == "request_uri_not_supported"


def test_oidcc_static_clients_only(app):
    """What the plan does not run with clients that are registered by hand."""
    document = app.site.http.get("/.well-known/openid-configuration").json()
    assert "registration_endpoint" not in document
    assert document["id_token_signing_alg_values_supported"] == ["RS256"]


def test_the_table_is_fresh_and_whole():
    spec = importlib.util.spec_from_file_location("plan", HERE / "plan.py")
    plan = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plan)
    assert len(plan.MODULES) == 38
    assert plan.PAGE.read_text(encoding="utf-8") == plan.page(), "run: make security-matrix"

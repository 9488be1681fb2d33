"""Section 9 of the security page: people who sign in through a foreign OpenID provider, and one that lies."""

from __future__ import annotations

import base64
import json
import sys
import time
from pathlib import Path

import httpx2
import pytest

from bithaul.coordinator.identity.audit import read_audit
from bithaul.coordinator.identity.deploy import unsafe_settings
from bithaul.coordinator.identity.passwords import is_password
from bithaul.coordinator.identity.people import create_person, disable_person, find_by_name
from bithaul.coordinator.identity.sessions import Sessions
from bithaul.coordinator.identity.throttle import Limits
from bithaul.coordinator.identity.transport import is_safe_url
from bithaul.coordinator.settings import Settings
from bithaul.errors import InvalidConfig

sys.path.insert(0, str(Path(__file__).parent))
from foreign_provider import ADMINS, CLIENT, SECRET, WIDE, Key, b64, begin, is_in, sign_in


def test_a_person_signs_in_and_is_named(make, provider):
    site = make()
    browser = site.browser()
    done = sign_in(site, browser, "/admin/keys")
    assert (done.status_code, done.headers["location"]) == (303, "/admin/keys")
    assert "olga" in browser.get("/admin").text
    rows = [(row.actor, row.action, row.subject) for row in read_audit(site.c, limit=3)]
    assert rows[0] == ("olga", "sign-in.foreign", "olga")
    again = site.browser()
    sign_in(site, again)
    assert len(Sessions(site.c).live()) == 2
    assert provider.asked.count("/jwks") == 1


def test_a_proof_of_yesterday_is_not_a_proof(make, provider):
    """Wrong result: a provider that asks nobody again makes a session look freshly proven."""
    site = make()
    browser = site.browser()
    assert "&max_age=600" in begin(browser)
    sign_in(site, browser)
    [session] = Sessions(site.c).live()
    assert (session.auth_time, session.created_at) == (site.clock.time - 5, site.clock.time)
    provider.lie = {"claims": {"auth_time": int(site.clock.time) - 5000}}
    assert sign_in(site, site.browser()).status_code == 401


OTHER = Key("k1")
LIES = {
    "iss": {"claims": {"iss": "https://evil.example"}},
    "iss with a slash": {"claims": {"iss": None}},
    "aud": {"claims": {"aud": "another"}},
    "aud of many without azp": {"claims": {"aud": [CLIENT, "another"]}},
    "azp": {"claims": {"azp": "another"}},
    "nonce": {"claims": {"nonce": "n" * 43}},
    "no nonce": {"claims": {"nonce": None}},
    "expired": {"claims": {"exp": 1_799_999_000}},
    "no exp": {"claims": {"exp": None}},
    "exp as text": {"claims": {"exp": "9999999999"}},
    "iat of tomorrow": {"claims": {"iat": 1_800_086_400}},
    "nbf of tomorrow": {"claims": {"nbf": 1_800_086_400}},
    "at_hash": {"claims": {"at_hash": "x" * 22}},
    "no auth_time": {"claims": {"auth_time": None}},
    "no sub": {"claims": {"sub": None}},
    "sub as number": {"claims": {"sub": 248289761001}},
    "another key under this id": {"key": OTHER},
    "unknown key": {"key": Key("k9")},
    "alg none": {"token": b64(b'{"alg":"none"}') + "." + b64(b"{}") + "."},
    "alg HS256": {"header": {"alg": "HS256"}},
    "key of its own": {"key": OTHER, "header": {"jwk": OTHER.public(), "kid": "k7"}},
    "no token": {"token": "x.y"},
    "a long token": {"token": "x" * 20_000},
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_a_provider_that_lies_signs_nobody_in(make, provider, lie):
    site = make()
    browser = site.browser()
    provider.lie = lie
    refused = sign_in(site, browser)
    assert refused.status_code == 401, refused.text
    assert not is_in(browser)
    assert [row.action for row in read_audit(site.c, limit=1)] == ["sign-in.refused"]
    provider.lie = {}
    sign_in(site, browser)
    assert is_in(browser), "the lie was the only reason"


def test_sec_10_answers_that_are_made_up_are_throttled(make_site, provider):
    """Wrong results: a stranger makes us ask the provider, and writes a row, as often as he likes; he keeps
    others out.
    """
    limits = Limits(per_client_and_address=3, per_address=6, in_all=100)
    settings = {"oidc_issuer": provider.url, "oidc_client_id": CLIENT, "oidc_client_secret": SECRET}
    site = make_site(limits, **settings, oidc_admins=ADMINS, trusted_proxies=("127.0.0.1",))
    provider.now = site.clock.now

    def bring(address, code="code=x"):
        browser = site.browser(**{"X-Forwarded-For": address})
        came = httpx2.get(begin(browser), follow_redirects=False, trust_env=False)
        return browser.get(came.headers["location"].replace("code=", code)).status_code

    assert [bring("9.9.9.9") for _ in range(5)] == [401, 401, 401, 429, 429]
    assert provider.asked.count("/token") == 3
    assert len(read_audit(site.c, limit=9, action="sign-in.refused")) == 3
    assert bring("9.9.9.9", "code=") == 429
    assert bring("8.8.8.8", "code=") == 303


@pytest.mark.parametrize("iss", ["https://evil.example", None, ""])
def test_an_answer_of_another_provider_is_refused(make, provider, iss):
    """RFC 9207: the code of a mixed-up provider is not even shown to this one."""
    site = make()
    browser = site.browser()
    provider.lie = {"sent": {"iss": iss}}
    assert sign_in(site, browser).status_code == 400
    assert "/token" not in provider.asked
    assert not is_in(browser)


def test_answers_are_bound_to_the_browser_and_used_once(make, provider):
    site = make()
    browser, thief = site.browser(), site.browser()
    came = httpx2.get(begin(browser), follow_redirects=False, trust_env=False).headers["location"]
    begin(thief)
    assert thief.get(came).status_code == 400
    assert site.browser().get(came).status_code == 400
    assert browser.get(came).status_code == 303
    assert browser.get(came).status_code == 400
    provider.lie = {"sent": {"state": "x"}}
    assert sign_in(site, site.browser()).status_code == 400


def test_the_provider_s_keys_rotate(make, provider):
    """Wrong results: nobody gets in after a rotation; each unknown id makes us fetch; old keys for ever."""
    site = make()
    sign_in(site, site.browser())
    site.clock.time += 11
    old = provider.keys[0]
    provider.keys = [old, Key("k2")]
    browser = site.browser()
    sign_in(site, browser)
    assert is_in(browser)
    assert provider.asked.count("/jwks") == 2
    provider.lie = {"key": Key("k5")}
    for _ in range(5):
        sign_in(site, site.browser())
    assert provider.asked.count("/jwks") == 2, "at most once in ten seconds"
    provider.keys, provider.lie = provider.keys[1:], {"key": old}
    site.clock.time += 301
    assert sign_in(site, site.browser()).status_code == 401


def test_who_is_an_admin(make, provider):
    """Wrong results: anybody with an account there; an address that nobody has verified; whoever is first."""
    site = make({"olga": "email:olga@example.org", "pete": "sub:7"})
    assert sign_in(site, site.browser()).status_code == 303
    for claims in (
        {"email_verified": False},
        {"email_verified": "true"},
        {"email_verified": None},
        {"email": "Olga@example.org"},
        {"email": "eve@example.org"},
        {"email": ["olga@example.org"]},
        {"sub": "email:olga@example.org", "email": None},
    ):
        provider.lie = {"claims": claims}
        refused = sign_in(site, site.browser())
        assert refused.status_code == 403, claims
        assert "oidc_admins" in refused.text
    provider.lie = {"claims": {"sub": "7", "email": None}}
    browser = site.browser()
    sign_in(site, browser)
    assert "pete" in browser.get("/account").text


def test_a_generated_password_locks_nobody_out_of_the_provider_s_sign_in(make, provider):
    """Wrong results: a person who must first replace a password that the provider made useless; that
    password still opens the door when the provider is taken out of the settings.
    """
    site = make()
    generated = create_person(site.c, "olga")
    browser = site.browser()
    sign_in(site, browser)
    assert is_in(browser)
    assert [row.subject for row in read_audit(site.c, limit=9, action="person.void-password")] == ["olga"]
    with site.c.database.read() as connection:
        person, stored = find_by_name(connection, "olga")
    assert not person.must_change
    assert not is_password(stored, generated)


def test_passwords_are_off_and_a_disabled_person_stays_out(make, provider):
    site = make()
    site.person("ann")
    browser = site.browser()
    assert browser.get("/signin").headers["location"].startswith("/admin/signin?next=")
    answer = browser.ask("POST", "/signin", data={"name": "ann", "password": "correct horse battery staple"})
    assert answer.status_code == 403
    create_person(site.c, "olga")
    disable_person(site.c, "olga")
    assert sign_in(site, browser).status_code == 403
    assert not is_in(browser)


def test_a_provider_that_is_away_stops_new_sign_ins_only(make, provider):
    site = make()
    browser = site.browser()
    sign_in(site, browser)
    provider.stop()
    site.clock.time += 301
    away = site.browser().get("/admin/signin", headers={"Accept": "text/html"})
    assert away.status_code == 503
    assert "does not answer; who is signed in stays so" in away.text
    assert is_in(browser)
    provider.start()


@pytest.mark.parametrize(
    "document",
    [
        {"issuer": "https://evil.example"},
        {"token_endpoint": "http://192.168.1.7/token"},
        {"jwks_uri": "file:///etc/passwd"},
        {"jwks_uri": "https://a b/jwks"},
        {"jwks_uri": "https://\N{SNOWMAN}.example/\0"},
        {"authorization_endpoint": None},
    ],
)
def test_an_unsafe_discovery_document_is_not_used(make, provider, document):
    site = make()
    provider.lie = {"document": document}
    assert site.browser().get("/admin/signin").status_code == 503


def test_settings_that_lock_everybody_out_do_not_start(tmp_path):
    whole = {"oidc_issuer": "https://id.example", "oidc_client_id": "x", "oidc_admins": ADMINS}
    assert "hunter2" not in repr(Settings(directory=tmp_path, **{**whole, "oidc_client_secret": "hunter2"}))
    for change in (
        {"oidc_client_id": ""},
        {"oidc_admins": {}},
        {"oidc_admins": {"olga": "248289761001"}},
        {"oidc_admins": {"olga": "sub:"}},
        {"oidc_admins": {"O'lga": "sub:1"}},
        {"oidc_admins": {"system": "sub:1"}},
        {"oidc_issuer": "http://id.example"},
        {"oidc_issuer": "https://ann:pw@id.example"},
    ):
        with pytest.raises((ValueError, InvalidConfig)):
            Settings(directory=tmp_path, **{**whole, **change})


def test_sec_52_a_provider_s_secret_that_others_can_read_is_named(make):
    site = make()
    toml = site.directory / "bithaul.toml"
    toml.write_text('oidc_client_secret = "x"\n', encoding="utf-8")
    for mode, found in ((0o644, True), (0o600, False)):
        toml.chmod(mode)
        assert any("provider's secret" in finding.problem for finding in unsafe_settings(site.c)) is found


def test_where_tokens_are_fetched():
    good = ("https://id.example/t", "http://127.0.0.1:9/t", "http://localhost/t")
    bad = (
        "http://id.example",
        "ftp://id.example",
        "https://",
        "https://a@b",
        "https://x/#f",
        None,
        "https://[",
    )
    assert all(map(is_safe_url, good))
    assert not any(map(is_safe_url, bad))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # its own, of Authlib
def test_a_provider_built_by_others(make_site):
    """oidc-provider-mock: Authlib and Flask, and no line of ours. Skipped where it is not installed."""
    mock = pytest.importorskip("oidc_provider_mock", reason="needs: pip install oidc-provider-mock")
    site = make_site(WIDE)
    site.stop()
    with mock.run_server_in_thread() as server:
        issuer = f"http://localhost:{server.server_port}"
        site.options |= {"oidc_issuer": issuer, "oidc_client_id": "x", "oidc_client_secret": "y"}
        site.options |= {"oidc_admins": {"olga": "email:olga@example.org"}}
        site.start()
        site.clock.time = time.time()
        claims = {"email": "olga@example.org", "email_verified": True, "auth_time": int(time.time())}
        httpx2.put(f"{issuer}/users/olga", json=claims, trust_env=False).raise_for_status()
        browser = site.browser()
        away = begin(browser, "/admin")
        came = httpx2.post(away, data={"sub": "olga"}, follow_redirects=False, trust_env=False)
        assert browser.get(came.headers["location"]).status_code == 303
        assert is_in(browser)
        other = site.browser()
        came = httpx2.post(begin(other), data={"sub": "eve"}, follow_redirects=False, trust_env=False)
        assert other.get(came.headers["location"]).status_code in (401, 403)


def test_a_token_with_odd_json_is_no_defect(make, provider):
    site = make()
    for claims in (b"[]", b"null", b'"x"', b"{", json.dumps({"iss": ["x"]}).encode()):
        head = b64(json.dumps({"alg": "RS256", "kid": "k1"}).encode())
        text = f"{head}.{base64.urlsafe_b64encode(claims).rstrip(b'=').decode()}"
        signature = provider.keys[0].sign({"alg": "RS256"}, {}).rpartition(".")[2]
        provider.lie = {"token": f"{text}.{signature}"}
        assert sign_in(site, site.browser()).status_code == 401

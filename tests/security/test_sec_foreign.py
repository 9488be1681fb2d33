"""Section 9 of the security page: people who sign in through a foreign OpenID provider, and one that lies."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import ssl
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import httpx2
import pytest

from bithaul.cli.main import run
from bithaul.coordinator.context import open_coordinator
from bithaul.coordinator.identity import foreign, passwords
from bithaul.coordinator.identity.audit import read_audit
from bithaul.coordinator.identity.deploy import unsafe_settings
from bithaul.coordinator.identity.emergency import close_passwords, open_passwords
from bithaul.coordinator.identity.expiry import forget_expired
from bithaul.coordinator.identity.foreign import ForeignProvider
from bithaul.coordinator.identity.passwords import is_password
from bithaul.coordinator.identity.people import create_person, disable_person, find_by_name
from bithaul.coordinator.identity.secretfiles import write_note
from bithaul.coordinator.identity.sessions import Sessions
from bithaul.coordinator.identity.throttle import Limits
from bithaul.coordinator.identity.transport import is_safe_url
from bithaul.coordinator.settings import Settings
from bithaul.errors import InvalidConfig

sys.path.insert(0, str(Path(__file__).parent))
from foreign_provider import CLIENT, SECRET, Authority, Key, Provider, b64

PASSWORD = "correct horse battery staple"
WIDE = Limits(per_client_and_address=100_000, per_address=100_000, in_all=100_000)
ADMINS = {"olga": "sub:248289761001"}


@pytest.fixture
def provider():
    provider = Provider()
    provider.start()
    yield provider
    provider.stop()


@pytest.fixture
def make(make_site, provider):
    """A coordinator whose people sign in at `provider`, which has its clock."""

    def make(admins=ADMINS, **options):
        settings = {"oidc_issuer": provider.url, "oidc_client_id": CLIENT, "oidc_client_secret": SECRET}
        site = make_site(WIDE, **{**settings, "oidc_admins": admins, **options})
        provider.now = site.clock.now
        return site

    return make


def begin(browser, url="/admin"):
    """The address at the provider that the browser is sent to."""
    asked = browser.follow(url, stop="/authorize?")
    return asked.headers["location"]


def sign_in(site, browser, url="/admin"):
    """The answer to what the provider sent."""
    came = httpx2.get(begin(browser, url), follow_redirects=False, trust_env=False)
    return browser.get(came.headers["location"])


def is_in(browser):
    return browser.get("/admin").status_code == 200


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


def test_sec_30_who_is_taken_out_of_the_settings_is_out_with_the_next_start(make, provider):
    """Wrong result: a former operator goes on for a week, because only sign-ins ask the settings."""
    site = make({"olga": "sub:248289761001", "pete": "sub:7"})
    browsers = {}
    for name, subject in (("olga", "248289761001"), ("pete", "7")):
        provider.lie = {"claims": {"sub": subject}}
        browsers[name] = site.browser()
        sign_in(site, browsers[name])
        assert is_in(browsers[name])
    site.options["oidc_admins"] = {"olga": "sub:248289761001"}
    site.restart()
    assert (is_in(browsers["olga"]), is_in(browsers["pete"])) == (True, False)


def test_sec_30_a_session_lives_only_as_long_as_its_way_in(make, provider):
    """Wrong result: a name gets another account, or a provider comes, changes or goes, and who was let in by
    what was before goes on for a week.
    """
    site = make()
    site.person("ann")
    with_provider = dict(site.options)
    without = {name: value for name, value in with_provider.items() if not name.startswith("oidc_")}

    def signed_in():
        browser = site.browser()
        if "oidc_issuer" in site.options:
            sign_in(site, browser)
        else:
            browser.enter()
        assert is_in(browser)
        return browser

    def lives(browser, options):
        site.options = options
        site.restart()
        return is_in(browser)

    changed = {
        "sub:248289761001": {"olga": "email:olga@example.org"},
        "email:olga@example.org": {"olga": "sub:248289761001", "pete": "email:olga@example.org"},
    }
    browser = signed_in()
    for account, admins in changed.items():
        assert site.c.settings.oidc_admins == {"olga": account}
        assert lives(browser, dict(site.options)), "nothing has changed"
        assert not lives(browser, {**site.options, "oidc_admins": admins}), account
        browser = signed_in()
    assert not lives(browser, without)
    browser = signed_in()
    assert lives(browser, dict(without))
    assert not lives(browser, with_provider)
    assert not lives(browser, without), "nor does it come to life again"
    site.options = with_provider
    site.restart()
    browser = signed_in()
    assert not lives(browser, {**with_provider, "oidc_issuer": "http://127.0.0.1:9"})
    rows = read_audit(site.c, limit=9, action="session.end-others")
    assert {(row.actor, row.detail[:2]) for row in rows} == {("system", "1 ")}


def test_sec_30_sessions_of_opened_passwords_end_with_the_opening(make, provider):
    """Wrong results: half an hour of passwords gives sessions for a week, by time, by --off, by a shorter
    half hour, or by a sign-in that is just then proven; who came through the provider is out too.
    """
    site = make()
    site.person("ann")
    by_provider = site.browser()
    sign_in(site, by_provider)

    def entered(seconds=1800):
        open_passwords(site.c, seconds=seconds)
        browser = site.browser()
        assert browser.enter().status_code == 200
        assert browser.follow("/admin").status_code == 200
        return browser

    first = entered()
    close_passwords(site.c)
    assert not is_in(first)
    second = entered()
    assert not is_in(first), "nor does it come to life again"
    site.clock.time += 1799
    assert is_in(second)
    site.clock.time += 1
    assert not is_in(second)
    third = entered()
    assert not is_in(second)
    open_passwords(site.c, seconds=60)
    site.clock.time += 60
    assert not is_in(third)
    fourth = entered()
    open_passwords(site.c, seconds=7200)
    site.clock.time += 1800
    assert not is_in(fourth), "longer is for who proves the password again"
    assert is_in(by_provider)
    with site.c.database.write() as connection:
        assert forget_expired(site.c, connection) == 3, "of those that ended by time"
    assert [session.name for session in Sessions(site.c).live()] == ["olga"]


def test_sec_30_passwords_that_close_while_one_is_proven_let_nobody_in(make, monkeypatch):
    """Wrong result: the answer that was being worked out opens a session behind the closed door."""
    site = make()
    site.person("ann")
    open_passwords(site.c, seconds=1800)
    browser = site.browser()
    page = browser.get("/signin")
    real = passwords.is_password
    monkeypatch.setattr(passwords, "is_password", lambda *given: (close_passwords(site.c), real(*given))[1])
    assert browser.submit(page, "/signin", name="ann", password=PASSWORD).status_code == 403
    assert Sessions(site.c).live() == []


def test_sec_53_the_machine_s_owner_lets_passwords_in_for_a_while(make, provider):
    """The way back in when a provider is gone. Wrong results: nobody gets in; the door stays open."""
    site = make()
    site.person("ann")
    provider.stop()
    site.clock.time += 301
    browser = site.browser()
    assert browser.get("/admin/signin").status_code == 503
    open_passwords(site.c, seconds=1800)
    assert browser.enter().status_code == 200
    assert is_in(browser)
    rows = [(row.actor, row.detail) for row in read_audit(site.c, limit=9, action="passwords.open")]
    assert rows == [("cli", "1800 s")]
    site.restart()
    assert is_in(browser), "while it is open a restart ends nobody's session"
    site.clock.time += 1801
    assert site.browser().get("/signin").headers["location"].startswith("/admin/signin")
    late = site.browser()
    answer = late.ask("POST", "/signin", data={"name": "ann", "password": PASSWORD})
    assert answer.status_code == 403
    provider.start()


def test_both_ways_in_while_passwords_are_open(make, provider):
    """Wrong result: an answer begun with the provider is taken for one of ours, or the other way round."""
    site = make()
    open_passwords(site.c, seconds=1800)
    page = site.browser().follow("/admin")
    assert f"Sign in through {provider.url}" in page.text
    browser = site.browser()
    done = sign_in(site, browser, "/admin/signin?by=provider&next=%2Fadmin%2Fkeys")
    assert (done.status_code, done.headers["location"]) == (303, "/admin/keys")
    assert is_in(browser)
    for lie, status in (({"iss": site.c.settings.base_url}, 400), ({}, 303)):
        provider.lie = {"sent": lie}
        assert sign_in(site, site.browser(), "/admin/signin?by=provider").status_code == status
    close_passwords(site.c)
    assert "/authorize?" in site.browser().get("/admin/signin").headers["location"]


@pytest.mark.parametrize("text", ["inf", "nan", "1e300", "1800090000", "0", "x", "", "1799999999"])
def test_an_odd_note_opens_nothing(make, text):
    site = make()
    write_note(site.directory / "secrets", "passwords-open-until", text)
    assert site.browser().get("/signin").status_code == 303


def test_the_command_that_lets_passwords_in(make, capsys):
    site = make()

    def command(*words):
        with pytest.raises(SystemExit) as ended:
            run(["admin", "allow-passwords", "--dir", str(site.directory), "--json", *words])
        return ended.value.code, capsys.readouterr().out

    code, told = command("--minutes", "5")
    assert (code, abs(json.loads(told)["until"] - time.time() - 300) < 60) == (0, True)
    assert command("--off") == (0, '{"until": null}\n')
    assert command("--minutes", "1441")[0] == 2
    actions = [row.action for row in read_audit(site.c, limit=9, action="passwords")]
    assert actions == ["passwords.close", "passwords.open"]


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


@pytest.fixture
def over_tls(make_site, tmp_path):
    """A function that starts a provider with a certificate, and a coordinator that trusts an authority."""
    started = []

    def make(certificate, **options):
        provider = Provider()
        provider.start(tls=certificate)
        started.append(provider)
        settings = {"oidc_issuer": provider.url, "oidc_client_id": CLIENT, "oidc_client_secret": SECRET}
        site = make_site(WIDE, **settings, oidc_admins=ADMINS, **options)
        provider.now = site.clock.now
        return site, provider

    yield make
    for provider in started:
        provider.stop()


def at(provider, location, authority):
    """What the provider answers to the browser, which trusts the authority too."""
    trusted = ssl.create_default_context(cafile=authority.file)
    return httpx2.get(location, follow_redirects=False, trust_env=False, verify=trusted)


def test_a_provider_over_https_with_an_authority_of_its_own(over_tls, tmp_path):
    authority = Authority(tmp_path)
    site, provider = over_tls(authority.context(), oidc_ca_file=str(authority.file))
    assert provider.url.startswith("https://")
    browser = site.browser()
    came = at(provider, begin(browser), authority)
    assert browser.get(came.headers["location"]).status_code == 303
    assert is_in(browser)
    for lie in ({"claims": {"iss": "https://evil.example"}}, {"claims": {"exp": 1_799_999_000}}):
        provider.lie = lie
        refused = site.browser()
        came = at(provider, begin(refused), authority)
        assert refused.get(came.headers["location"]).status_code == 401
        assert not is_in(refused)


def test_the_file_of_authorities_may_lie_in_the_run_s_folder(over_tls, tmp_path):
    authority = Authority(tmp_path)
    site, _ = over_tls(authority.context(), oidc_ca_file=f"../{authority.file.name}")
    assert "/authorize?" in begin(site.browser())


def test_a_provider_whose_certificate_is_not_good_gets_nothing(over_tls, tmp_path):
    """Wrong result: anybody on the way may be the provider, and so any of its people."""
    authority, other = Authority(tmp_path), Authority(tmp_path, "Another CA")
    wrong = {
        "nobody vouches": (authority.context(), {}),
        "another authority": (authority.context(), {"oidc_ca_file": str(other.file)}),
        "another name": (authority.context(name="id.example"), {"oidc_ca_file": str(authority.file)}),
        "over": (authority.context(days=-1), {"oidc_ca_file": str(authority.file)}),
    }
    made = iter(wrong.items())
    why, (certificate, options) = next(made)
    site, provider = over_tls(certificate, **options)
    while True:
        answer = site.browser().get("/admin/signin")
        assert (answer.status_code, provider.asked) == (503, []), why
        if (case := next(made, None)) is None:
            return
        why, (certificate, options) = case
        provider.stop()
        provider.start(tls=certificate)
        site.options = {**site.options, "oidc_ca_file": "", "oidc_issuer": provider.url, **options}
        site.restart()


@pytest.mark.parametrize("content", [None, "", "no certificate"])
def test_authorities_that_cannot_be_read_do_not_start(tmp_path, content):
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    whole = {"oidc_issuer": "https://id.example", "oidc_client_id": "x", "oidc_admins": ADMINS}
    c = open_coordinator(Settings(directory=tmp_path, oidc_ca_file="ca.pem", **whole))
    with closing(c), pytest.raises(InvalidConfig, match="oidc_ca_file"):
        ForeignProvider(c)


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


@pytest.fixture
def silent():
    """A provider that takes connections and never says a word: its URL, and who has connected."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=200)
    taken = []

    def take():
        with contextlib.suppress(OSError):
            while True:
                taken.append(listener.accept()[0])

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}", taken
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)
    for connection in taken:
        connection.close()


def knock(site, count):
    """So many strangers at the door at the same time; a function that gives their answers and seconds."""
    answers = []

    def one():
        began = time.monotonic()
        answer = httpx2.get(
            f"http://127.0.0.1:{site.port}/admin/signin",
            headers={"Host": site.http.headers["Host"]},
            timeout=60,
            trust_env=False,
        )
        answers.append((answer, time.monotonic() - began))

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()

    def ended():
        for thread in threads:
            thread.join(60)
        return answers

    return ended


def test_sec_10_a_provider_that_hangs_stops_nobody_else(make_site, silent):
    """Wrong results: sixty strangers hold every thread, and no worker gets a token; each asks anew."""
    url, taken = silent
    site = make_site(WIDE, oidc_issuer=url, oidc_client_id=CLIENT, oidc_admins=ADMINS)
    site.token("w1")
    ended = knock(site, 60)
    until = time.monotonic() + 10
    while not taken and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.5)  # all of them are there
    for ask in (
        lambda: site.ask({"grant_type": "client_credentials"}, auth=("w1", site.secrets["w1"])),
        lambda: site.http.get("/.well-known/jwks.json"),
        lambda: site.http.get("/health"),
        lambda: site.http.get("/status"),
    ):
        began = time.monotonic()
        assert ask().status_code < 500
        assert time.monotonic() - began < 2
    answers = ended()
    assert len(answers) == 60
    assert {answer.status_code for answer, _ in answers} == {503}
    assert {answer.headers["retry-after"] for answer, _ in answers} == {"5"}
    assert max(seconds for _, seconds in answers) < 9
    assert len(taken) == 1, "one asks for all, and for ten seconds nobody asks again"
    began = time.monotonic()
    assert site.browser().get("/admin/signin").status_code == 503
    assert time.monotonic() - began < 2
    site.clock.time += 11
    assert site.browser().get("/admin/signin").status_code == 503
    assert len(taken) == 2


def test_sec_10_a_provider_that_drips_is_left_at_the_deadline(make_site, silent, monkeypatch):
    """Wrong result: a byte now and then makes every deadline begin anew."""
    monkeypatch.setattr(foreign, "DEADLINE_SECONDS", 1.0)
    url, taken = silent
    site = make_site(WIDE, oidc_issuer=url, oidc_client_id=CLIENT, oidc_admins=ADMINS)
    ended = knock(site, 1)
    began, started = time.monotonic(), False
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        while time.monotonic() - began < 5:
            time.sleep(0.2)
            for connection in taken:
                connection.sendall(b"x" if started else b"HTTP/1.1 200 OK\r\nX: ")
                started = True
    [(answer, seconds)] = ended()
    assert (answer.status_code, seconds < 3) == (503, True)


def test_sec_40_what_a_provider_packs_is_not_unpacked(make, provider):
    """Wrong result: 64 KiB on the line become gigabytes here before anybody has counted them."""
    site = make()
    provider.lie = {"packed": True}
    assert site.browser().get("/admin/signin").status_code == 503
    provider.lie = {}
    site.clock.time += 11
    browser = site.browser()
    sign_in(site, browser)
    assert is_in(browser), "the packing was the only reason"


def test_sec_10_a_name_that_is_looked_up_for_ever_is_left_at_the_deadline(make_site, monkeypatch):
    """Wrong result: a name server that does not answer holds the threads for as long as the system tries."""
    monkeypatch.setattr(foreign, "DEADLINE_SECONDS", 1.0)
    ended, asked, real = threading.Event(), [], socket.getaddrinfo

    def look_up(host, *more, **options):
        if host not in ("id.example", b"id.example"):
            return real(host, *more, **options)
        asked.append(host)
        ended.wait(20)
        raise socket.gaierror("nobody answers")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    site = make_site(WIDE, oidc_issuer="https://id.example", oidc_client_id=CLIENT, oidc_admins=ADMINS)
    [(answer, seconds)] = knock(site, 1)()
    ended.set()
    assert asked
    assert (answer.status_code, seconds < 5) == (503, True)

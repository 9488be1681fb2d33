"""Section 9 of the security page: how long a way in through a foreign provider, or beside it, lasts."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from bithaul.cli.main import run
from bithaul.coordinator.identity import passwords
from bithaul.coordinator.identity.audit import read_audit
from bithaul.coordinator.identity.emergency import close_passwords, open_passwords
from bithaul.coordinator.identity.expiry import forget_expired
from bithaul.coordinator.identity.secretfiles import write_note
from bithaul.coordinator.identity.sessions import Sessions

sys.path.insert(0, str(Path(__file__).parent))
from foreign_provider import PASSWORD, is_in, sign_in


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

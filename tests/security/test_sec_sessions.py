"""SEC-28, SEC-30, SEC-37: sessions of people: new ids, limits, and every way they end."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from bithaul.coordinator.identity.people import disable_person, reset_password
from bithaul.coordinator.identity.sessions import Sessions
from bithaul.coordinator.identity.tables import sessions
from bithaul.coordinator.services.prune import prune

DAY = 86_400.0
OLD, NEW = "correct horse battery staple", "another long enough phrase"


def cookie_of(browser):
    return next((value for name, value in browser.cookies.items() if "signin" not in name), None)


def is_in(browser):
    return browser.get("/account").status_code == 200


def signed_in(site, count=1):
    browsers = [site.browser() for _ in range(count)]
    for browser in browsers:
        assert browser.sign_in().status_code == 303
    return browsers


def change(browser, *, current=OLD, new=NEW, again=NEW):
    page = browser.get("/account/password")
    return browser.submit(page, "/account/password", current=current, new=new, again=again)


def test_signing_in_through_the_admin_site_works(site):
    """Wrong result: a sign-in that cannot succeed, as the predecessor's."""
    site.person()
    browser = site.browser()
    assert browser.get("/admin").status_code == 303
    page = browser.enter()
    assert (page.status_code, "Signed in as ann" in page.text) == (200, True)
    assert browser.get("/admin").status_code == 200


def test_sec_28_the_id_changes_at_every_change_of_privilege(site):
    """Wrong result: a session id an attacker planted or saw before stays good afterwards."""
    site.person()
    browser = site.browser()
    (name,) = {name for name in signed_in(site)[0].cookies if "signin" not in name}
    browser.cookies[name] = "A" * 43
    seen = ["A" * 43]
    browser.sign_in(url="/admin")
    seen.append(cookie_of(browser))
    assert browser.follow("/admin").status_code == 200
    seen.append(cookie_of(browser))
    assert change(browser).status_code == 303
    seen.append(cookie_of(browser))
    assert len(set(seen)) == 4
    for old in seen[:-1]:
        other = site.browser()
        other.cookies = {name: old}
        assert not is_in(other)
    assert is_in(browser)
    browser.submit(browser.get("/account"), "/account/sign-out")
    assert cookie_of(browser) is None
    browser.cookies = {name: seen[-1]}
    assert not is_in(browser)


def test_sec_28_another_person_in_the_same_browser_ends_the_first_session(site):
    site.person()
    site.person("bob")
    (browser,) = signed_in(site)
    first = dict(browser.cookies)
    browser.sign_in("bob")
    assert "Sessions of bob" in browser.get("/account").text
    browser.cookies = first
    assert not is_in(browser)


def test_sec_28_the_admin_site_takes_only_the_session_that_asked(site):
    """Wrong result: an attacker's answer signs the victim's browser in."""
    site.person()
    site.person("mallory")
    attacker, victim = site.browser(), site.browser()
    attacker.sign_in("mallory", url="/admin")
    answer = attacker.follow("/admin", stop="/admin/callback").headers["location"]
    assert victim.get(answer).status_code == 400  # no sign-in begun
    victim.sign_in(url="/admin")
    assert victim.get(answer).status_code == 400  # begun, but not this one
    planted = {name: value for name, value in attacker.cookies.items() if "signin" in name}
    victim.cookies |= planted
    assert victim.get(answer).status_code == 401  # the code is of another session
    assert "Signed in" not in victim.follow("/admin", stop="/signin").text
    good = site.browser()
    good.sign_in(url="/admin")
    mine = good.follow("/admin", stop="/admin/callback").headers["location"]
    for wrong in (mine.replace("iss=http", "iss=https"), mine.replace("state=", "state=x"), mine + "x"):
        assert good.get(wrong).status_code in (400, 401), wrong


def test_sec_30_idle_and_absolute_limits(site):
    site.person()
    idle, busy, refreshing = signed_in(site, 3)
    for _ in range(13):
        site.clock.time += 3600
        assert is_in(busy)
        refreshing.get("/account", headers={"X-Auto-Refresh": "1"})
    assert not is_in(idle)
    assert not is_in(refreshing)  # a page that refreshes itself keeps nobody signed in
    for _ in range(7 * 24 - 14):
        site.clock.time += 3600
        assert is_in(busy)
    site.clock.time += 3600
    assert not is_in(busy)  # seven days, however busy
    with site.c.database.read() as connection:
        assert len(connection.execute(select(sessions)).all()) == 3
    prune(site.c)
    with site.c.database.read() as connection:
        assert connection.execute(select(sessions)).all() == []


def test_sec_30_settings_shorten_them(make_site):
    from bithaul.coordinator.identity.throttle import Limits

    site = make_site(Limits(), session_idle_seconds=100, session_days=0.01)
    site.person()
    (browser,) = signed_in(site)
    site.clock.time += 99
    assert is_in(browser)
    site.clock.time += 100
    assert not is_in(browser)


def test_sec_30_end_one_end_all(site):
    site.person()
    site.person("bob")
    one, two, three = signed_in(site, 3)
    bob = site.browser()
    bob.sign_in("bob")
    store = Sessions(site.c)
    sids = {session.sid for session in store.live()}
    assert len(sids) == 4
    page = one.get("/account")
    (bobs,) = {session.sid for session in store.live() if session.name == "bob"}
    token = page.text.split('name="csrf_token" value="')[1].split('"')[0]
    stolen = one.ask("POST", f"/account/sessions/{bobs}/end", data={"csrf_token": token})
    assert stolen.status_code == 404
    assert is_in(bob)
    other = next(sid for sid in sids if f"/account/sessions/{sid}/end" in page.text)
    assert one.submit(page, f"/account/sessions/{other}/end").status_code == 303
    assert sorted([is_in(one), is_in(two), is_in(three)]) == [False, True, True]
    assert is_in(one)
    one.submit(one.get("/account"), "/account/sign-out-everywhere")
    assert [is_in(browser) for browser in (one, two, three, bob)] == [False, False, False, True]


@pytest.mark.parametrize("how", ["change", "reset", "disable"])
def test_sec_30_a_new_password_and_disabling_end_sessions(site, how):
    site.person()
    here, there = signed_in(site, 2)
    if how == "change":
        assert change(here).status_code == 303
        assert [is_in(here), is_in(there)] == [True, False]
        fresh = site.browser()
        assert fresh.sign_in(password=OLD).status_code == 401
        assert fresh.sign_in(password=NEW).status_code == 303
        return
    if how == "reset":
        reset_password(site.c, "ann")
    else:
        disable_person(site.c, "ann")
    assert [is_in(here), is_in(there)] == [False, False]
    assert site.browser().sign_in().status_code == 401


def test_sec_30_sessions_survive_a_restart_and_their_end_does_too(site):
    site.person()
    stays, goes = signed_in(site, 2)
    goes.submit(goes.get("/account"), "/account/sign-out")
    name = next(n for n in stays.cookies if "signin" not in n)
    site.restart()
    assert is_in(stays)
    goes.cookies[name] = "x" * 43
    assert not is_in(goes)


def test_sec_37_a_password_is_in_no_page(site):
    site.person()
    browser = site.browser()
    page = browser.sign_in(password="a wrong but long password")
    assert "a wrong but long" not in page.text
    browser.sign_in()
    page = change(browser, current="not the current one", new=NEW, again=NEW)
    assert (page.status_code, NEW in page.text) == (401, False)
    for response in (page, browser.get("/account")):
        assert response.headers["cache-control"] == "no-store"

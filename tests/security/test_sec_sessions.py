"""SEC-28 to SEC-30, SEC-36: sessions of people: new ids, cookies, limits, signing out, where to go next."""

from __future__ import annotations

import re

import pytest
from sqlalchemy import select

from bithaul.coordinator.identity.tables import sessions
from bithaul.coordinator.site.pages import safe_next

DAY = 86_400.0
NEW = "another long enough phrase"


def cookie_of(browser):
    return next((v for n, v in browser.cookies.items() if "signin" not in n), None)


def alive(site, cookie):
    name = next(iter(n for n in site.browser().site.http.cookies), None)
    assert name is None
    other = site.browser()
    other.cookies[session_name(site)] = cookie
    return other.get("/account").status_code == 200


def session_name(site):
    browser = site.browser()
    browser.sign_in()
    return next(n for n in browser.cookies if "signin" not in n)


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
    planted = {session_name(site): "A" * 43}
    browser.cookies.update(planted)
    seen = ["A" * 43]
    browser.sign_in(url="/admin")
    seen.append(cookie_of(browser))
    assert browser.follow("/admin").status_code == 200
    seen.append(cookie_of(browser))
    page = browser.get("/account/password")
    answer = browser.submit(
        page,
        "/account/password",
        current="correct horse battery staple",
        new=NEW,
        again=NEW,
    )
    assert answer.status_code == 303
    seen.append(cookie_of(browser))
    assert len(set(seen)) == 4
    for old in seen[:-1]:
        other = site.browser()
        other.cookies = {name: old for name in planted}
        assert other.get("/account").status_code == 303
    browser.submit(browser.get("/account"), "/account/sign-out")
    assert cookie_of(browser) is None
    browser.cookies = {name: seen[-1] for name in planted}
    assert browser.get("/account").status_code == 303

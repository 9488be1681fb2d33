"""A person's own pages: sessions in the frame or alone, each action asked for and told of."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable

import pytest
from starlette.testclient import TestClient

from bithaul.coordinator.api.cookies import Cookies
from bithaul.coordinator.app import create_app
from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.identity.people import create_person, find_by_name
from bithaul.coordinator.identity.sessions import Session, Sessions
from bithaul.coordinator.queries.sessions import sessions_view


@pytest.fixture
def own(make_coordinator: Callable[..., Coordinator]) -> Coordinator:
    return make_coordinator(versions=12)


def another(c: Coordinator) -> tuple[str, Session]:
    """A session of the same person on another machine, which the admin site has not accepted; its cookie."""
    store = Sessions(c)
    with c.database.write() as connection:
        found = find_by_name(connection, "ada")
        assert found is not None
        cookie = store.start(connection, found[0], replaces=None, address="192.168.1.31", agent="=1+1")
    session = store.find(cookie)
    assert session is not None
    return cookie, session


def test_sessions_are_told_of_one_person_and_mark_the_own_one(own: Coordinator, visit) -> None:
    visit(own)
    _, other = another(own)
    rows = sessions_view(Sessions(own), other)
    assert [row.here for row in rows if row.sid == other.sid] == [True]
    assert sum(row.here for row in rows) == 1
    assert len(rows) == 2


def test_the_page_of_sessions_has_the_way_to_all_others(own: Coordinator, visit) -> None:
    """Catches: a dead end in the middle of the site; and numbers of a run for who is no operator."""
    site = visit(own)
    page = site.get("/account").text
    assert '<nav class="nav"' in page
    assert page.count("<h1>Sessions of ada</h1>") == 1
    cookie, session = another(own)  # signed in for another application
    assert session.admin_since is None
    page = site.get("/account", headers={"cookie": f"{Cookies(own.settings).session}={cookie}"}).text
    assert '<nav class="nav"' not in page
    assert 'id="totals"' not in page
    assert page.count("<h1>Sessions of ada</h1>") == 1
    assert 'action="/account/sign-out"' in page


def test_ending_a_session_asks_once_and_shows_its_result(own: Coordinator, visit) -> None:
    """Catches: a button that signs another machine out at a slip, and a list that says nothing."""
    site = visit(own)
    sid = another(own)[1].sid
    page = site.get("/account").text
    dialog = re.search(rf'<div popover id="end-{sid}".*?</form>', page, re.DOTALL)
    assert dialog is not None
    assert "192.168.1.31" in dialog[0]
    assert f'action="/account/sessions/{sid}/end"' in dialog[0]
    done = site.post(f"/account/sessions/{sid}/end")
    assert done.status_code == 303
    told = site.get(done.headers["location"]).text
    assert f"Session {sid[:6]} has ended" in told
    assert f"/account/sessions/{sid}/end" not in told


def test_sessions_are_exported_as_shown(own: Coordinator, visit) -> None:
    site = visit(own)
    another(own)
    assert len(site.get("/account/sessions.json").json()) == 2
    rows = list(csv.DictReader(io.StringIO(site.get("/account/sessions.csv").text)))
    assert sorted(row["agent"] for row in rows)[0] == "'=1+1", "a spreadsheet runs no browser's name"
    assert site.get("/account/sessions.csv", headers={"cookie": ""}).status_code == 303


def test_a_wrong_password_does_not_forget_the_name(own: Coordinator) -> None:
    """Catches: a name typed again at each try; and one that is markup."""
    create_person(own, "ada")
    site = TestClient(create_app(own), base_url="http://127.0.0.1", follow_redirects=False)
    for typed, shown in (("ada", "ada"), ('"><b>', "&#34;&gt;&lt;b&gt;")):
        page = site.get("/signin").text
        assert re.search(r'<input name="name"[^>]* autofocus>', page)
        token = page.partition('name="csrf_token" value="')[2].partition('"')[0]
        answer = site.post("/signin", data={"csrf_token": token, "name": typed, "password": "not it at all"})
        assert answer.status_code == 401
        assert re.search(rf'<input name="name"[^>]* value="{re.escape(shown)}">', answer.text)
        assert re.search(r'<input name="password"[^>]* autofocus>', answer.text)
        assert "not it at all" not in answer.text

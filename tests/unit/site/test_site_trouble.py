"""What goes wrong is told to a person in words, with a way on; an action after the session is not lost."""

from __future__ import annotations

import html
from urllib.parse import unquote

import pytest
from starlette.testclient import TestClient

from bithaul.coordinator.api.cookies import Cookies
from bithaul.coordinator.identity.sessions import Sessions

PERSON = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
HERE = "http://127.0.0.1"
SEED = "/admin/tasks/seed?tasks=4&examples=64"
AGAIN = "/signin?ended=1&next="


@pytest.mark.parametrize(
    ("path", "status", "words", "link"),
    [
        ("/admin/tasks/abc", 404, "There is no such task.", "/admin/tasks"),
        ("/admin/tasks/0", 404, "There is no such task.", "/admin/tasks"),
        ("/admin/workers/\u00dcn\u00efx", 404, "There is no such worker.", "/admin/workers"),
        ("/admin/runs/try", 404, "There is no such version.", "/admin/runs"),
        ("/admin/keys/A B/rotate", 404, "There is no such key.", "/admin/keys"),
        ("/admin/logs?before=abc", 404, "That address is not one of this site's.", "/admin/logs"),
        ("/admin/tasks/1/nothing.csv", 404, "That address is not one of this site's.", "/admin/tasks"),
        ("/admin/install/x/y/z", 404, "There is no page at this address.", "/admin/install"),
        ("/admin/workers/nobody", 404, "nobody", "/admin/workers"),
        ("/admin/keys/w1/disable", 405, "There is no page at this address.", "/admin/keys"),
        ("/admin/tasks/9999999", 404, "9999999", "/admin/tasks"),
        ("/nothing", 404, "There is no page at this address.", "/admin"),
    ],
)
def test_a_wrong_turn_keeps_the_frame_and_leads_on(
    site: TestClient, path: str, status: int, words: str, link: str
) -> None:
    """Catches: "Unprocessable Entity" and "path.task: Input should be a valid integer" before a person."""
    page = site.get(path, headers=PERSON)
    text = html.unescape(page.text)
    assert page.status_code == status
    assert words in text
    assert f'<a class="button" href="{link}">' in text
    assert f'hx-get="{link}"' in text, "a refresh asks for a page that is there"
    assert '<nav class="nav"' in text
    assert text.count("<h1>Not found</h1>") == 1
    for jargon in ("Unprocessable", "path.", "query.", "Input should", "Not Found"):
        assert jargon not in text


def test_programs_are_told_what_they_were(site: TestClient) -> None:
    for path, where in (("/admin/tasks/abc", "path.task: "), ("/admin/logs?before=abc", "query.before: ")):
        told = site.get(path)
        assert told.headers["content-type"] == "application/problem+json"
        assert (told.status_code, told.json()["code"]) == (422, "invalid_request")
        assert told.json()["detail"].startswith(where)
    cookieless = {"cookie": "", **PERSON}
    stranger = site.get("/admin/tasks/abc", headers=cookieless)
    assert (stranger.status_code, '<nav class="nav"' in stranger.text) == (404, False)


def test_a_refused_action_leads_back_to_its_page(site: TestClient) -> None:
    sent = {**PERSON, "referer": f"{HERE}/admin/tasks?state=leased&did=3"}
    told = site.post("/admin/tasks/9999999/kick", headers=sent)
    assert told.status_code == 404
    assert '<a class="button" href="/admin/tasks?state=leased">Back to the page</a>' in told.text


@pytest.mark.parametrize(
    ("referer", "page"),
    [
        (f"{HERE}{SEED}&did=7", f"/admin/signin?next={SEED}"),
        ("https://evil.example/admin/keys", "/admin/signin?next="),
        (f"{HERE}//evil.example/", "/admin/signin?next="),
        (f"{HERE}/connect/authorize?x=1", "/admin/signin?next="),
        ("http://[", "/admin/signin?next="),
        ("", "/admin/signin?next="),
    ],
)
def test_an_action_after_the_session_leads_to_its_page_by_signing_in(
    site: TestClient, referer: str, page: str
) -> None:
    """Catches: an action that is lost without a word; a Referer that leads to another site."""
    told = site.post("/admin/tasks/seed", headers={"cookie": "", "referer": referer})
    assert told.status_code == 303
    assert told.headers["location"].startswith(AGAIN)
    assert unquote(unquote(told.headers["location"].removeprefix(AGAIN))) == page


def test_a_form_of_a_session_that_was_ended_elsewhere_leads_to_signing_in(c, site: TestClient) -> None:
    """Catches: "This form is not from this site or is too old" after signing out in another tab."""
    begun = {"cookie": f"{Cookies(c.settings).sign_in}={Sessions(c).begin_sign_in()}"}
    here = {**begun, **PERSON, "referer": HERE + SEED, "sec-fetch-site": "same-origin"}
    told = site.post("/admin/tasks/seed", headers=here)
    assert told.status_code == 303
    assert unquote(unquote(told.headers["location"])) == f"{AGAIN}/admin/signin?next={SEED}"
    for odd in ({"referer": ""}, {"referer": "https://evil.example/admin"}, {"accept": "*/*"}):
        assert site.post("/admin/tasks/seed", headers=here | odd).status_code == 403, odd
    cross = {"referer": "https://evil.example/admin", "sec-fetch-site": "cross-site"}
    assert site.post("/admin/tasks/seed", headers=here | cross).status_code == 403
    old = {**PERSON, "referer": HERE + SEED, "x-csrf-token": "of-another-session"}
    told = site.post("/admin/tasks/seed", headers=old)
    assert told.status_code == 403
    assert "nothing was changed" in told.text
    assert 'href="/admin/tasks/seed?tasks=4&amp;examples=64">Back to the page</a>' in told.text

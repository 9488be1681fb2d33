"""An application of somebody else signs a person in here and out again, in Chromium, without asking twice."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from served import NAME, PASSWORD, Process

from bithaul.coordinator.identity.apps import register_app

pytestmark = [pytest.mark.browser, pytest.mark.process]


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        body = b"<!doctype html><title>App</title><p>The application"
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def app(coordinator: Process) -> Iterator[str]:
    """The address of an application that is registered."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_port}"
    register_app(coordinator.c, "app", redirect_uris=[base + "/cb"], logout_uris=[base + "/bye"], public=True)
    yield base
    server.shutdown()
    server.server_close()


def test_an_application_signs_a_person_in_and_out(chromium: Any, coordinator: Process, app: str) -> None:
    """Wrong results: a policy of our own pages stops the way back to the application, after signing in or
    out; somebody who is signed in is asked again.
    """
    context = chromium.new_context()
    page = context.new_page()
    asked = {
        "response_type": "code",
        "client_id": "app",
        "redirect_uri": app + "/cb",
        "scope": "openid",
        "state": "s",
        "code_challenge": "c" * 43,
        "code_challenge_method": "S256",
    }
    url = f"{coordinator.url}/connect/authorize?{urlencode(asked)}"
    page.goto(url)
    page.get_by_label("Name").fill(NAME)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(app + "/cb?**")
    page.goto(url)
    told = parse_qs(urlsplit(page.url).query)
    assert (page.url.partition("?")[0], told["state"]) == (app + "/cb", ["s"])
    leave = {"client_id": "app", "post_logout_redirect_uri": app + "/bye", "state": "t"}
    page.goto(f"{coordinator.url}/connect/endsession?{urlencode(leave)}")
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url(app + "/bye?state=t")
    page.goto(coordinator.url + "/account")
    assert urlsplit(page.url).path == "/signin"
    context.close()

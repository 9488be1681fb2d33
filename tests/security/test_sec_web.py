"""SEC-29, 31, 32, 33, 34, 35, 36, 50: what a browser sends and what a page may do."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest
from sqlalchemy import select

import bithaul.coordinator
from bithaul.coordinator.api.cookies import Cookies
from bithaul.coordinator.identity.apps import register_app
from bithaul.coordinator.identity.sessions import Sessions
from bithaul.coordinator.identity.tables import audit, clients, codes, people, sessions, sign_ins
from bithaul.coordinator.identity.throttle import Limits
from bithaul.coordinator.site.pages import HOME, safe_next

WIDE = Limits(per_client_and_address=100_000, per_address=100_000, in_all=100_000)
SOURCE = Path(bithaul.coordinator.__file__).parent
HTTPS = {"public_url": "https://train.example"}
LAN = {"public_url": "http://192.168.1.7:8817", "allow_insecure_lan": True}
PAGES = ["/signin", "/account", "/account/password", "/admin", "/connect/endsession", "/admin/signed-out"]


def routes(site):
    """(method, path) of every route of the running application."""
    app = site.server.config.app._app
    found = set()
    todo = list(app.routes)
    while todo:
        route = todo.pop()
        todo += getattr(route, "routes", None) or getattr(
            getattr(route, "original_router", None), "routes", []
        )
        for method in getattr(route, "methods", None) or ():
            found.add((method, re.sub(r"\{[^}]*\}", "1", route.path)))
    return sorted(found)


def unsafe_routes(site):
    found = [(method, path) for method, path in routes(site) if method not in ("GET", "HEAD", "OPTIONS")]
    assert ("POST", "/signin") in found
    assert ("POST", "/connect/token") in found
    assert ("DELETE", "/api/keys/1") in found
    assert ("POST", "/gradient") in found
    assert len(found) >= 18
    return found


def test_sec_31_every_unsafe_route_under_every_combination(site):
    """Wrong result: one route that another site's form can reach, or one of ours that cannot be used."""
    store, names = Sessions(site.c), Cookies(site.c.settings)
    cookie, other = "c" * 43, "d" * 43
    here = site.c.settings.base_url
    tokens = {"right": store.csrf(cookie), "missing": None, "other": store.csrf(other)}
    origins = {"none": None, "same": here, "cross": "https://evil.example", "null": "null"}
    sites = {None, "same-origin", "same-site", "cross-site", "none"}
    cases = list(product(origins, sites, tokens))
    assert len(cases) == 60
    for method, path in unsafe_routes(site):
        for origin, fetch, token in cases:
            headers = {"Cookie": f"{names.session}={cookie}"}
            if origins[origin]:
                headers["Origin"] = origins[origin]
            if fetch:
                headers["Sec-Fetch-Site"] = fetch
            if tokens[token]:
                headers["X-CSRF-Token"] = tokens[token]
            from_here = fetch in ("same-origin", "none") if fetch else origin in ("none", "same")
            response = site.http.request(method, path, headers=headers)
            refused = response.status_code == 403 and '"csrf"' in response.text
            assert refused != (from_here and token == "right"), (method, path, origin, fetch, token)


def test_sec_31_the_token_may_be_in_the_form_and_must_be_of_the_session(site):
    """Wrong result: with a session, the token of a sign-in that somebody planted is enough."""
    store, names = Sessions(site.c), Cookies(site.c.settings)
    session, planted = "c" * 43, "p" * 43
    both = {"Cookie": f"{names.session}={session}; {names.sign_in}={planted}"}

    def status(headers, token, **options):
        return site.http.post(
            "/account/sign-out", data={"csrf_token": token}, headers=headers, **options
        ).status_code

    assert status(both, store.csrf(session)) == 303
    assert status(both, store.csrf(planted)) == 403
    assert status({"Cookie": f"{names.session}={session}; {names.session}=x"}, store.csrf(session)) == 403
    assert status({"Cookie": f"{names.session}="}, store.csrf("")) == 403
    assert status(both, "ü") == 403
    assert status({}, "x") == 303  # no cookie: nobody is signed in, so there is nothing to forge
    twice = site.http.post(
        "/account/sign-out",
        content=f"csrf_token={store.csrf(session)}&csrf_token=x",
        headers={**both, "content-type": "application/x-www-form-urlencoded"},
    )
    assert twice.status_code == 400
    big = {"csrf_token": store.csrf(session), "x": "a" * 20_000}
    assert site.http.post("/account/sign-out", data=big, headers=both).status_code == 413
    text = {**both, "content-type": "text/plain"}
    assert site.http.post("/account/sign-out", content="csrf_token=x", headers=text).status_code == 403


def test_sec_31_signing_in_needs_a_sign_in_that_this_browser_has_begun(site):
    """Wrong result: another site signs the victim in as the attacker."""
    site.person()
    bare = site.http.post("/signin", data={"name": "ann", "password": "correct horse battery staple"})
    assert bare.status_code == 403
    assert "bithaul-" in bare.headers["set-cookie"]  # only a new sign-in, no session
    assert Cookies(site.c.settings).session + "=" not in bare.headers["set-cookie"]
    browser = site.browser()
    page = browser.get("/signin")
    site.clock.time += 601
    late = browser.submit(page, "/signin", name="ann", password="correct horse battery staple")
    assert late.status_code == 403
    assert (
        browser.submit(late, "/signin", name="ann", password="correct horse battery staple").status_code
        == 303
    )


def test_sec_32_get_and_head_change_nothing(site):
    """Wrong result: a picture on another site ends a session or deletes a key. (A sign-in may begin.)"""
    site.person()
    browser = site.browser()
    browser.enter()
    site.client("w1")
    session_only = {n: v for n, v in browser.cookies.items() if "signin" not in n}

    def state():
        with site.c.database.read() as connection:
            return [
                sorted(map(str, connection.execute(select(table)).all()))
                for table in (people, sessions, clients, codes, audit)
            ]

    before = state()
    gets = [path for method, path in routes(site) if method == "GET" and path != "/connect/authorize"]
    assert len(gets) > 20
    for path in gets:
        for method in ("GET", "HEAD"):
            browser.cookies = dict(session_only)
            browser.ask(method, path)
    for name in ("X-HTTP-Method-Override", "X-Method-Override", "X-HTTP-Method"):
        browser.cookies = dict(session_only)
        browser.ask("GET", "/account/sign-out-everywhere", headers={name: "POST"})
        browser.ask("GET", "/account/sign-out-everywhere?_method=POST")
        site.http.get("/api/keys/w1", headers={**site.admin(), name: "DELETE"})
    after = state()
    assert after[1] == before[1]
    assert [row for row in after[4] if "operator" not in row] == before[4]
    assert before[0] == after[0]


def test_sec_33_the_policy_is_as_written(site):
    site.person()
    browser = site.browser()
    browser.enter()
    wanted = (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    )
    for path in PAGES:
        page = browser.get(path)
        assert (page.status_code, page.headers["content-security-policy"]) == (200, wanted), path
        tags = " ".join(re.findall(r"<[^>]*>", page.text))
        assert not re.search(r"<script(?! src=)|<style|style=|\son\w+=|javascript:", tags), path
    assert browser.get("/static/site.css").headers["content-type"].startswith("text/css")


def test_sec_33_the_sign_in_page_allows_the_registered_address_only(site):
    """Chromium applies form-action to the redirects after the form."""
    register_app(site.c, "app", redirect_uris=["https://app.example/cb"])
    for address, allowed in (("https://app.example/cb", True), ("https://evil.example/cb", False)):
        path = f"/connect/authorize%3Fclient_id%3Dapp%26redirect_uri%3D{address}"
        policy = site.http.get(f"/signin?next={path}").headers["content-security-policy"]
        assert ("form-action 'self' https://app.example;" in policy) == allowed
        assert "evil" not in policy


@pytest.mark.parametrize("options", [{}, HTTPS, LAN])
def test_sec_34_all_headers_on_everything(make_site, options):
    site = make_site(WIDE, with_run=True, **options)
    site.person()
    browser = site.browser()
    browser.enter()
    paths = [
        *PAGES,
        "/nope",
        "/openapi.json",
        "/health",
        "/static/site.css",
        "/connect/authorize",
        "/metrics",
    ]
    responses = [browser.get(path) for path in paths]
    responses.append(site.http.get("/weights/1", headers=site.worker()))
    assert responses[-1].status_code == 200
    responses.append(site.http.post("/signin", data={}, headers={"Cookie": "x=y"}))
    responses.append(site.http.get("/", headers={"Host": "evil"}))
    for response in responses:
        told = response.headers
        assert told["x-content-type-options"] == "nosniff", response.url
        assert told["x-frame-options"] == "DENY"
        page = told["content-type"].startswith("text/html")  # its forms say where they are, to this site only
        assert told["referrer-policy"] == ("same-origin" if page else "no-referrer"), response.url
        assert "frame-ancestors 'none'" in told["content-security-policy"]
        assert "default-src 'none'" in told["content-security-policy"]
        assert told["cross-origin-opener-policy"] == told["cross-origin-resource-policy"] == "same-origin"
        assert "camera=()" in told["permissions-policy"]
        assert ("strict-transport-security" in told) == (options == HTTPS)
        assert "server" not in told


@pytest.mark.parametrize("options", [{}, HTTPS, LAN])
def test_sec_29_cookies_and_banner(make_site, options):
    """Wrong result: a cookie scripts can read, or one a plain-http page of the same host can set."""
    site = make_site(WIDE, **options)
    site.person()
    browser = site.browser()
    page = browser.get("/signin")
    answer = browser.submit(page, "/signin", name="ann", password="correct horse battery staple")
    set_cookies = [*page.headers.get_list("set-cookie"), *answer.headers.get_list("set-cookie")]
    assert len(set_cookies) == 2
    for header in set_cookies:
        name, _, rest = header.partition("=")
        attributes = rest.split("; ")[1:]
        https = ["Secure"] if options == HTTPS else []
        assert sorted(attributes) == sorted(["HttpOnly", "Path=/", "SameSite=Lax", *https])
        assert name.startswith("__Host-bithaul-") == (options == HTTPS)
        assert len(rest.split(";")[0]) == 43
    assert ("Not encrypted" in page.text) == (options == LAN)


def test_sec_29_two_coordinators_on_one_host_do_not_sign_each_other_out(site):
    other = Cookies(site.c.settings.model_copy(update={"port": site.port + 1}))
    assert other.session != Cookies(site.c.settings).session


def test_sec_35_what_strangers_send_is_text(site):
    """Wrong result: a browser's name runs in the operator's. (Other pages come with the admin site.)"""
    site.person()
    for agent in ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{7*7}}", "a' hx-get='/x"):
        browser = site.browser(**{"User-Agent": agent})
        browser.sign_in()
        page = browser.get("/account").text
        assert agent == "{{7*7}}" or agent not in page
        assert "49" not in re.findall(r"<td>([^<]*)</td>", page)
    page = site.browser().get("/signin?next=/%3Cscript%3E")
    assert "<script" not in page.text
    wrong = site.browser()
    answer = wrong.submit(wrong.get("/signin"), "/signin", name='"><script>', password="x")
    assert (answer.status_code, "<script" in answer.text) == (401, False)


@pytest.mark.parametrize(
    "value",
    [
        "//evil.example",
        "/\\evil.example",
        "\\\\evil.example",
        "https:evil.example",
        "https://evil.example",
        "javascript:alert(1)",
        "/a\r\nSet-Cookie: x=y",
        "/a\tb",
        "/ a",
        "/ä",
        "///evil",
        "",
        "evil",
        "/\x00",
        '/"',
        "/" + "a" * 9000,
    ],
)
def test_sec_36_next_never_leaves_the_site(site, value):
    assert safe_next(value) == HOME
    site.person()
    browser = site.browser()
    page = browser.ask("GET", "/signin", params={"next": value})
    answer = browser.submit(page, "/signin", name="ann", password="correct horse battery staple", next=value)
    assert (answer.status_code, answer.headers["location"]) == (303, HOME)
    answer = browser.ask("GET", "/admin/signin", params={"next": value})
    done = browser.follow(answer.headers["location"], stop="/admin/callback")
    done = browser.get(done.headers["location"])
    assert done.headers["location"] in (HOME, "/admin")


def test_sec_36_good_paths_stay():
    for value in ("/", "/admin?x=1&y=%2F", "/workers/a-b_c~d#e", "/a[1]"):
        assert safe_next(value) == value


def test_sec_50_forwarded_addresses_count_from_configured_proxies_only(make_site):
    """Wrong result: whoever sends X-Forwarded-For gets a fresh throttle for each guess."""

    def seen(site, forwarded):
        site.person()
        browser = site.browser(**{"X-Forwarded-For": forwarded, "Forwarded": "for=6.6.6.6"})
        browser.sign_in()
        with site.c.database.read() as connection:
            return connection.execute(select(sessions.c.address)).scalars().all()

    assert seen(make_site(WIDE), "9.9.9.9") == ["127.0.0.1"]


@pytest.mark.parametrize(
    ("forwarded", "seen"),
    [
        ("9.9.9.9", "9.9.9.9"),
        ("6.6.6.6, 9.9.9.9, 10.0.0.1", "9.9.9.9"),
        ("x", "127.0.0.1"),
        ("", "127.0.0.1"),
    ],
)
def test_sec_50_behind_a_proxy_the_address_is_the_last_stranger(make_site, forwarded, seen):
    site = make_site(WIDE, trusted_proxies=("127.0.0.1", "10.0.0.0/8"))
    site.person()
    site.browser(**{"X-Forwarded-For": forwarded}).sign_in()
    with site.c.database.read() as connection:
        assert connection.execute(select(sessions.c.address)).scalars().all() == [seen]


def test_sec_22_sign_ins_are_bounded(site, monkeypatch):
    """Wrong result: a stranger who only opens the page fills the disk."""
    monkeypatch.setattr("bithaul.coordinator.identity.sessions.MOST_SIGN_INS", 20)
    for _ in range(60):
        site.http.get("/signin")
    with site.c.database.read() as connection:
        assert len(connection.execute(select(sign_ins)).all()) <= 20


def test_sec_10_opening_the_sign_in_page_has_a_pace(make_site):
    """Wrong result: a stranger who only opens the page keeps the database's writer busy."""
    site = make_site(Limits(per_address=2))
    statuses = [site.http.get("/signin").status_code for _ in range(21)]
    site.http.cookies.clear()
    assert statuses.count(200) + statuses.count(429) == 21
    for path in ("/signin", "/admin/signin"):
        for _ in range(21):
            answer = site.http.get(path, headers={"Cookie": "x=y"})
        assert (answer.status_code, 1 <= int(answer.headers["retry-after"]) <= 60) == (429, True)
    assert site.http.get("/account").status_code == 303


def test_sec_10_the_pace_of_the_sign_in_page_counts_ipv6_networks_too(make_site):
    """Wrong results: each of 65,536 networks of one customer has a pace; a full one stops its neighbours."""
    site = make_site(Limits(per_address=2), trusted_proxies=("127.0.0.1",))  # 20, 40 and 80 in a minute

    def opened(address):
        status = site.http.get("/signin", headers={"X-Forwarded-For": address}).status_code
        site.http.cookies.clear()
        return status

    assert [opened(f"2001:db8:1:{i:x}::1") for i in range(44)] == [200] * 40 + [429] * 4, "a /56"
    refused = [opened(f"2001:db8:1:{i:x}::1") for i in range(44, 90)]
    assert refused == [429] * 46
    wide = [opened(f"2001:db8:1:{i:x}00::1") for i in range(1, 46)]
    assert wide == [200] * 40 + [429] * 5, "a /48, of which nothing was used up by what was refused"
    assert opened("2001:db8:2::1") == 200
    assert opened("9.9.9.9") == 200


def test_sec_44_no_route_streams_events(run_site):
    """The promise bounds streams of events. There is none, and this finds the first one that is made."""
    site = run_site
    site.person()
    browser = site.browser()
    browser.enter()
    admin = site.admin()
    seen = set()
    for method, path in routes(site):
        if method != "GET":
            continue
        for sent in ({}, admin):
            answer = (browser if not sent else site.browser()).get(
                path, headers={**sent, "Accept": "text/event-stream"}
            )
            seen.add((path, answer.status_code))
            assert "event-stream" not in answer.headers.get("content-type", ""), path
    assert sum(status == 200 for _, status in seen) > 25
    assert "event-stream" not in site.http.get("/openapi.json").text
    own = [*SOURCE.rglob("*.py"), *SOURCE.rglob("*.html"), *(SOURCE / "site" / "static").glob("*.js")]
    assert len(own) > 100
    words = ("event-stream", "EventSource", "sse-connect", "WebSocket")
    assert [path for path in own for word in words if word in path.read_text(encoding="utf-8")] == []

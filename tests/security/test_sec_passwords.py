"""SEC-02, 10, 51, 53, 54 for people: what rests, guessing, the first password, the audit log, a crowd."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from sqlalchemy import select, update

from bithaul.coordinator.identity import passwords, throttle
from bithaul.coordinator.identity.apps import register_app
from bithaul.coordinator.identity.audit import read_audit
from bithaul.coordinator.identity.clients import (
    delete_client,
    disable_client,
    enable_client,
    list_clients,
    rotate_client,
)
from bithaul.coordinator.identity.expiry import forget_expired
from bithaul.coordinator.identity.keys import SigningKeys
from bithaul.coordinator.identity.people import create_person, reset_password
from bithaul.coordinator.identity.tables import failed_attempts, people
from bithaul.coordinator.identity.throttle import Limits
from bithaul.errors import InvalidInput
from bithaul.exchange.messages import ADMIN_SCOPE

RIGHT = "correct horse battery staple"
NEW = "another long enough phrase"
NARROW = Limits(per_client_and_address=3, per_address=6, in_all=100)


def test_sec_02_nothing_of_a_person_rests_in_clear(site):
    """Wrong result: a copy of the folder signs somebody in: by cookie, code, token or password."""
    site.person()
    browser = site.browser()
    browser.enter()
    secret = register_app(site.c, "app", redirect_uris=["https://app.example/cb"])
    url = "/connect/authorize?response_type=code&client_id=app&redirect_uri=https%3A%2F%2Fapp.example%2Fcb"
    url += "&scope=openid&nonce=n&code_challenge=" + "c" * 43 + "&code_challenge_method=S256"
    code = browser.get(url).headers["location"].split("code=")[1].split("&")[0]
    page = browser.get("/account").text
    token = page.split('name="csrf_token" value="')[1].split('"')[0]
    first = create_person(site.c, "new")
    needles = [RIGHT, first, secret, code, token, *browser.cookies.values()]
    assert len(needles) >= 6
    texts = site.rests()
    assert any("wal" in name.lower() for name in texts)
    for name, content in texts.items():
        assert not [needle for needle in needles if needle.encode() in content], name
    for path in site.directory.glob("coordinator.db*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_sec_10_all_addresses_of_one_ipv6_network_are_one_guesser(make_site):
    """Wrong result: who has a home connection guesses from 2^64 addresses, each with a limit of its own."""
    site = make_site(NARROW, trusted_proxies=("127.0.0.1",))
    site.person()
    site.client("w1")

    def attempt(address):
        browser = site.browser(**{"X-Forwarded-For": address})
        return browser.submit(browser.get("/signin"), "/signin", name="ann", password="wrong").status_code

    def secret(address):
        sent = {"X-Forwarded-For": address}
        fields = {"grant_type": "client_credentials"}
        return site.ask(fields, auth=("w1", "wrong"), headers=sent).status_code

    for guess in (attempt, secret):
        assert [guess(f"2001:db8:1:2:{i}::{i}") for i in range(1, 5)] == [401, 401, 401, 429]
        assert guess("2001:db8:1:3::1") == 401, "the neighbour's network is another one"
        assert [guess(f"::ffff:9.9.9.{i}") for i in (7, 7, 7, 7, 8)] == [401, 401, 401, 429, 401]
        assert guess("9.9.9.7") == 429, "the same IPv4 address, written in another way"


def test_sec_10_naming_a_public_client_writes_nothing(site):
    """Wrong results: a stranger makes the database sync with each request; a name counts as a use."""

    def used():
        return {client.id: client.last_used_at for client in list_clients(site.c)}["bithaul-admin"]

    answer = site.http.post("/connect/revoke", data={"client_id": "bithaul-admin", "token": "x"})
    assert (answer.status_code, used()) == (200, None)
    site.person()
    site.browser().enter()
    assert used() == site.clock.time, "a code that was redeemed is a use"


def test_sec_10_sign_in_is_throttled_and_others_get_in(make_site):
    """Wrong results: endless guesses at a password; a person locked out by a stranger elsewhere."""
    site = make_site(NARROW, trusted_proxies=("127.0.0.1",))
    site.person()

    def attempt(password, address, name="ann"):
        browser = site.browser(**{"X-Forwarded-For": address})
        return browser.submit(browser.get("/signin"), "/signin", name=name, password=password)

    assert [attempt("wrong", "9.9.9.9").status_code for _ in range(4)] == [401, 401, 401, 429]
    refused = attempt(RIGHT, "9.9.9.9")  # who guesses is not told when the guess is right
    assert (refused.status_code, 1 <= int(refused.headers["retry-after"]) <= 60) == (429, True)
    assert attempt(RIGHT, "8.8.8.8").status_code == 303
    assert [attempt("wrong", "9.9.9.9", name=f"n{i}").status_code for i in range(4)] == [401] * 3 + [429]
    assert attempt(RIGHT, "9.9.9.9", name="bob").status_code == 429
    site.restart()
    assert attempt(RIGHT, "9.9.9.9").status_code == 429
    assert attempt(RIGHT, "8.8.8.8").status_code == 303
    with site.c.database.read() as connection:
        rows = connection.execute(select(failed_attempts)).all()
    assert {row.path for row in rows} == {"sign-in"}


@pytest.mark.parametrize("path", ["revoke", "introspect", "token"])
def test_sec_10_each_machine_path_is_throttled_by_itself(make_site, path):
    site = make_site(NARROW)
    secret = site.client("operator", scope=ADMIN_SCOPE)

    def status(given, where=path):
        fields = {"token": "x", "grant_type": "client_credentials"}
        return site.http.post(f"/connect/{where}", data=fields, auth=("operator", given)).status_code

    assert [status("wrong") for _ in range(5)] == [401, 401, 401, 429, 429]
    assert status(secret) == 200
    for other in {"revoke", "introspect", "token"} - {path}:
        assert status("wrong", other) == 401


def test_sec_10_codes_and_password_changes_are_throttled(make_site):
    site = make_site(NARROW)
    site.person()
    secret = register_app(site.c, "app", redirect_uris=["https://app.example/cb"])
    guess = {"grant_type": "authorization_code", "code": "x", "redirect_uri": "https://app.example/cb"}
    statuses = [site.ask(guess, auth=("app", secret)).status_code for _ in range(5)]
    assert statuses == [400, 400, 400, 429, 429]
    browser = site.browser()
    browser.sign_in()
    form = {"new": NEW, "again": NEW}
    for wanted in (401, 401, 401, 429):
        page = browser.get("/account/password")
        answer = browser.submit(page, "/account/password", current="wrong", **form)
        assert answer.status_code == wanted
    answer = browser.submit(browser.get("/account/password"), "/account/password", current=RIGHT, **form)
    assert answer.status_code == 429  # a thief of the open browser does not learn the password


def test_sec_51_the_first_password_is_changed_by_force(site):
    """Wrong result: a generated password that stays, or a page that opens before it was changed."""
    first = create_person(site.c, "root")
    assert len(first) >= 20
    assert create_person(site.c, "other") != first
    browser = site.browser()
    page = browser.sign_in("root", first, url="/admin")
    assert page.status_code == 303
    for path in ("/account", "/admin"):
        stopped = browser.follow(path)
        assert "Choose your own" in stopped.text, path
    wrong = [
        (first, "short", "short", 422),
        (first, first, first, 403),
        (first, NEW, NEW + "x", 422),
        (first, "aaaaaaaaaaaaaaaa", "aaaaaaaaaaaaaaaa", 422),
        (first, "my root password", "my root password", 422),
        ("wrong", NEW, NEW, 401),
    ]
    for current, new, again, status in wrong:
        form = browser.get("/account/password")
        answer = browser.submit(form, "/account/password", current=current, new=new, again=again)
        assert answer.status_code == status, new
    form = browser.follow("/admin")
    done = browser.submit(form, "/account/password", current=first, new=NEW, again=NEW)
    assert done.status_code == 303
    assert "Signed in as root" in browser.follow(done.headers["location"]).text
    again = reset_password(site.c, "root")
    assert site.browser().sign_in("root", NEW).status_code == 401
    assert site.browser().sign_in("root", again).status_code == 303


def test_sec_51_no_default_credential_exists(site):
    for name in ("admin", "root", "bithaul"):
        for password in ("admin", "password", "", "bithaul", "changeme"):
            assert site.browser().sign_in(name, password).status_code == 401


def test_sec_51_passwords_are_argon2id_and_rehashed(site, monkeypatch):
    site.person()

    def stored():
        with site.c.database.read() as connection:
            return connection.execute(select(people.c.password_hash)).scalar_one()

    assert stored().startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    old = passwords.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(RIGHT)
    with site.c.database.write() as connection:
        connection.execute(update(people).values(password_hash=old))
    assert site.browser().sign_in().status_code == 303
    assert "m=19456" in stored()
    assert site.browser().sign_in().status_code == 303
    for text in ("x" * 11, "x" * 257, "ababababababab"):
        with pytest.raises(InvalidInput):
            passwords.check_new(text, name="ann")
    passwords.check_new("pässwörter für alle", name="ann")


def test_sec_53_who_did_what(site):
    """Wrong result: a change of who may do what that leaves no row."""
    site.person()
    browser = site.browser()
    browser.sign_in(password="wrong password")
    browser.enter()
    form = browser.get("/account/password")
    browser.submit(form, "/account/password", current=RIGHT, new=NEW, again=NEW)
    browser.submit(browser.get("/account"), "/account/sign-out")
    site.client("w1")
    for change in (rotate_client, disable_client, enable_client, delete_client):
        change(site.c, "w1")
    site.http.post("/api/keys", json={"client_id": "w9"}, headers=site.admin())
    site.clock.time += 400
    SigningKeys(site.c).rotate()
    rows = {(row.actor, row.action, row.subject) for row in read_audit(site.c, limit=100)}
    assert rows >= {
        ("cli", "person.create", "ann"),
        ("ann", "sign-in.refused", "ann"),
        ("ann", "sign-in", "ann"),
        ("ann", "sign-in.admin", "ann"),
        ("ann", "person.change-password", "ann"),
        ("cli", "client.create", "w1"),
        ("cli", "client.rotate", "w1"),
        ("cli", "client.disable", "w1"),
        ("cli", "client.enable", "w1"),
        ("cli", "client.delete", "w1"),
        ("operator", "client.create", "w9"),
    }
    actions = [row.action for row in read_audit(site.c, limit=100)]
    assert {"session.end", "signing-key.rotate"} <= set(actions)
    assert {row.action for row in read_audit(site.c, limit=100, action="sign-in")} == {
        "sign-in",
        "sign-in.refused",
        "sign-in.admin",
    }
    shown = site.http.get("/api/audit?limit=3", headers=site.admin()).json()["rows"]
    assert len(shown) == 3
    assert RIGHT not in str(shown)


def test_sec_54_a_full_queue_is_said_at_once(site, monkeypatch):
    site.person()
    monkeypatch.setattr(passwords, "QUEUE", 0)
    browser = site.browser()
    answer = browser.sign_in()
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")


def peak_bytes():
    """The most memory this process has had since `forget_peak`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


def forget_peak():
    Path("/proc/self/clear_refs").write_text("5")


def growth_of(action):
    """What `action` answers, and by how many bytes the most memory of this process rose meanwhile."""
    forget_peak()
    before = peak_bytes()
    answer = action()
    return answer, peak_bytes() - before


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="Linux tells a process its peak")
def test_sec_54_two_hundred_sign_ins_take_the_memory_of_two(site, monkeypatch):
    """Wrong result: every waiting sign-in holds the 19 MiB of its hash, 3.7 GiB in all.

    Memory that the warming up left free may hold the two hashes already, so growth has no least: how many
    hash at once is counted, and that growth is seen at all is shown with a block of a known size.
    """
    site.person()
    pages = [(browser := site.browser(), browser.get("/signin")) for _ in range(200)]

    def at_once(action):
        answers = []
        threads = [threading.Thread(target=lambda p=p: answers.append(action(*p))) for p in pages]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return answers

    hashing, most, lock = 0, 0, threading.Lock()
    is_password = passwords.is_password

    def counted(stored, password):
        nonlocal hashing, most
        with lock:
            hashing += 1
            most = max(most, hashing)
        try:
            return is_password(stored, password)
        finally:
            with lock:
                hashing -= 1

    monkeypatch.setattr(passwords, "is_password", counted)
    at_once(lambda browser, page: site.http.get("/signin").close())  # what 200 threads and connections take
    site.http.cookies.clear()
    answers, grown = growth_of(
        lambda: at_once(
            lambda b, page: b.submit(page, "/signin", name="ann", password="wrong").status_code,
        )
    )
    assert len(answers) == len(pages)
    assert {401, 503} >= set(answers)
    assert 401 in answers
    assert most == passwords.THREADS
    assert grown < passwords.THREADS * 19 * 2**20 + 64 * 2**20
    block, seen = growth_of(lambda: b"x" * (128 * 2**20))
    assert len(block) / 2 < seen


def guesses(site, monkeypatch):
    """A function that tries to sign in from an address: the answer, and how often a password was hashed."""
    monkeypatch.setattr(throttle, "WINDOW_SECONDS", 3600.0)  # a slow machine is no reason to forget
    looked = []
    is_password = passwords.is_password
    monkeypatch.setattr(passwords, "is_password", lambda *given: looked.append(1) or is_password(*given))

    def guess(address, name="ann", password="wrong"):
        before = len(looked)
        browser = site.browser(**{"X-Forwarded-For": address})
        answer = browser.submit(browser.get("/signin"), "/signin", name=name, password=password)
        return answer.status_code, len(looked) - before

    return guess


def test_sec_10_a_full_house_does_not_let_guessers_in(make_site, monkeypatch):
    """Wrong results: with too many failures in all nobody is counted any more, and a new address guesses
    without end; everybody is shut out.
    """
    limits = Limits(per_client_and_address=10, per_address=10, in_all=40)
    site = make_site(limits, trusted_proxies=("127.0.0.1",))
    site.person()
    guess = guesses(site, monkeypatch)
    for i in range(40):
        assert guess(f"9.9.{i // 5}.9", f"n{i}")[0] == 401
    assert [guess("7.7.7.7") for _ in range(6)] == [(429, 1), (429, 1)] + [(429, 0)] * 4
    assert guess("7.7.7.7", password=RIGHT) == (429, 0), "a guesser is not told when the guess is right"
    assert [guess("7.7.7.7", f"n{i}") for i in range(3)] == [(429, 0)] * 3, "nor is one that changes names"
    assert guess("6.6.6.6") == (429, 1)
    assert guess("6.6.6.6", password=RIGHT) == (303, 1), "who has mistyped once gets in"
    assert guess("5.5.5.5", password=RIGHT) == (303, 1)
    assert guess("9.9.0.9", password=RIGHT) == (429, 0), "who has filled the house waits"


def test_sec_10_the_networks_around_an_ipv6_network_count_too(make_site, monkeypatch):
    """Wrong result: a customer with a /48 has 65,536 networks, each with limits of its own."""
    limits = Limits(per_client_and_address=100, per_address=3, in_all=100)
    site = make_site(limits, trusted_proxies=("127.0.0.1",))
    site.person()
    guess = guesses(site, monkeypatch)
    wide = [guess(f"2001:db8:1:{i:x}::1")[0] for i in range(8)]  # of one /56
    assert wide == [401] * 6 + [429] * 2
    wide = [guess(f"2001:db8:1:{i:x}00::1")[0] for i in range(1, 10)]  # of one /48
    assert wide == [401] * 6 + [429] * 3
    assert guess("2001:db8:1:700::1", password=RIGHT) == (429, 0)
    assert guess("2001:db8:2::1", password=RIGHT) == (303, 1), "another /48 is somebody else"
    for i in range(100):
        guess(f"9.9.9.{i}", f"n{i}")
    tried = [guess(f"2001:db8:3:{i:x}::1")[1] for i in range(8)]
    assert tried == [1] * 4 + [0] * 4, "in a crowd a /56 has four tries"


def test_sec_10_a_full_ipv6_network_uses_up_nothing_of_its_neighbours(make_site):
    """Wrong result: one customer's wrong secrets, refused as they are, get his provider's others refused."""
    limits = Limits(per_client_and_address=100, per_address=3, in_all=100)
    site = make_site(limits, trusted_proxies=("127.0.0.1",))
    site.client("w1")

    def secret(address):
        sent = {"X-Forwarded-For": address}
        return site.ask({"grant_type": "client_credentials"}, auth=("w1", "wrong"), headers=sent).status_code

    assert [secret(f"2001:db8:1:{i:x}::1") for i in range(20)] == [401] * 6 + [429] * 14  # of one /56
    assert [secret(f"2001:db8:1:{i:x}00::1") for i in range(1, 8)] == [401] * 6 + [429]  # the rest of its /48


def test_sec_10_a_stranger_does_not_fill_memory(monkeypatch):
    """Wrong result: a key for each address that was ever wrong. The forgotten one is the longest quiet."""
    monkeypatch.setattr(throttle, "MOST_KEYS", 100)
    window = throttle.Window(2)
    assert [window.hit("first") for _ in range(3)] == [True, True, False]
    for i in range(99):
        assert window.hit(f"n{i}")
    assert (len(window._times), window.wait("first")) == (100, 60)
    assert window.hit("one more")
    assert (len(window._times), window.wait("first")) == (100, None)
    monkeypatch.setattr(throttle, "WINDOW_SECONDS", 0.0)
    assert [window.wait(f"n{i}") for i in range(99)] == [None] * 99
    assert len(window._times) == 1


def test_sec_10_rows_of_failed_attempts_are_few_and_short_lived(make_site, monkeypatch):
    """Wrong result: strangers leave millions of rows; they keep them for days."""
    site = make_site(Limits(per_client_and_address=100, per_address=100, in_all=100))
    secret = site.client("w1")
    monkeypatch.setattr(throttle, "MOST_ROWS", 5)

    def wrong(client_id):
        answer = site.ask({"grant_type": "client_credentials"}, auth=(client_id, "wrong"))
        assert answer.status_code == 401

    def rows():
        with site.c.database.read() as connection:
            query = select(failed_attempts.c.client_id).order_by(failed_attempts.c.id)
            return list(connection.execute(query).scalars())

    for i in range(8):
        wrong(f"c{i}")
    assert rows() == ["c3", "c4", "c5", "c6", "c7"], "the newest"
    site.clock.time += 3601
    wrong("late")
    assert rows() == ["late"]
    site.clock.time += 3601
    with site.c.database.write() as connection:
        forget_expired(site.c, connection)
    assert rows() == []
    assert site.ask({"grant_type": "client_credentials"}, auth=("w1", secret)).status_code == 200

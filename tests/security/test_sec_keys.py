"""SEC-03, 04, 46, 53: credentials of workers at run time, by API and CLI; what logs do, who is in them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from sqlalchemy import select

import bithaul
from bithaul.cli import main
from bithaul.coordinator.database.tables import logs
from bithaul.coordinator.identity.apps import register_app
from bithaul.coordinator.identity.audit import record
from bithaul.coordinator.identity.clients import delete_client, list_clients
from bithaul.coordinator.identity.names import ACTORS
from bithaul.coordinator.identity.throttle import Limits

GRANT = {"grant_type": "client_credentials"}


def cli(capsys, *arguments):
    """Exit code and standard output."""
    with pytest.raises(SystemExit) as stop:
        main.run(list(arguments))
    return int(stop.value.code or 0), capsys.readouterr().out


def test_sec_03_a_worker_is_created_rotated_disabled_enabled_and_deleted_while_it_serves(site):
    """Wrong result: a step that needs a restart, or leaves an old token or secret alive."""
    admin = site.admin()

    def api(method, path, **body):
        return site.http.request(method, f"/api/keys{path}", headers=admin, json=body or None)

    secret = api("POST", "", client_id="w1").json()["secret"]
    site.secrets["w1"] = secret
    old = site.worker("w1")
    listed = {row["id"]: row for row in api("GET", "").json()["keys"]}["w1"]
    assert listed["last_used_at"] == site.clock.time
    assert listed["last_used_from"] == "127.0.0.1"
    assert secret not in json.dumps(api("GET", "").json())

    def works(headers):
        return site.http.get("/work", headers=headers).status_code != 401

    def mints(given):
        return site.ask(GRANT, auth=("w1", given)).status_code == 200

    assert works(old)
    fresh = api("POST", "/w1/rotate", grace_seconds=60).json()["secret"]
    assert (works(old), mints(secret), mints(fresh)) == (False, True, True)
    fresh = api("POST", "/w1/rotate", grace_seconds=0).json()["secret"]
    assert (mints(secret), mints(fresh)) == (False, True)
    site.secrets["w1"] = fresh
    old = site.worker("w1")
    assert api("POST", "/w1/disable").status_code == 204
    assert (works(old), mints(fresh)) == (False, False)
    assert api("POST", "/w1/enable").status_code == 204
    assert (works(old), mints(fresh)) == (False, True)
    old = site.worker("w1")
    assert api("DELETE", "/w1").status_code == 204
    assert (works(old), mints(fresh)) == (False, False)
    assert api("DELETE", "/w1").status_code == 404
    again = api("POST", "", client_id="w1").json()["secret"]
    assert (works(old), mints(fresh), mints(again)) == (False, False, True)  # the clock stands still


def test_sec_03_a_client_deleted_and_made_again_shares_no_version(site):
    """Wrong result: versions that begin at one bring the tokens of the deleted client back."""
    old = site.worker("w1")
    delete_client(site.c, "w1")
    del site.secrets["w1"]
    new = site.worker("w1")
    assert site.http.get("/work", headers=old).status_code == 401
    assert site.http.get("/work", headers=new).status_code != 401


def test_sec_03_an_admin_token_cannot_dig_in(site):
    """Wrong result: a leaked script token makes itself a second way in."""
    admin = site.admin()
    register_app(site.c, "app", redirect_uris=["https://app.example/cb"])
    for client_id in ("operator", "app", "bithaul-admin"):
        for method, path, body in (
            ("POST", "/rotate", {}),
            ("POST", "/disable", None),
            ("POST", "/enable", None),
            ("DELETE", "", None),
        ):
            response = site.http.request(method, f"/api/keys/{client_id}{path}", headers=admin, json=body)
            assert (response.status_code, response.json()["code"]) == (403, "needs_machine_access")
    body = {"client_id": "x", "scope": "bithaul.admin"}
    assert site.http.post("/api/keys", json=body, headers=admin).status_code == 422


def test_sec_03_the_same_by_command_line_while_the_coordinator_serves(site, capsys):
    where = ("--dir", str(site.directory), "--json")
    code, out = cli(capsys, "keys", "create", "w1", *where)
    site.secrets["w1"] = json.loads(out)["secret"]
    token = site.worker("w1")
    for verb, alive in (("disable", False), ("enable", False), ("delete", False)):
        code, out = cli(capsys, "keys", verb, "w1", *where)
        assert (code, json.loads(out)["client_id"]) == (0, "w1")
        assert (site.http.get("/work", headers=token).status_code != 401) == alive
    assert cli(capsys, "keys", "delete", "w1", *where)[0] == 4
    assert cli(capsys, "keys", "delete", "bithaul-admin", *where)[0] == 2
    code, out = cli(capsys, "keys", "register", "app", "--redirect-uri", "https://a.example/cb", *where)
    assert json.loads(out)["secret"].startswith("bho_")
    assert cli(capsys, "keys", "register", "bad", "--redirect-uri", "javascript:x", *where)[0] == 2
    assert "w1" not in {client.id for client in list_clients(site.c)}


def test_sec_51_people_by_command_line(site, capsys):
    where = ("--dir", str(site.directory), "--json")
    code, out = cli(capsys, "admin", "create", "ann", *where)
    first = json.loads(out)["password"]
    browser = site.browser()
    assert browser.sign_in("ann", first).status_code == 303
    code, out = cli(capsys, "admin", "sessions", *where)
    (session,) = json.loads(out)
    assert (session["name"], "id_hash" in session) == ("ann", False)
    code, out = cli(capsys, "admin", "sessions", "--end", session["sid"], *where)
    assert (code, json.loads(out)) == (0, [])
    assert browser.get("/account/password").status_code == 303
    code, out = cli(capsys, "admin", "reset-password", "ann", *where)
    assert site.browser().sign_in("ann", first).status_code == 401
    assert site.browser().sign_in("ann", json.loads(out)["password"]).status_code == 303
    assert cli(capsys, "admin", "sessions", "--end-all", "ann", *where)[1].strip() == "[]"
    assert cli(capsys, "admin", "disable", "ann", *where)[0] == 0
    assert json.loads(cli(capsys, "admin", "list", *where)[1])[0]["disabled"] is True
    for verb in ("reset-password", "disable"):
        assert cli(capsys, "admin", verb, "nobody", *where)[0] == 4
    assert cli(capsys, "admin", "create", "ann", *where)[0] == 5
    assert cli(capsys, "admin", "create", "An n", *where)[0] == 2
    rows = json.loads(cli(capsys, "admin", "audit", "--action", "person", *where)[1])
    assert {row["action"] for row in rows} == {"person.create", "person.reset-password", "person.disable"}


@pytest.mark.parametrize("name", ["cli", "system", "oidc", "up", "bithaul-admin"])
def test_sec_53_nobody_is_called_like_an_actor_that_is_no_person(site, capsys, name):
    """Wrong result: the audit log says `cli`, and it was a person, or a machine, of that name."""
    where = ("--dir", str(site.directory), "--json")
    code, out = cli(capsys, "admin", "create", name, *where)
    assert (code, name in out, "choose another" in out) == (2, True, True)
    if name in ("up", "bithaul-admin"):  # these are clients, and their rows say so
        return
    redirect = ("--redirect-uri", "https://a.example/cb")
    for verb, more in (("create", ()), ("register", redirect)):
        code, out = cli(capsys, "keys", verb, name, *more, *where)
        assert (code, name in out, "choose another" in out) == (2, True, True)
    answer = site.http.post("/api/keys", json={"client_id": name}, headers=site.admin())
    assert (answer.status_code, "choose another" in answer.text) == (422, True)


def test_sec_53_actors_that_are_no_people_are_all_known():
    """Wrong result: a new actor is written into the log, and a person may have its name."""
    given = set()
    for path in Path(bithaul.__file__).parent.rglob("*.py"):
        given |= set(re.findall(r"""actor(?:: str)? ?= ?["']([a-z-]+)["']""", path.read_text("utf-8")))
    assert given <= ACTORS | {"up"}
    assert given >= ACTORS


def test_sec_46_hostile_names_do_not_reach_a_terminal(site, capsys):
    """Wrong result: a name tried at the sign-in page moves the cursor of who reads the audit log."""
    with site.c.database.write() as connection:
        record(connection, 1.0, actor="a\x1b[2J\u202eb\r\n", action="x", subject="\0", detail="\x07")
    _, out = cli(capsys, "admin", "audit", "--dir", str(site.directory))
    assert not set("\x1b\u202e\r\0\x07") & set(out)
    assert out.count("\n") == len(out.splitlines())


def test_sec_46_requests_of_one_worker_are_bounded_and_nobody_elses(make_site):
    """Wrong results: a loop that went wild takes the coordinator from the others; a stranger uses w1's up."""
    site = make_site(Limits(), with_run=True, worker_requests_per_minute=60)
    wild, calm = site.worker("w1"), site.worker("w2")
    for _ in range(100):
        assert site.http.get("/work", headers={"Authorization": "Bearer x"}).status_code == 401
    answers = [site.http.get("/work", headers=wild) for _ in range(70)]
    assert [a.status_code == 429 for a in answers] == [False] * 60 + [True] * 10
    assert answers[-1].json()["code"] == "too_many_requests"
    assert 1 <= int(answers[-1].headers["Retry-After"]) <= 60
    logged = site.http.post("/logs", json={"entries": []}, headers=wild)
    assert logged.status_code == 429, "all routes together"
    assert site.http.get("/work", headers=calm).status_code != 429
    assert site.http.get("/health").status_code == 200


def test_sec_46_logs_are_bounded_by_rows_and_bytes(run_site):
    """Wrong result: one worker fills the operator's disk with log entries."""
    headers = run_site.worker("w1")
    other = run_site.worker("w2")
    entry = {"time": 1.0, "level": "info", "event": "x"}

    def send(headers, entries):
        return run_site.http.post("/logs", json={"entries": entries}, headers=headers).status_code

    def rows(worker):
        with run_site.c.database.read() as connection:
            return connection.execute(select(logs).where(logs.c.worker == worker)).all()

    assert [send(headers, [entry] * 500) for _ in range(8)] == [204] * 8
    assert 3000 <= len(rows("w1")) <= 3001
    assert send(other, [entry]) == 204
    assert len(rows("w2")) == 1
    run_site.clock.time += 61
    send(headers, [entry] * 2)
    assert 3002 <= len(rows("w1")) <= 3003
    big = {**entry, "fields": {"text": "a" * 9000}}
    send(other, [big, {**entry, "fields": {"text": "a" * 8000}}])
    sizes = [len(row.fields) for row in rows("w2")]
    assert sorted(size > 7000 for size in sizes) == [False, False, True]
    assert "fields_dropped_bytes" in rows("w2")[1].fields

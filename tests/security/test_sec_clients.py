"""SEC-01 to SEC-10: clients and the token endpoint."""

from __future__ import annotations

import base64
import logging
import math
import time
from collections.abc import Callable
from statistics import median

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from bithaul.coordinator.identity.audit import record
from bithaul.coordinator.identity.clients import disable_client, rotate_client
from bithaul.coordinator.identity.tables import audit, failed_attempts
from bithaul.coordinator.identity.throttle import Limits
from bithaul.exchange.messages import ADMIN_SCOPE, WORKER_SCOPE

GRANT = {"grant_type": "client_credentials"}
shared_site = settings(
    max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)


def test_sec_01_unknown_wrong_and_disabled_are_the_same_answer(site):
    """Wrong result: a caller learns which client ids exist, or which grants, without a secret."""
    right = site.client("known")
    disabled = site.client("disabled")
    disable_client(site.c, "disabled")
    wrong = right[:-1] + ("A" if right[-1] != "A" else "B")
    answers = set()
    cases = [("known", wrong), ("nobody", wrong), ("disabled", disabled), ("", ""), ("\0", "x")]
    for grant in ("client_credentials", "password", "authorization_code", "x" * 300, ""):
        for client_id, secret in cases:
            posted = {"grant_type": grant, "client_id": client_id, "client_secret": secret}
            for response in (
                site.ask(posted),
                site.ask({"grant_type": grant}, auth=(client_id, secret)),
                site.ask({"grant_type": grant}),
            ):
                answers.add((response.status_code, response.text, response.headers["www-authenticate"]))
    assert len(answers) == 1
    assert answers.pop()[0] == 401


def test_sec_01_a_proven_client_learns_that_a_grant_is_not_offered(site):
    secret = site.client("known")
    response = site.ask({"grant_type": "password"}, auth=("known", secret))
    assert (response.status_code, response.json()["error"]) == (400, "unsupported_grant_type")
    response = site.ask({"x": "1"}, auth=("known", secret))
    assert (response.status_code, response.json()["error"]) == (400, "invalid_request")


@pytest.mark.slow
def test_sec_01_known_and_unknown_take_the_same_time(site):
    """Mann-Whitney over 2,000 alternating requests: p > 0.01, or medians within 5 %."""
    site.client("known")
    times = {"known": [], "nobod": []}
    for i in range(2100):
        client_id = ("known", "nobod")[i % 2]
        started = time.perf_counter()
        site.ask({**GRANT, "client_id": client_id, "client_secret": "bhw_" + "x" * 43})
        times[client_id].append(time.perf_counter() - started)
    known, nobody = times["known"][50:], times["nobod"][50:]
    n = len(known)
    ranks = {value: rank for rank, value in enumerate(sorted(known + nobody), start=1)}
    u = sum(ranks[value] for value in known) - n * (n + 1) / 2
    z = (u - n * n / 2) / math.sqrt(n * n * (2 * n + 1) / 12)
    p = math.erfc(abs(z) / math.sqrt(2))
    assert p > 0.01 or abs(median(known) / median(nobody) - 1) < 0.05


def test_sec_02_no_secret_and_no_token_rests_in_the_run_folder(site):
    """Wrong result: a copy of the folder's database, WAL or logs gives somebody a way in."""
    token = site.token("w1")
    rotated = rotate_client(site.c, "w1", grace_seconds=60)
    site.ask(GRANT, auth=("w1", "bhw_a-wrong-secret-that-must-not-be-stored"))
    needles = [site.secrets["w1"], rotated, token, "a-wrong-secret-that-must-not", token.split(".")[2]]
    texts = site.rests()
    assert any("wal" in name.lower() for name in texts)
    for name, content in texts.items():
        assert not [n for n in needles if n.encode() in content], name
    for path in (site.directory / "secrets").iterdir():
        assert path.stat().st_mode & 0o077 == 0


def test_sec_02_logs_hold_no_token_and_no_secret(site, caplog):
    """A10. Wrong result: with logging at DEBUG, Authlib writes each token it issues."""
    with caplog.at_level("DEBUG"):
        token = site.token("w1")
        site.http.get("/weights/current", headers={"Authorization": f"Bearer {token}"})
        site.ask(GRANT, auth=("w1", "bhw_wrong"))
    assert token not in caplog.text
    assert token.split(".")[2] not in caplog.text
    assert site.secrets["w1"] not in caplog.text


def test_sec_03_rotation_ends_old_tokens_on_every_route_also_after_a_restart(run_site):
    """Wrong result: a route that forgets the credential version, or a version kept in memory only."""
    site = run_site
    tokens = {WORKER_SCOPE: site.worker("w1"), ADMIN_SCOPE: site.admin()}
    protected = [operation for operation in site.operations() if operation.scope is not None]
    assert len(protected) >= 17
    assert {operation.scope for operation in protected} == {WORKER_SCOPE, ADMIN_SCOPE}
    for operation in protected:
        if not operation.path.startswith("/api/keys/"):
            assert site.call(operation, tokens[operation.scope]).status_code not in (401, 403), operation
        assert site.call(operation).status_code == 401, operation
        other = tokens[ADMIN_SCOPE if operation.scope == WORKER_SCOPE else WORKER_SCOPE]
        assert site.call(operation, other).status_code == 403, operation
    site.secrets["w1"] = rotate_client(site.c, "w1")  # the clock stands still: the same second
    site.secrets["operator"] = rotate_client(site.c, "operator")
    for operation in protected:
        assert site.call(operation, tokens[operation.scope]).status_code == 401, operation
    site.restart()
    for operation in protected:
        assert site.call(operation, tokens[operation.scope]).status_code == 401, operation
    assert site.http.get("/work", headers=site.worker("w1")).status_code != 401


def test_sec_03_a_disabled_client_is_out_at_once(site):
    headers = site.worker("w1")
    disable_client(site.c, "w1")
    assert site.http.get("/work", headers=headers).status_code == 401
    assert site.ask(GRANT, auth=("w1", site.secrets["w1"])).status_code == 401


def test_sec_05_old_secret_fails_at_once_and_a_grace_ends(site):
    old = site.client("w1")

    def works(secret):
        return site.ask(GRANT, auth=("w1", secret)).status_code == 200

    second = rotate_client(site.c, "w1")
    assert (works(old), works(second)) == (False, True)
    third = rotate_client(site.c, "w1", grace_seconds=600)
    assert (works(old), works(second), works(third)) == (False, True, True)
    site.clock.time += 599.9
    assert works(second)
    site.clock.time += 0.1
    assert (works(second), works(third)) == (False, True)
    fourth = rotate_client(site.c, "w1", grace_seconds=600)
    fifth = rotate_client(site.c, "w1")  # a second rotation ends a grace at once
    assert (works(third), works(fourth), works(fifth)) == (False, False, True)
    with site.c.database.read() as connection:
        rows = connection.execute(select(audit).where(audit.c.subject == "w1").order_by(audit.c.id))
        actions = [row.action for row in rows]
    assert actions == ["client.create"] + ["client.rotate"] * 4


def test_sec_06_one_way_of_authentication(site):
    secret = site.client("w1")
    both = site.ask({**GRANT, "client_id": "w1", "client_secret": secret}, auth=("w1", secret))
    assert (both.status_code, both.json()["error"]) == (400, "invalid_request")
    other = site.ask({**GRANT, "client_id": "w2"}, auth=("w1", secret))
    assert other.status_code == 400
    assert site.ask({**GRANT, "client_id": "w1"}, auth=("w1", secret)).status_code == 200
    in_query = site.http.post(f"/connect/token?client_id=w1&client_secret={secret}", data=GRANT)
    assert in_query.status_code == 400
    twice = [("Authorization", "Basic eDp5"), ("Authorization", "Basic eDp5")]
    assert site.ask(GRANT, headers=twice).status_code == 400


def test_sec_06_basic_is_percent_decoded(site):
    secret = site.client("a.b-c_d")
    encoded = (
        "".join(f"%{byte:02x}" for byte in b"a.b-c_d")
        + ":"
        + "".join(f"%{byte:02X}" for byte in secret.encode())
    )
    header = {"Authorization": "bAsIc " + base64.b64encode(encoded.encode()).decode()}
    assert site.ask(GRANT, headers=header).status_code == 200


def test_sec_06_malformed_basic_is_an_ordinary_401(site):
    for value in [
        base64.b64encode(b"\xff\xfe:x"),
        base64.b64encode(b"nocolon"),
        base64.b64encode(b"%ff:%ff"),
        b"",
        b"!!!",
        b"A",
        b"\xff",
        base64.b64encode(b"\x00:\x00"),
    ]:
        response = site.ask(GRANT, headers=[(b"Authorization", (b"Basic " + value).strip())])
        assert response.status_code == 401
        assert response.json()["error"] == "invalid_client"


@shared_site
@given(st.binary(max_size=200))
def test_sec_06_any_authorization_bytes(site, value):
    value = bytes(byte for byte in value if byte >= 32 and byte != 127).strip()
    assert site.ask(GRANT, headers=[(b"Authorization", (b"Basic " + value).strip())]).status_code in (
        400,
        401,
    )


def test_sec_07_form_is_bounded_and_strict(site):
    secret = site.client("w1")
    form = {"content-type": "application/x-www-form-urlencoded"}
    post = site.http.post
    fine = f"grant_type=client_credentials&client_id=w1&client_secret={secret}"
    assert post("/connect/token", content=fine, headers=form).status_code == 200
    for repeated in ("grant_type=client_credentials", "client_id=w1", "scope=a&scope=a", "x=1&x=2"):
        response = post("/connect/token", content=f"{fine}&{repeated}", headers=form)
        assert (response.status_code, response.json()["code"]) == (400, "invalid_request"), repeated
    for media_type in ("application/json", "text/plain", "multipart/form-data; boundary=x", ""):
        response = post("/connect/token", content=fine, headers={"content-type": media_type})
        assert (response.status_code, response.json()["code"]) == (415, "unsupported_media_type")
    padding = "a" * (16 * 1024 - len(fine) - 3)
    assert post("/connect/token", content=f"{fine}&p={padding}", headers=form).status_code == 200
    assert post("/connect/token", content=f"{fine}&p={padding}a", headers=form).status_code == 413
    drip = (b"a" * 1000 for _ in range(17))  # chunked: no Content-Length to go by
    assert post("/connect/token", content=drip, headers=form).status_code == 413
    assert (
        post("/connect/token", content=b"&".join(b"a%d=" % i for i in range(40)), headers=form).status_code
        == 400
    )
    assert post("/connect/token", content=b"client_id=%ff", headers=form).status_code == 400
    assert post("/connect/token", content="client_id=é".encode(), headers=form).status_code == 400


def test_sec_08_a_worker_cannot_become_an_admin(site):
    secret = site.client("w1")
    for scope in (ADMIN_SCOPE, f"{WORKER_SCOPE} {ADMIN_SCOPE}", "x", WORKER_SCOPE + " ", "a" * 5000):
        response = site.ask({**GRANT, "scope": scope}, auth=("w1", secret))
        assert (response.status_code, response.json()["error"]) == (400, "invalid_scope"), scope
    for fields in (GRANT, {**GRANT, "scope": WORKER_SCOPE}, {**GRANT, "scope": ""}):
        response = site.ask(fields, auth=("w1", secret))
        assert response.json()["scope"] == WORKER_SCOPE


@shared_site
@given(st.lists(st.sampled_from([WORKER_SCOPE, ADMIN_SCOPE, "openid", "bithaul", "", "*"]), max_size=5))
def test_sec_08_no_set_of_scopes_exceeds_the_registered_one(site, wanted):
    secret = site.client("w1")
    response = site.ask({**GRANT, "scope": " ".join(wanted)}, auth=("w1", secret))
    assert response.status_code in (200, 400)
    if response.status_code == 200:
        assert response.json()["scope"] == WORKER_SCOPE


def test_sec_08_lifetimes_are_ours(site):
    """A1. Wrong result: Authlib's default of ten days."""
    admin = site.client("operator", scope=ADMIN_SCOPE)
    assert site.ask(GRANT, auth=("w1", site.client("w1"))).json()["expires_in"] == 3600
    assert site.ask(GRANT, auth=("operator", admin)).json()["expires_in"] == 900
    headers = site.admin()
    site.clock.time += 929
    assert site.http.get("/api/keys", headers=headers).status_code == 200
    site.clock.time += 1
    assert site.http.get("/api/keys", headers=headers).status_code == 401


def test_sec_09_no_store_wherever_a_secret_or_token_is_shown(site):
    secret = site.client("w1")
    responses = [
        site.ask(GRANT, auth=("w1", secret)),
        site.ask(GRANT, auth=("w1", "wrong")),
        site.http.post("/api/keys", json={"client_id": "w7"}, headers=site.admin()),
    ]
    assert [response.status_code for response in responses] == [200, 401, 201]
    for response in responses:
        assert response.headers["cache-control"] == "no-store"


def test_sec_10_wrong_secrets_are_throttled_and_the_right_one_works(make_site: Callable[[Limits], object]):
    """Wrong results: no limit; a locked-out worker; a success that refills; a restart that forgets."""
    site = make_site(Limits(per_client_and_address=3, per_address=5, in_all=100))
    secret = site.client("w1")

    def status(client_id, given):
        return site.ask(GRANT, auth=(client_id, given)).status_code

    assert [status("w1", "wrong") for _ in range(5)] == [401, 401, 401, 429, 429]
    assert status("w1", secret) == 200
    refused = site.ask(GRANT, auth=("w1", "wrong"))
    assert (refused.status_code, refused.json()["code"]) == (429, "throttled")
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert status("unknown", "wrong") == 429  # the address is full, whoever is named: nothing is learned
    site.restart()
    assert status("w1", "wrong") == 429
    assert status("w1", secret) == 200
    with site.c.database.read() as connection:
        rows = connection.execute(select(failed_attempts)).all()
    assert [row.client_id for row in rows] == ["w1"] * 3


def test_sec_10_a_made_up_code_does_not_take_the_writer(make_site: Callable[[Limits], object]):
    """Wrong result: strangers without a secret make every worker wait for the one writer.

    Failures are counted in rows, up to the limit: it is reached first.
    """
    site = make_site(Limits(per_client_and_address=1, per_address=100, in_all=100))
    made_up = {"grant_type": "authorization_code", "code": "x", "client_id": "bithaul-admin"}
    cases = [made_up, {**made_up, "client_id": "nobody"}, {**made_up, "code": "", "client_id": ""}]
    for fields in cases:
        assert site.ask(fields).status_code in (400, 401)
    with site.c.database.write():
        statuses = [site.ask(fields, timeout=5).status_code for fields in cases]
    assert statuses == [429, 429, 429]


def test_sec_02_what_rests_is_found_after_every_test(site):
    """The sweep of conftest, which follows each test that uses a site. Wrong result: it looks at nothing."""
    site.person()
    browser = site.browser()
    browser.enter()
    token = site.token("w1")
    answer = site.http.post("/api/keys", json={"client_id": "w9"}, headers=site.admin())
    given = {token, answer.json()["secret"], *browser.cookies.values()}
    assert given <= site.issued.secrets
    assert len(site.issued.secrets) > len(given), "codes and cookies that were replaced"
    assert site.issued.found_in(site.rests()) == []
    with site.c.database.write() as connection:
        record(connection, 1.0, actor="x", action="x", subject="x", detail=answer.json()["secret"])
    found = site.issued.found_in(site.rests())
    assert "a dump" in found
    assert any("wal" in name.lower() for name in found)
    logging.getLogger("bithaul.test").warning("request with %s", token)
    assert "the log" in site.issued.found_in(site.rests())
    site.issued.secrets.clear()

"""SEC-47 and SEC-49: what one worker can see or do to another, and what the public can see."""

from __future__ import annotations

import base64

import pytest
from sqlalchemy import select

from bithaul.coordinator.database.tables import leases, logs, telemetry

OCTETS = {"Content-Type": "application/octet-stream"}


@pytest.fixture
def two(run_site):
    """Workers a and b, registered; b holds a lease. Returns site, headers of a and of b, task of b."""
    registered = {}
    for client_id in ("worker-a", "worker-b"):
        headers = run_site.worker(client_id)
        message = {"codecs": ["int8-block-v1"], "weight_formats": ["weights-v1"]}
        run = run_site.http.post("/register", json=message, headers=headers).json()["run"]
        able = {
            "device": "secret-device",
            "threads": 1,
            "memory_bytes": 1,
            "tokens_per_second": 50.0,
            "software": "1",
        }
        ready = {**message, "layout_hash": run["layout_hash"], "capabilities": able}
        assert run_site.http.post("/register", json=ready, headers=headers).json()["worker"] == client_id
        registered[client_id] = headers
    task = run_site.http.get("/work", headers=registered["worker-b"]).json()
    return run_site, registered["worker-a"], registered["worker-b"], task


def open_leases(site):
    with site.c.database.read() as connection:
        return [row._asdict() for row in connection.execute(select(leases).order_by(leases.c.id))]


def test_sec_47_a_cannot_finish_a_task_of_b(two):
    """Wrong result: knowing number and fence of a lease is enough to deliver or end it."""
    site, a, b, task = two
    before = open_leases(site)
    for fence in (task["fence"], "0" * 32):
        path = f"/gradient?task={task['task']}&fence={fence}"
        response = site.http.post(path, content=b"x" * 3000, headers={**a, **OCTETS})
        assert response.status_code in (403, 404, 409), response.text
    assert open_leases(site) == before
    assert site.http.get("/work", headers=b).json()["fence"] == task["fence"]


def test_sec_47_a_cannot_heartbeat_or_release_for_b(two):
    site, a, b, task = two
    before = open_leases(site)
    for extra in ({}, {"outcome": "released"}, {"outcome": "failed", "code": "x"}, {"tokens": 10**9}):
        message = {"task": task["task"], "fence": task["fence"], **extra}
        response = site.http.post("/heartbeat", json=message, headers=a)
        assert response.status_code in (200, 403, 404, 409), response.text
        if response.status_code == 200:
            assert response.json()["lease_open"] is False
    assert open_leases(site) == before
    beat = {"task": task["task"], "fence": task["fence"]}
    assert site.http.post("/heartbeat", json=beat, headers=b).json()["lease_open"] is True


def test_sec_47_a_cannot_read_the_lease_of_b(two):
    site, a, _, task = two
    own = site.http.get("/work", headers=a)
    assert own.status_code == 200
    assert own.json()["task"] != task["task"]
    assert task["fence"] not in own.text


def test_sec_47_a_cannot_touch_an_upload_of_b(two):
    """Wrong result: an upload's address is enough to read how far it is, to write into it or to end it."""
    site, a, b, task = two
    told = {"task": str(task["task"]), "fence": task["fence"]}
    about = ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in told.items())
    tus = {"Tus-Resumable": "1.0.0"}
    length = int(site.http.options("/gradient", headers={**a, **tus}).headers["tus-max-size"])
    new = {**tus, "Upload-Length": str(length), "Upload-Metadata": about}
    assert site.http.post("/gradient", headers={**a, **new}).status_code in (404, 409)
    place = site.http.post("/gradient", headers={**b, **new}).headers["location"]
    bytes_of_a = {**tus, "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
    for method in ("HEAD", "PATCH", "DELETE"):
        direct = site.http.request(method, place, headers={**a, **bytes_of_a}, content=b"x" * 10)
        by_post = {**a, **bytes_of_a, "X-HTTP-Method-Override": method}
        hidden = site.http.post(place, headers=by_post, content=b"x" * 10)
        assert (direct.status_code, hidden.status_code) == (404, 404), method
    asked = site.http.head(place, headers={**b, **tus})
    assert (asked.status_code, asked.headers["upload-offset"]) == (200, "0")


def test_sec_47_identity_comes_from_the_token_only(two):
    """Wrong result: a name in the body, the query or a header decides who speaks."""
    site, a, _, _ = two
    for name in ("worker", "client_id", "worker_id", "name"):
        assert site.http.post("/heartbeat", json={name: "worker-b"}, headers=a).status_code == 422
        entry = {"time": 1, "level": "info", "event": "mine", name: "worker-b"}
        assert site.http.post("/logs", json={"entries": [entry]}, headers=a).status_code == 422
    entry = {"time": 1, "level": "info", "event": "mine", "fields": {"worker": "worker-b"}}
    forged = {**a, "X-Worker": "worker-b", "X-Client-Id": "worker-b"}
    response = site.http.post("/logs?worker=worker-b", json={"entries": [entry]}, headers=forged)
    assert response.status_code == 204
    with site.c.database.read() as connection:
        assert {row.worker for row in connection.execute(select(logs))} == {"worker-a"}


def test_sec_47_an_unregistered_worker_is_told_so(run_site):
    headers = run_site.worker("stranger")
    for response in (
        run_site.http.get("/work", headers=headers),
        run_site.http.post("/heartbeat", json={}, headers=headers),
    ):
        assert (response.status_code, response.json()["code"]) == (410, "not_registered")


def test_sec_46_what_a_worker_tells_takes_a_bounded_place(two):
    """Wrong result: one worker fills the disk of all, by logs of 25 MB a minute or a point for each beat."""
    site, headers, _, _ = two
    entry = {"time": 1.0, "level": "info", "event": "e" * 200, "fields": {"text": "x" * 8000}}

    def kept(table, column):
        with site.c.database.read() as connection:
            texts = connection.execute(select(column).select_from(table)).scalars().all()
        return len(texts), sum(len(str(text)) for text in texts)

    for _ in range(5):
        answer = site.http.post("/logs", json={"entries": [entry] * 100}, headers=headers)
        assert answer.status_code == 204
    assert 100 < kept(logs, logs.c.fields)[0] < 150
    assert kept(logs, logs.c.fields)[1] < 2**20
    site.clock.time += 61
    site.http.post("/logs", json={"entries": [entry] * 10}, headers=headers)
    assert kept(logs, logs.c.fields)[0] > 130, "a minute later it may go on"
    before = kept(telemetry, telemetry.c.id)[0]
    for tokens in range(1, 101):
        beat = {"tokens": tokens, "loss": 1.0}
        assert site.http.post("/heartbeat", json=beat, headers=headers).status_code == 200
        site.clock.time += 0.1
    assert 5 <= kept(telemetry, telemetry.c.id)[0] - before <= 11


def test_sec_49_status_and_metrics_show_no_names(two):
    site, a, _, task = two
    public = site.http.get("/status")
    assert public.status_code == 200
    assert site.http.get("/metrics").status_code == 401
    assert site.http.get("/metrics", headers=a).status_code == 403
    metrics = site.http.get("/metrics", headers=site.admin())
    assert metrics.status_code == 200
    assert metrics.headers["content-type"].startswith("text/plain")
    assert "# TYPE bithaul_http_requests_total counter" in metrics.text
    assert 'route="/register"' in metrics.text
    health = site.http.get("/health")
    needles = ["worker-a", "worker-b", "operator", "secret-device", task["fence"], *site.secrets.values()]
    for response in (public, metrics, health):
        assert not [needle for needle in needles if needle in response.text]


def test_sec_49_labels_do_not_grow_with_what_peers_send(site):
    """Wrong result: a scanner fills the memory with one time series per path or method."""
    for i in range(20):
        site.http.get(f"/nope-{i}")
        site.http.request(f"METHOD{i}", "/status")
        site.http.get(f"/weights/{i}")
    text = site.http.get("/metrics", headers=site.admin()).text
    assert "nope-" not in text
    assert "METHOD" not in text
    assert "/weights/7" not in text

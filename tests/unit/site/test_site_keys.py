"""Keys and the install page: a secret once, what the lines do in a real shell, the page that turns green."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from sqlalchemy import insert, select

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import fleet
from bithaul.coordinator.identity.clients import SecretHasher, create_client, find
from bithaul.coordinator.identity.tables import audit, clients
from bithaul.coordinator.queries.installer import install_lines
from bithaul.coordinator.queries.wheel import build_wheel, wheel_name
from bithaul.exchange.messages import ADMIN_SCOPE


@pytest.fixture
def own(make_coordinator: Callable[..., Coordinator]) -> Coordinator:
    return make_coordinator()


def secret_in(text: str) -> str:
    return html.unescape(re.search(r'<pre id="secret">([^<]+)</pre>', text)[1])


def mark_in(text: str, key: str) -> str:
    """What the form says that rotates this key."""
    return html.unescape(
        re.search(rf'action="/admin/keys/{key}/rotate">.*?name="mark" value="([^"]+)"', text, re.S)[1]
    )


def proves(c: Coordinator, client: str, secret: str) -> bool:
    with c.database.read() as connection:
        row = find(connection, client)
    return SecretHasher.of(c).proves(row, secret, now=c.clock.now())


def test_a_key_is_made_and_its_secret_shown_once(own: Coordinator, visit) -> None:
    site = visit(own)
    made = site.post("/admin/install", data={"name": "Kitchen-Laptop"})
    secret = secret_in(made.text)
    assert made.headers["cache-control"] == "no-store"
    assert secret.startswith("bhw_")
    assert proves(own, "kitchen-laptop", secret)
    for path in ("/admin/keys", "/admin/install", "/admin", "/admin/keys.json", "/admin/logs"):
        assert secret not in site.get(path).text, path
    assert site.post("/admin/install", data={"name": "kitchen-laptop"}).status_code == 409
    assert site.post("/admin/install", data={"name": "../etc"}).status_code == 422


def test_rotate_disable_enable_delete(own: Coordinator, visit) -> None:
    site = visit(own)
    old = create_client(own, "w1", scope="bithaul.worker")
    mark = mark_in(site.get("/admin/keys").text, "w1")
    rotated = site.post("/admin/keys/w1/rotate", data={"grace": "600", "mark": mark})
    new = secret_in(rotated.text)
    assert proves(own, "w1", new)
    assert proves(own, "w1", old), "in its grace"
    site.post(
        "/admin/keys/w1/rotate", data={"grace": "0", "mark": mark_in(site.get("/admin/keys").text, "w1")}
    )
    assert not proves(own, "w1", old)
    assert not proves(own, "w1", new)
    answer = site.post("/admin/keys/w1/disable")
    assert "is disabled" in site.get(answer.headers["location"]).text
    site.post("/admin/keys/w1/enable")
    site.post("/admin/keys/w1/delete")
    with own.database.read() as connection:
        assert find(connection, "w1") is None
        query = select(audit.c.action).where(audit.c.actor == "ada").order_by(audit.c.id)
        done = [action for (action,) in connection.execute(query)]
    assert done[-5:] == ["client.rotate", "client.rotate", "client.disable", "client.enable", "client.delete"]
    assert site.post("/admin/keys/w1/delete").status_code == 404
    assert site.post("/admin/keys/w1/explode").status_code == 422


def test_a_form_that_rotates_does_it_once(own: Coordinator, visit) -> None:
    """Catches: a page of a secret loaded again, which kills the secret that it has just shown."""
    site = visit(own)
    create_client(own, "w1", scope="bithaul.worker")
    sent = {"grace": "0", "mark": mark_in(site.get("/admin/keys").text, "w1")}
    secret = secret_in(site.post("/admin/keys/w1/rotate", data=sent).text)
    again = site.post("/admin/keys/w1/rotate", data=sent)
    assert (again.status_code, again.headers["location"]) == (303, "/admin/keys?q=w1&shown=w1")
    assert proves(own, "w1", secret)
    told = site.get(again.headers["location"]).text
    assert "it is not shown twice. Nothing was changed now." in told
    assert secret not in told
    fresh = secret_in(site.post("/admin/keys/w1/rotate", data=sent | {"mark": mark_in(told, "w1")}).text)
    assert proves(own, "w1", fresh)
    assert not proves(own, "w1", secret)
    assert site.get("/admin/keys/w1/rotate").headers["location"] == "/admin/keys?q=w1"
    assert "not shown twice" not in site.get("/admin/keys?shown=nobody").text


def test_a_name_that_cannot_be_is_told_in_the_form(own: Coordinator, visit) -> None:
    """Catches: a bare "Conflict" and an empty form, for a name taken or a page loaded again."""
    site = visit(own)
    form = site.get("/admin/install").text
    sent = {"name": "Kitchen-Laptop", "since": re.search(r'name="since" value="([^"]+)"', form)[1]}
    secret = secret_in(site.post("/admin/install", data=sent).text)
    again = site.post("/admin/install", data=sent)
    assert again.status_code == 409
    assert "its secret was shown then; it is not shown twice" in again.text
    assert "turns green" in again.text
    assert secret not in again.text
    own.clock.time += 60
    later = sent | {"since": re.search(r'name="since" value="([^"]+)"', site.get("/admin/install").text)[1]}
    own.clock.time -= 60
    create_client(own, "ops", scope=ADMIN_SCOPE)
    for name, status, words in (
        ("Kitchen-Laptop", 409, "has a key already"),
        ("ops", 409, "application&#39;s key"),
        ("../etc", 422, "the first is a letter or digit"),
    ):
        told = site.post("/admin/install", data=later | {"name": name})
        assert told.status_code == status, name
        assert html.unescape(words) in html.unescape(told.text), name
        assert f'name="name" value="{name}"' in told.text, name
        assert ('href="/admin/keys?q=kitchen-laptop"' in told.text) == (name == "Kitchen-Laptop"), name
        assert "not shown twice" not in told.text
    assert proves(own, "kitchen-laptop", secret)


@pytest.mark.parametrize("what", ["rotate", "disable", "enable", "delete"])
def test_keys_of_operators_are_not_changed_here(own: Coordinator, visit, what: str) -> None:
    """Catches: a stolen session that makes itself an admin client."""
    secret = create_client(own, "ops", scope=ADMIN_SCOPE)
    answer = visit(own).post(f"/admin/keys/ops/{what}", data={"grace": "0"})
    assert answer.status_code == 403
    assert proves(own, "ops", secret)


def test_the_install_page_turns_green_when_the_worker_registers(own: Coordinator, visit) -> None:
    site = visit(own)
    site.post("/admin/install", data={"name": "w1"})
    waiting = site.get("/admin/install/w1/state").text
    assert "turns green" in waiting
    assert 'hx-trigger="every 2s"' in waiting
    with own.database.write() as connection:
        fleet.insert_worker(connection, "w1", now=own.clock.now())
    arrived = site.get("/admin/install/w1/state").text
    assert "has arrived" in arrived
    assert "hx-trigger" not in arrived


def test_a_thousand_keys_come_in_pages_of_one_size(own: Coordinator, visit) -> None:
    """Catches: a page of megabytes, a key that no page shows, an export of the page only."""
    with own.database.write() as connection:
        rows = [
            {
                "id": f"pc-{i:04d}",
                "secret_hash": "0" * 64,
                "secret_hint": f"bhw_{i:04d}",
                "scope": "bithaul.worker",
                "cv": 1,
                "disabled": False,
                "created_at": own.clock.now(),
                "rotated_at": own.clock.now(),
                "last_used_at": own.clock.now(),
                "last_used_from": f"10.0.{i // 250}.{i % 250}",
            }
            for i in range(1000)
        ]
        connection.execute(insert(clients), rows)
    site = visit(own)
    seen: list[str] = []
    address = "/admin/keys"
    while address:
        text = site.get(address).text
        assert len(text) < 300_000, len(text)
        names = re.findall(r'<tr id="key-([^"]+)"', text)
        assert len(names) == 50
        seen += names
        following = re.search(r'href="([^"]+)" rel="next"', text)
        address = html.unescape(following[1]) if following else ""
    assert seen == [f"pc-{i:04d}" for i in range(1000)]
    assert len(site.get("/admin/keys.json").json()) == 1000
    assert [key["id"] for key in site.get("/admin/keys.json?q=PC-0777").json()] == ["pc-0777"]
    found = site.get("/admin/keys?q=10.0.3.249").text
    assert re.findall(r'<tr id="key-([^"]+)"', found) == ["pc-0999"]
    assert "No key matches" in site.get("/admin/keys?q=nobody").text


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash on this machine")
def test_the_bash_line_carries_hostile_values_as_one_word(tmp_path: Path) -> None:
    """Catches: an address or secret that the shell runs, splits or expands; a secret among the arguments."""
    url, secret = "https://host/'; touch pwned; echo '$(id)`id`", "bhw_'\"$HOME `id` \\"
    lines = install_lines(url, worker="w1", secret=secret)
    fake = tmp_path / ".bithaul" / "env" / "bin"
    fake.mkdir(parents=True)
    record = (
        f"#!{sys.executable}\nimport json, os, sys\n"
        f"with open({str(tmp_path)!r} + '/' + os.path.basename(sys.argv[0]), 'w') as file:\n"
        "    json.dump([sys.argv[1:], os.environ.get('BITHAUL_CLIENT_SECRET')], file)\n"
    )
    for name in ("python3", "pip", "bithaul"):
        (fake / name).write_text(record)
        (fake / name).chmod(0o755)
    environment = {"HOME": str(tmp_path), "PATH": f"{fake}:/usr/bin:/bin"}
    done = subprocess.run(
        ["bash", "-eu"],
        input=lines.bash,
        text=True,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "pwned").exists()
    arguments, given = json.loads((tmp_path / "bithaul").read_text())
    assert given == secret
    assert arguments[arguments.index("--url") + 1] == url
    assert arguments[arguments.index("--client-id") + 1] == "w1"
    for name in ("python3", "pip", "bithaul"):
        assert secret not in str(json.loads((tmp_path / name).read_text())[0]), name
    installed = json.loads((tmp_path / "pip").read_text())[0]
    assert installed[-1] == f"{url}/install/{wheel_name()}"


def test_plain_http_on_a_network_is_said_aloud() -> None:
    lines = install_lines("http://192.168.1.5:8817", worker="w1", secret="bhw_x")
    assert lines.bash.endswith("--allow-insecure-lan")
    assert "--allow-insecure-lan" not in install_lines("https://h", worker="w1", secret="bhw_x").bash
    assert "--allow-insecure-lan" in lines.powershell
    assert "--allow-insecure-lan" in lines.docker


def test_powershell_quotes_are_doubled() -> None:
    lines = install_lines("https://h", worker="w1", secret="bhw_'; calc; '")
    assert "$env:BITHAUL_CLIENT_SECRET = 'bhw_''; calc; '''" in lines.powershell


def test_the_served_wheel_installs_and_runs(own: Coordinator, visit, tmp_path: Path) -> None:
    """Catches: a wheel that pip refuses, misses data files, or differs each time."""
    site = visit(own)
    answer = site.get(f"/install/{wheel_name()}", headers={"cookie": ""})
    assert answer.status_code == 200
    assert answer.content == build_wheel()
    assert site.get("/install/other-1.0-py3-none-any.whl").status_code == 422
    with zipfile.ZipFile(BytesIO(answer.content)) as archive:
        names = archive.namelist()
    assert "bithaul/coordinator/site/static/vendor/htmx.min.js" in names
    assert not [n for n in names if "__pycache__" in n]
    wheel = tmp_path / wheel_name()
    wheel.write_bytes(answer.content)
    target = tmp_path / "site"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--no-index",
            "--target",
            str(target),
            str(wheel),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    run = subprocess.run(
        [sys.executable, "-m", "bithaul", "--version"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(target)},
        check=False,
    )
    assert run.returncode == 0, run.stderr

"""docs/how-to/postgresql.md as somebody follows it: a run on PostgreSQL, its backup, the restored run.

The commands are read from the page and run by a shell. Only what must differ here is put in their place: the
server's address, the name of the role (the test server's own user is called bithaul), and a model that trains
in seconds.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "servers"))
from postgresql_server import PASSWORD, postgres, postgres_server  # noqa: F401 - fixtures

pytestmark = [pytest.mark.process, pytest.mark.postgres]

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "postgresql.md"
TINY = "hidden_size = 64\nintermediate_size = 128\nnum_layers = 2\nnum_heads = 4\ncontext_length = 96\n"
OPTIONS = "--preset ../tiny.toml --examples 600 --task-seconds 1 --budget-tokens 60000 --json"


def blocks(kind: str, title: str) -> list[str]:
    """The fenced blocks below a heading of the page."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {title}\n")[1].split("\n## ")[0]
    return re.findall(rf"```{kind}\n(.*?)```", section, re.DOTALL)


def replaced(text: str, *pairs: tuple[str, str]) -> str:
    for old, new in pairs:
        assert old in text, f"the page no longer says {old!r}"
        text = text.replace(old, new)
    return text


class Follower:
    """Somebody at a shell, in a folder, with the tools of PostgreSQL and `bithaul` in the path."""

    def __init__(self, folder: Path, server: Any) -> None:
        self.folder, self.server = folder, server
        tools = folder / "tools"
        tools.mkdir()
        (tools / "bithaul").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m bithaul "$@"\n')
        (tools / "bithaul").chmod(0o755)
        self._path = f"{tools}:{server.bin}:{os.environ['PATH']}"

    def environment(self, *, password: str) -> dict[str, str]:
        told = {"PATH": self._path, "PGHOST": "127.0.0.1", "PGPORT": str(self.server.port)}
        told |= {"PGUSER": "bithaul", "PGPASSWORD": password, "BITHAUL_CALIBRATION_SECONDS": "0.5"}
        return {**os.environ, **told}

    def shell(self, text: str, *, password: str = PASSWORD, seconds: float = 240) -> str:
        """What it printed. A command that fails, or does not end, is a failure."""
        done = subprocess.run(
            ["bash", "-euc", text],
            cwd=self.folder,
            env=self.environment(password=password),
            capture_output=True,
            text=True,
            timeout=seconds,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def up(self, run: str, options: str) -> dict[str, Any]:
        """`bithaul up` until it has ended by itself: nothing of it is left, here or at the server."""
        said = self.shell(f"bithaul up --dir runs/{run} {options}")
        left = [
            p for p in psutil.process_iter(["cmdline"]) if f"runs/{run}" in " ".join(p.info["cmdline"] or ())
        ]
        assert left == []
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'bithaul'"
        connection = self.server.connect("postgres")
        assert connection.execute(query).fetchone() == (0,)
        connection.close()
        return dict(json.loads(said.splitlines()[-1]))


@pytest.fixture
def follower(tmp_path: Path, postgres: Any) -> Any:  # noqa: F811 - the fixture
    (tmp_path / "tiny.toml").write_text(TINY, encoding="utf-8")
    yield Follower(tmp_path, postgres)
    for name in ("demo", "again"):
        postgres.run(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    postgres.run("DROP ROLE IF EXISTS trainer")


def test_a_run_on_postgresql_is_switched_on_backed_up_and_restored_as_the_page_says(follower: Any) -> None:
    """Wrong results: a step that fails, or leaves a secret to others; `up` that never ends; a restored
    run that lacks a row or a file, knows no worker, or cannot go on.
    """
    server, folder = follower.server, follower.folder
    here = f"127.0.0.1:{server.port}"
    [sql] = blocks("sql", "Switch a new run")
    for statement in replaced(
        sql, ("ROLE bithaul", "ROLE trainer"), ("OWNER bithaul", "OWNER trainer")
    ).split(";"):
        if statement.strip():
            server.run(statement)
    _, switch = blocks("sh", "Switch a new run")
    *before, last = switch.strip().splitlines()
    assert last == "bithaul up --dir runs/demo"
    told = "postgresql://bithaul:choose%20one@db.example:5432/demo"
    follower.shell(replaced("\n".join(before), (told, f"postgresql://trainer:choose%20one@{here}/demo")))
    toml = folder / "runs" / "demo" / "bithaul.toml"
    assert toml.stat().st_mode & 0o077 == 0
    first = follower.up("demo", OPTIONS.replace("../", ""))
    assert not (folder / "runs" / "demo" / "coordinator.db").exists()
    coordinator = Serving(follower, "demo")
    dump, restore = blocks("sh", "Back up")
    before = rows(server, "demo")
    follower.shell(
        replaced(dump, ("postgresql://bithaul@db.example/demo", f"postgresql://trainer@{here}/demo")),
        password="choose one",
    )
    for name in ("demo.dump", "demo.tar"):
        assert (folder / name).stat().st_mode & 0o077 == 0, f"{name} holds secrets, and others can read it"
    coordinator.stop()
    follower.shell(
        replaced(restore, ("--owner=bithaul", "--owner=trainer"), ("--role=bithaul", "--role=trainer"))
    )
    assert rows(server, "again") in (before, rows(server, "demo")), "old versions may go while it is dumped"
    again = folder / "runs" / "again"
    address = (again / "bithaul.toml").read_text(encoding="utf-8")
    (again / "bithaul.toml").write_text(address.replace("/demo", "/again"), encoding="utf-8")
    shutil.rmtree(folder / "runs" / "demo")
    server.run("DROP DATABASE demo WITH (FORCE)")
    coordinator = Serving(follower, "again")
    secret = (again / "secrets" / "worker-1.secret").read_text(encoding="utf-8").strip()
    token = coordinator.token("worker-1", secret)
    weights = coordinator.http.get("/weights/current", headers=token).json()
    whole = coordinator.http.get(f"/weights/{weights['version']}", headers=token)
    assert (weights["version"], len(whole.content)) == (first["versions"], weights["size"])
    coordinator.stop()
    more = follower.up("again", "--budget-tokens 90000 --json")
    assert int(more["versions"]) > int(first["versions"])


TABLES = ("runs", "versions", "tasks", "leases", "reports", "workers", "clients", "people", "signing_keys")


def rows(server: Any, database: str) -> list[str]:
    """All rows of the tables that a stopped worker and a serving coordinator leave alone."""
    connection = server.connect(database)
    found = [row for table in TABLES for (row,) in connection.execute(f"SELECT t::text FROM {table} t")]
    connection.close()
    return sorted(found)


class Serving:
    """`bithaul coordinator` on a run, until `stop`."""

    def __init__(self, follower: Follower, run: str) -> None:
        self._process = subprocess.Popen(
            ["bithaul", "coordinator", "--dir", f"runs/{run}", "--port", "0", "--json"],
            cwd=follower.folder,
            env=follower.environment(password=PASSWORD),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            executable=str(follower.folder / "tools" / "bithaul"),
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the coordinator did not start"
        self.http = httpx2.Client(base_url=json.loads(line)["url"], trust_env=False, timeout=20)

    def token(self, client_id: str, secret: str) -> dict[str, str]:
        fields = {"grant_type": "client_credentials"}
        answer = self.http.post("/connect/token", data=fields, auth=(client_id, secret))
        assert answer.status_code == 200, answer.text
        return {"Authorization": f"Bearer {answer.json()['access_token']}"}

    def stop(self) -> None:
        self.http.close()
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(30) == 0
        assert self._process.stdout is not None
        self._process.stdout.close()

"""SEC-51, 52, 58: the first start and what `bithaul check --deploy` names."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import closing

import pytest
from sqlalchemy import update

from bithaul.cli import main
from bithaul.coordinator.context import open_coordinator
from bithaul.coordinator.identity.apps import ensure_admin_site, register_app
from bithaul.coordinator.identity.people import create_person
from bithaul.coordinator.identity.secretfiles import FIRST_PASSWORD, write_note
from bithaul.coordinator.identity.tables import clients, people
from bithaul.coordinator.settings import Settings

SAFE = 'public_url = "https://train.example"\n'


@pytest.fixture
def folder(tmp_path):
    """A run's folder with safe settings."""
    directory = tmp_path / "run"
    directory.mkdir()
    (directory / "bithaul.toml").write_text(SAFE, encoding="utf-8")
    with closing(open_coordinator(Settings(directory=directory))) as c:
        ensure_admin_site(c)
    return directory


def check(folder, capsys, *options):
    with pytest.raises(SystemExit) as stop:
        main.run(["check", "--dir", str(folder), "--json", *options])
    return int(stop.value.code or 0), capsys.readouterr().out


def findings(folder, capsys):
    code, out = check(folder, capsys, "--deploy")
    told = json.loads(out.splitlines()[0])
    assert (code == 0) == told["ok"] == (not told["findings"])
    assert code in (0, 2)
    return {finding["setting"] for finding in told["findings"]}


def test_sec_52_a_safe_folder_has_no_findings(folder, capsys):
    assert findings(folder, capsys) == set()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (
            'public_url = "http://192.168.1.7"\nallow_insecure_lan = true',
            {"public_url", "allow_insecure_lan"},
        ),
        (SAFE + "allow_insecure_lan = true", {"allow_insecure_lan"}),
        ('host = "0.0.0.0"\npublic_url = "http://127.0.0.1:1"', {"host"}),
        (SAFE + 'trusted_proxies = ["0.0.0.0/0"]', {"trusted_proxies"}),
        (SAFE + 'trusted_proxies = ["10.0.0.1"]', set()),
        (SAFE + 'host = "0.0.0.0"', set()),
    ],
)
def test_sec_52_each_unsafe_setting_is_named(folder, capsys, settings, named):
    """Wrong result: an unsafe setting that nobody is told of."""
    (folder / "bithaul.toml").write_text(settings, encoding="utf-8")
    assert findings(folder, capsys) >= named
    assert findings(folder, capsys) - named <= {"client bithaul-admin"}


def test_sec_52_each_unsafe_file_and_row_is_named(folder, capsys):
    with closing(open_coordinator(Settings(directory=folder, public_url="https://train.example"))) as c:
        create_person(c, "ann")
        register_app(c, "app", redirect_uris=["https://app.example/cb"])
        with c.database.write() as connection:
            connection.execute(update(clients).where(clients.c.id == "app").values(require_pkce=False))
        note = write_note(folder / "secrets", FIRST_PASSWORD, "x")
        assert note.stat().st_mode & 0o777 == 0o600
    database = folder / "coordinator.db"
    assert database.stat().st_mode & 0o777 == 0o600
    database.chmod(0o644)
    (folder / "bithaul.toml").chmod(0o666)
    (folder / "secrets" / "pepper").chmod(0o640)
    code, _ = check(folder, capsys, "--deploy")  # the pepper is refused before anything is opened with it
    assert code == 2
    (folder / "secrets" / "pepper").chmod(0o600)
    named = findings(folder, capsys)
    wanted = {"person ann", "client app", str(note), str(database), str(folder / "bithaul.toml")}
    assert named == wanted
    with closing(open_coordinator(Settings(directory=folder))) as c, c.database.write() as connection:
        connection.execute(update(people).values(must_change=False))
        connection.execute(update(clients).values(require_pkce=True))
    for path in (database, folder / "bithaul.toml"):
        path.chmod(0o600)
    note.unlink()
    assert findings(folder, capsys) == set()


@pytest.mark.parametrize(
    "settings", ['public_url = "http://192.168.1.7"', 'public_url = "http://train.example"', "typo = 1"]
)
def test_sec_52_unsafe_settings_do_not_even_start(folder, capsys, settings):
    (folder / "bithaul.toml").write_text(settings, encoding="utf-8")
    assert check(folder, capsys)[0] == 2
    with pytest.raises(SystemExit) as stop:
        main.run(["coordinator", "--dir", str(folder)])
    assert stop.value.code == 2


@pytest.mark.process
def test_sec_51_the_first_start_makes_one_admin_and_tells_the_password_once(tmp_path):
    """Wrong result: a password in a log, in a file others can read, or a second one at the next start."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}

    def start():
        command = [sys.executable, "-m", "bithaul", "coordinator", "--dir", str(tmp_path), "--port", "0"]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        assert process.stdout.readline().startswith("listening on")
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
        assert process.returncode == 0
        return err

    first = start()
    note = tmp_path / "secrets" / FIRST_PASSWORD
    password = note.read_text(encoding="utf-8").strip()
    assert note.stat().st_mode & 0o777 == 0o600
    assert f"as admin with the password in {note}" in first
    assert password not in first
    second = start()
    assert "as admin" not in second
    assert note.read_text(encoding="utf-8").strip() == password

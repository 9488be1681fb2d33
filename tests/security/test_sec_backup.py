"""SEC-02 and SEC-60: what a backup of a running coordinator holds, and whom a restored one lets in."""

from __future__ import annotations

import json
import sqlite3
import stat
import tarfile
from contextlib import closing

import pytest

from bithaul.cli.main import run
from bithaul.coordinator.identity.apps import register_app
from bithaul.coordinator.identity.clients import rotate_client
from bithaul.coordinator.identity.people import create_person

pytestmark = pytest.mark.usefixtures("sqlite_only")  # PostgreSQL is backed up by its own tools

PASSWORD = "correct horse battery staple"
WAYS_IN = ("sessions", "sign_ins", "authorization_codes", "denied_tokens", "failed_attempts", "signing_keys")
AUTHORIZE = (
    "/connect/authorize?response_type=code&client_id=app&redirect_uri=https%3A%2F%2Fapp.example%2Fcb"
    "&scope=openid&nonce=n&code_challenge=" + "c" * 43 + "&code_challenge_method=S256"
)


@pytest.fixture
def bithaul(capfd):
    """A `bithaul backup` command: the object on its last line."""

    def call(*words):
        with pytest.raises(SystemExit) as ended:
            run(["backup", *map(str, words), "--json"])
        told = json.loads(capfd.readouterr().out.splitlines()[-1])
        assert (ended.value.code == 0) is ("error" not in told), told
        return told

    return call


def lived_in(site):
    """A day's worth of secrets: for machines, a script, an application and people. All that must not leak."""
    site.person()
    browser = site.browser()
    browser.enter()
    app = register_app(site.c, "app", redirect_uris=["https://app.example/cb"])
    code = browser.get(AUTHORIZE).headers["location"].split("code=")[1].split("&")[0]
    form = browser.get("/account").text.split('name="csrf_token" value="')[1].split('"')[0]
    tokens = [site.token("w1"), site.admin()["Authorization"].removeprefix("Bearer ")]
    first = create_person(site.c, "new")
    graced = site.client("w2")
    site.secrets["w2"] = rotate_client(site.c, "w2", grace_seconds=600)
    site.ask({"grant_type": "client_credentials"}, auth=("w1", "bhw_a-wrong-secret-somebody-typed"))
    revoked = site.token("w1")
    site.http.post("/connect/revoke", data={"token": revoked}, auth=("w1", site.secrets["w1"]))
    said = [app, code, form, *tokens, *[t.split(".")[2] for t in tokens], first, graced, PASSWORD, revoked]
    files = [p.read_bytes() for p in (site.directory / "secrets").iterdir()]
    assert len(files) >= 2
    needles = [*said, *site.secrets.values(), *browser.cookies.values(), "a-wrong-secret-somebody"]
    return browser, [needle.encode() for needle in needles] + files


def dumped(folder, file, *, clients=4):
    """Every member and, of the database, every value of every row, as bytes."""
    with tarfile.open(file) as archive:
        for member in archive:
            content = archive.extractfile(member).read()
            yield content
            if member.name == "coordinator.db":
                (folder / "copy.db").write_bytes(content)
    with closing(sqlite3.connect(folder / "copy.db")) as rows:
        tables = [name for (name,) in rows.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        assert set(WAYS_IN) <= set(tables)
        for table in WAYS_IN:
            assert rows.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), table
        assert rows.execute("SELECT count(*) FROM clients").fetchone()[0] >= clients
        yield "\n".join(rows.iterdump()).encode()


@pytest.fixture
def backed_up(run_site, tmp_path, bithaul):
    """A running coordinator, its backup, a browser that is signed in, and what must not be in the file."""
    browser, needles = lived_in(run_site)
    out = tmp_path / "run.bithaul"
    made = bithaul("create", "--dir", run_site.directory, "--out", out)
    assert made["version"] == 1
    return run_site, out, browser, needles


def test_sec_02_a_backup_holds_no_secret_code_cookie_or_token(backed_up, tmp_path):
    """Wrong result: who finds a backup signs in, fetches a token, or signs tokens of his own."""
    site, out, browser, needles = backed_up
    assert len(needles) >= 14
    whole = b"".join([out.read_bytes(), *dumped(tmp_path, out)])
    assert not [needle for needle in needles if needle in whole]
    with site.c.database.read() as connection:
        rows = connection.exec_driver_sql(
            "SELECT id_hash FROM sessions UNION SELECT code_hash FROM "
            "authorization_codes UNION SELECT private_pem FROM signing_keys"
        )
        stored = [value.encode() for (value,) in rows]
    assert len(stored) >= 4
    assert not [value for value in stored if value in whole]  # not even in a free page, nor encrypted
    assert browser.get("/admin").status_code == 200  # the running one was left as it was


def test_sec_60_a_backup_is_for_its_owner_only(backed_up, bithaul, tmp_path):
    """Wrong result: a mode of the umask, at the end or while it is written."""
    site, out, _, _ = backed_up
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    new = tmp_path / "new"
    bithaul("restore", out, "--dir", new, "--secrets", site.directory / "secrets")
    for path in (new / "coordinator.db", new / "secrets" / "pepper"):
        assert path.stat().st_mode & 0o077 == 0, path
    assert (new / "secrets").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ('oidc_client_secret = "SECRET"  # of the provider', "log_days"),
        ('# oidc_client_secret = "SECRET"', "log_days"),
        ("'oidc_client_secret'='SECRET'", "log_days"),
        ('oidc_client_secret = """\nSECRET"""', None),
        ('"oidc\\u005fclient_secret" = "SECRET"', None),
        ('backup_keep = 5  # oidc_client_secret = "SECRET"', None),
        ('oidc_client_secret = "SECRET"\nbackup_keep = 5  # before: SECRET', None),
    ],
)
def test_sec_02_the_providers_secret_is_in_no_backup(run_site, bithaul, tmp_path, capfd, written, kept):
    """Wrong result: the settings file is copied as it is; or a secret that cannot be found goes along."""
    secret, out = "of-the-provider-0123456789", tmp_path / "run.bithaul"
    settings = run_site.directory / "bithaul.toml"
    settings.write_text(f"log_days = 2.5\n{written.replace('SECRET', secret)}\n")
    if kept is None:
        with pytest.raises(SystemExit) as ended:
            run(["backup", "create", "--dir", str(run_site.directory), "--out", str(out)])
        told = capfd.readouterr().err
        assert ended.value.code == 2
        assert "BITHAUL_OIDC_CLIENT_SECRET" in told
        assert secret not in told
        assert not out.exists()
        return
    bithaul("create", "--dir", run_site.directory, "--out", out)
    assert secret.encode() not in b"".join([out.read_bytes(), *dumped(tmp_path, out, clients=0)])
    done = bithaul("restore", out, "--dir", tmp_path / "new")
    assert done["settings_to_give"] == ["oidc_client_secret"]
    again = (tmp_path / "new" / "bithaul.toml").read_text()
    assert "log_days = 2.5" in again
    assert secret in settings.read_text(), "the run's own file is left as it is"


def test_sec_02_a_remark_with_the_providers_secret_is_in_no_backup(run_site, tmp_path, capfd, monkeypatch):
    """Wrong results: what the environment gives is written down beside a setting and goes along; a mention
    of its name alone keeps everybody from making backups.
    """
    secret, settings = "of-the-provider-0123456789", run_site.directory / "bithaul.toml"
    monkeypatch.setenv("BITHAUL_OIDC_CLIENT_SECRET", secret)
    for remark, code in ((f"the provider knows us by {secret}", 2), ("oidc_client_secret is not here", 0)):
        settings.write_text(f"log_days = 2.5  # {remark}\n")
        with pytest.raises(SystemExit) as ended:
            run(["backup", "create", "--dir", str(run_site.directory), "--out", str(tmp_path / "b.bithaul")])
        assert ended.value.code == code
        told = capfd.readouterr().err
        assert secret not in told
        assert (tmp_path / "b.bithaul").exists() is (code == 0)


def go_on_in(site, folder):
    """The coordinator of `site` is gone; another one answers at its address, on another folder."""
    site.stop()
    site.directory = folder
    site.start()


def test_sec_60_a_restored_coordinator_serves_and_old_ways_in_are_dead(backed_up, bithaul, tmp_path):
    """Wrong results: machines locked out although the pepper was kept; a stolen token or cookie lives on."""
    site, out, browser, _ = backed_up
    old = site.worker("w1")
    assert site.http.get("/work", headers=old).status_code != 401
    done = bithaul("restore", out, "--dir", tmp_path / "new", "--secrets", site.directory / "secrets")
    assert done["clients_to_rotate"] == []
    go_on_in(site, tmp_path / "new")
    assert site.http.get("/work", headers=old).status_code == 401
    assert browser.get("/admin").status_code == 303
    headers = site.worker("w1")  # with the secret from before
    message = {"codecs": ["int8-block-v1"], "weight_formats": ["weights-v1"]}
    described = site.http.post("/register", json=message, headers=headers).json()["run"]
    able = {"device": "cpu", "threads": 1, "memory_bytes": 1, "tokens_per_second": 50.0, "software": "1"}
    ready = {**message, "layout_hash": described["layout_hash"], "capabilities": able}
    assert site.http.post("/register", json=ready, headers=headers).status_code == 200
    task = site.http.get("/work", headers=headers)
    assert (task.status_code, task.json()["base_version"]) == (200, 1)
    assert site.http.get("/weights/1", headers=headers).status_code == 200
    assert site.browser().enter().status_code == 200  # people sign in with the password they had


@pytest.fixture
def machine(run_site, tmp_path, bithaul):
    """A running coordinator with one machine, and its backup."""
    run_site.client("w1")
    out = tmp_path / "run.bithaul"
    bithaul("create", "--dir", run_site.directory, "--out", out)
    return run_site, out


def test_sec_60_without_the_pepper_secrets_are_void_and_said(machine, bithaul, tmp_path):
    """Wrong result: a restored run that locks its machines out and does not say so."""
    site, out = machine
    done = bithaul("restore", out, "--dir", tmp_path / "new")
    assert done["clients_to_rotate"] == ["w1"]
    go_on_in(site, tmp_path / "new")
    grant = {"grant_type": "client_credentials"}
    assert site.ask(grant, auth=("w1", site.secrets["w1"])).status_code == 401
    assert site.ask(grant, auth=("w1", rotate_client(site.c, "w1"))).status_code == 200


def test_sec_60_the_secrets_of_another_run_are_refused(machine, bithaul, tmp_path):
    """Wrong result: a restore that says all is well, and no machine gets in."""
    _, out = machine
    other = tmp_path / "other"
    other.mkdir(mode=0o700)
    (other / "pepper").write_bytes(b"x" * 32)
    (other / "pepper").chmod(0o600)
    told = bithaul("restore", out, "--dir", tmp_path / "new", "--secrets", other)
    assert (told["error"], "does not belong" in told["detail"]) == ("invalid_input", True)
    (other / "pepper").chmod(0o644)
    told = bithaul("restore", out, "--dir", tmp_path / "new", "--secrets", other)
    assert (told["error"], "read by others" in told["detail"]) == ("invalid_config", True)
    assert not (tmp_path / "new").exists()


def test_sec_60_a_smuggled_session_does_not_survive(machine, bithaul, tmp_path, monkeypatch):
    """Wrong result: sessions and signing keys that somebody put into a backup are believed."""
    site, _ = machine
    site.person()
    with site.c.database.write() as connection:
        connection.exec_driver_sql(
            "INSERT INTO sessions (sid, id_hash, person_id, created_at, auth_time, last_seen_at, address,"
            " agent) SELECT 's', 'h', id, 1, 1, 1, 'a', 'b' FROM people LIMIT 1"
        )
    monkeypatch.setattr("bithaul.coordinator.services.backup.forget_ways_in", lambda connection: None)
    bithaul("create", "--dir", site.directory, "--out", tmp_path / "smuggled")
    bithaul("restore", tmp_path / "smuggled", "--dir", tmp_path / "new")

    def counts(folder):
        with closing(sqlite3.connect(folder / "coordinator.db")) as rows:
            return [rows.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in WAYS_IN]

    assert counts(site.directory)[0] == 1
    assert counts(site.directory)[-1] == 2
    assert counts(tmp_path / "new") == [0] * len(WAYS_IN)

"""A real coordinator for the security tests: a real database, uvicorn in a thread, real HTTP.

The database is SQLite; the tests of ON_BOTH run on PostgreSQL too, where a server's programs are installed.
`BITHAUL_TEST_DATABASE=postgresql pytest tests/security` runs all of them on PostgreSQL instead.
"""

from __future__ import annotations

import contextlib
import html
import json
import logging
import os
import re
import shutil
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from sqlalchemy import update

from bithaul.coordinator.app import create_app
from bithaul.coordinator.commands.create_run import CreateRun, create_run
from bithaul.coordinator.context import Coordinator, open_coordinator
from bithaul.coordinator.identity.clients import create_client
from bithaul.coordinator.identity.passwords import hash_password
from bithaul.coordinator.identity.people import create_person
from bithaul.coordinator.identity.tables import people
from bithaul.coordinator.identity.throttle import Limits
from bithaul.coordinator.server import Server, bind
from bithaul.coordinator.settings import Settings
from bithaul.corpus.build import build_corpus
from bithaul.corpus.example import Example
from bithaul.exchange.messages import ADMIN_SCOPE, WORKER_SCOPE
from bithaul.model.config import ModelConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "servers"))
sys.path.insert(0, str(Path(__file__).parent))
from foreign_provider import ADMINS, CLIENT, PASSWORD, SECRET, WIDE, Provider
from postgresql_server import PostgresServer, postgres, postgres_server  # noqa: F401 - fixtures

DATABASE = os.environ.get("BITHAUL_TEST_DATABASE", "sqlite")
ON_BOTH = {  # what is decided by rows that processes share
    "test_sec_02_no_secret_and_no_token_rests_in_the_run_folder",
    "test_sec_03_rotation_ends_old_tokens_on_every_route_also_after_a_restart",
    "test_sec_03_a_client_deleted_and_made_again_shares_no_version",
    "test_sec_04_rotation_during_an_upload",
    "test_sec_04_rotation_while_the_update_is_judged",
    "test_sec_05_old_secret_fails_at_once_and_a_grace_ends",
    "test_sec_10_sign_in_is_throttled_and_others_get_in",
    "test_sec_15_claims",
    "test_sec_15_a_denied_token_is_refused",
    "test_sec_16_signed_tokens_with_odd_names_are_a_401",
    "test_sec_17_key_rotation",
    "test_sec_21_fifty_at_once_and_one_wins",
    "test_sec_21_only_one_update_wins",
    "test_sec_21_a_replay_ends_what_the_code_gave",
    "test_sec_22_a_code_is_bound_and_short_lived",
    "test_sec_30_end_one_end_all",
    "test_sec_30_sessions_survive_a_restart_and_their_end_does_too",
    "test_sec_47_a_cannot_finish_a_task_of_b",
    "test_sec_53_who_did_what",
}

START = 1_800_000_000.0
FENCE = "0" * 32


@dataclass
class ManualClock:
    """Time moves when a test says so."""

    time: float = START

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time


@dataclass(frozen=True)
class Operation:
    """One operation of the published API, with harmless values filled in."""

    method: str
    path: str
    scope: str | None
    body: object


@dataclass
class Browser:
    """Keeps cookies by name, whatever their attributes, and follows no redirect by itself."""

    site: Site
    cookies: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)

    def ask(self, method: str, url: str, *, headers=None, **options: object) -> httpx2.Response:
        url = url.removeprefix(self.site.c.settings.base_url)
        sent = {**self.headers, **(headers or {})}
        if self.cookies:
            sent["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        response = self.site.http.request(method, url, headers=sent, **options)
        self.site.http.cookies.clear()
        for header in response.headers.get_list("set-cookie"):
            name, _, rest = header.partition("=")
            value = rest.partition(";")[0]
            if value:
                self.cookies[name] = value
            else:
                self.cookies.pop(name, None)
        return response

    def get(self, url: str, **options: object) -> httpx2.Response:
        return self.ask("GET", url, **options)

    def follow(self, url: str, *, stop: str = "\0") -> httpx2.Response:
        """Follow redirects on this site; stop at an address that contains `stop` or leaves the site."""
        for _ in range(12):
            response = self.get(url)
            if response.status_code not in (302, 303):
                return response
            url = response.headers["location"]
            here = url.startswith(("/", self.site.c.settings.base_url))
            if stop in url or not here:
                return response
        raise AssertionError("a circle of redirects")

    def submit(self, page: httpx2.Response, action: str, **fields: str) -> httpx2.Response:
        """Fill in the form with this action and send it."""
        form = re.search(rf'<form method="post" action="{action}">(.*?)</form>', page.text, re.DOTALL)
        assert form is not None, page.text
        hidden = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', form[1]))
        data = {name: html.unescape(value) for name, value in hidden.items()} | fields
        return self.ask("POST", action, data=data)

    def sign_in(self, name: str = "ann", password: str = PASSWORD, *, url: str = "/signin"):
        """The answer of the sign-in form reached from `url`."""
        page = self.follow(url)
        assert page.status_code == 200, page.text
        return self.submit(page, "/signin", name=name, password=password)

    def enter(self, *, url: str = "/admin") -> httpx2.Response:
        """Sign in through the admin site; its first page."""
        answer = self.sign_in(url=url)
        assert answer.status_code == 303, answer.text
        return self.follow(answer.headers["location"])


@dataclass
class Issued:
    """Every secret that a coordinator has given out over HTTP, whoever asked for it, and what was logged."""

    secrets: set[str] = field(default_factory=set)
    log: list[str] = field(default_factory=list)

    def note(self, response: httpx2.Response) -> None:
        for header in response.headers.get_list("set-cookie"):
            self.secrets.add(header.partition("=")[2].partition(";")[0])
        query = parse_qs(urlsplit(response.headers.get("location", "")).query)
        self.secrets.update(query.get("code", []))
        if response.request.url.path.startswith(("/connect/token", "/api/keys")):
            with contextlib.suppress(ValueError):
                told = json.loads(response.read())
                found = told if isinstance(told, dict) else {}
                names = ("access_token", "id_token", "secret", "client_secret")
                self.secrets.update(str(found[name]) for name in names if found.get(name))

    def found_in(self, texts: dict[str, bytes]) -> list[str]:
        """The names of those that hold one of them."""
        needles = [secret.encode() for secret in self.secrets if len(secret) >= 20]
        return sorted(name for name, text in texts.items() if any(needle in text for needle in needles))


class Recorder(logging.Handler):
    def __init__(self, issued: Issued) -> None:
        super().__init__(logging.DEBUG)
        self._issued = issued

    def emit(self, record: logging.LogRecord) -> None:
        self._issued.log.append(self.format(record))


@dataclass
class Site:
    """A running coordinator. `restart` stops and starts it on the same folder and port."""

    directory: Path
    clock: ManualClock
    limits: Limits
    port: int = 0
    secrets: dict[str, str] = field(default_factory=dict)
    options: dict[str, object] = field(default_factory=dict)
    issued: Issued = field(default_factory=lambda: Issued())
    postgres: PostgresServer | None = None

    def start(self) -> None:
        listener = bind("127.0.0.1", self.port)
        self.port = listener.getsockname()[1]
        self.c: Coordinator = open_coordinator(
            Settings(directory=self.directory, port=self.port, **self.options), clock=self.clock
        )
        self.recorder = Recorder(self.issued)
        logging.getLogger().addHandler(self.recorder)
        ready = threading.Event()
        self.server = Server(create_app(self.c, limits=self.limits), self.c.settings, on_ready=ready.set)
        self.thread = threading.Thread(target=self.server.run, args=([listener],))
        self.thread.start()
        assert ready.wait(20)
        self.http = httpx2.Client(
            base_url=f"http://127.0.0.1:{self.port}",
            timeout=20,
            trust_env=False,
            headers={"Host": urlsplit(self.c.settings.base_url).netloc},
            event_hooks={"response": [self.issued.note]},
        )

    def stop(self) -> None:
        logging.getLogger().removeHandler(self.recorder)
        self.http.close()
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()
        self.c.close()

    def restart(self) -> None:
        self.stop()
        self.start()

    def rests(self) -> dict[str, bytes]:
        """What lies about: the files of the folder (database, WAL, logs), a dump, what was logged."""
        texts = {path.name: path.read_bytes() for path in self.directory.rglob("*") if path.is_file()}
        texts["the log"] = "\n".join(self.issued.log).encode()
        if self.postgres is None:
            with contextlib.closing(sqlite3.connect(self.directory / "coordinator.db")) as database:
                texts["a dump"] = "\n".join(database.iterdump()).encode()
            return texts
        database_name = str(self.c.settings.database_url).rpartition("/")[2]
        texts["a dump"] = self.postgres.dump(database_name)
        texts["the server's log"] = (self.postgres.folder / "log").read_bytes()
        for path in (self.postgres.folder / "data" / "pg_wal").glob("0*"):
            texts[f"the server's WAL {path.name}"] = path.read_bytes()
        return texts

    def client(self, client_id: str, *, scope: str = WORKER_SCOPE) -> str:
        """The secret of a (new) client."""
        if client_id not in self.secrets:
            self.secrets[client_id] = create_client(self.c, client_id, scope=scope)
        return self.secrets[client_id]

    def ask(self, fields: dict[str, str], **options: object) -> httpx2.Response:
        """POST /connect/token with these form fields."""
        return self.http.post("/connect/token", data=fields, **options)

    def token(self, client_id: str = "w1", *, scope: str = WORKER_SCOPE) -> str:
        secret = self.client(client_id, scope=scope)
        response = self.ask({"grant_type": "client_credentials"}, auth=(client_id, secret))
        assert response.status_code == 200, response.text
        return str(response.json()["access_token"])

    def person(self, name: str = "ann", *, password: str = PASSWORD) -> None:
        """Somebody who has replaced the generated password."""
        create_person(self.c, name)
        values = {"password_hash": hash_password(password), "must_change": False}
        with self.c.database.write() as connection:
            connection.execute(update(people).where(people.c.name == name).values(values))

    def browser(self, **headers: str) -> Browser:
        return Browser(self, headers=headers)

    def worker(self, client_id: str = "w1") -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token(client_id)}"}

    def admin(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token('operator', scope=ADMIN_SCOPE)}"}

    def operations(self) -> list[Operation]:
        """Every operation of /openapi.json, so that a new route is covered or the test fails."""
        found = []
        for template, methods in self.http.get("/openapi.json").json()["paths"].items():
            path = re.sub(r"\{version\}", "1", template)
            path = re.sub(r"\{\w+\}", "w1", path)
            if path == "/gradient":
                path += f"?task=1&fence={FENCE}"
            for method, operation in methods.items():
                security = operation.get("security")
                scope = security[0]["oauth2"][0] if security else None
                body = {} if "requestBody" in operation else None
                found.append(Operation(method.upper(), path, scope, body))
        return found

    def call(self, operation: Operation, headers: dict[str, str] | None = None) -> httpx2.Response:
        return self.http.request(operation.method, operation.path, json=operation.body, headers=headers)

    def make_run(self) -> None:
        """A run with a model of a few thousand parameters and four shards."""
        words = ["stop", "fuel", "dallas", "route", "eta", "load", "break", "north"]
        examples = [Example(f"{a} {b}", "navigate", (("city", a),)) for a in words for b in words]
        corpus = self.directory / "corpus"
        manifest = build_corpus(
            corpus, examples[:56], examples[56:], max_tokens=65, seed=1, min_frequency=1, shard_examples=14
        )
        config = ModelConfig(
            vocab_size=manifest.vocab_size,
            hidden_size=16,
            intermediate_size=32,
            num_layers=1,
            num_heads=2,
            context_length=64,
        )
        create_run(
            self.c, CreateRun(run="test", model=config, recipe={}, corpus_dir=corpus, budget_tokens=1e6)
        )


@dataclass
class Templates:
    """Run folders to copy, without and with a run: making keys and runs takes most of a short test.

    On PostgreSQL each has a database that is copied with it.
    """

    make_folder: Callable[[str], Path]
    folders: dict[tuple[bool, bool], Path] = field(default_factory=dict)

    def copy(self, folder: Path, *, with_run: bool, server: PostgresServer | None) -> str:
        """The URL of the copied database; empty on SQLite."""
        kept, name = (with_run, server is not None), f"site_{with_run}".lower()
        if kept not in self.folders:
            options = {} if server is None else {"database_url": server.make(name)}
            template = Site(self.make_folder("template"), ManualClock(), Limits(), options=options)
            template.start()
            if with_run:
                template.make_run()
            template.stop()
            self.folders[kept] = template.directory
        shutil.copytree(self.folders[kept], folder)
        return "" if server is None else server.fresh(template=name)


@pytest.fixture(scope="session")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Templates:
    return Templates(tmp_path_factory.mktemp)


MakeSite = Callable[..., Site]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    both = metafunc.function.__name__ in ON_BOTH and DATABASE == "sqlite"
    if both and "engine" in metafunc.fixturenames:
        engines = ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)]
        metafunc.parametrize("engine", engines, indirect=True)


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> str:
    """Which database the coordinator of this test has."""
    return getattr(request, "param", DATABASE)


@pytest.fixture
def sqlite_only(engine: str) -> None:
    if engine != "sqlite":
        pytest.skip("this is about SQLite's file")


@pytest.fixture
def make_site(
    tmp_path: Path,
    templates: Templates,
    engine: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[MakeSite]:
    sites: list[Site] = []
    server = request.getfixturevalue("postgres") if engine == "postgresql" else None

    def make(limits: Limits, *, with_run: bool = False, **options: object) -> Site:
        folder = tmp_path / "run"
        url = templates.copy(folder, with_run=with_run, server=server)
        if url:
            monkeypatch.setenv("BITHAUL_DATABASE_URL", url)  # for commands on this folder
            options.setdefault("database_url", url)
        site = Site(folder, ManualClock(), limits, options=options, postgres=server)
        site.start()
        sites.append(site)
        return site

    yield make
    for site in sites:
        try:
            resting = site.issued.found_in(site.rests())  # while the WAL is there: SEC-02, after every test
        finally:
            site.stop()
        assert resting == [], f"a secret that was given out rests in {resting}"


@pytest.fixture
def site(make_site: MakeSite) -> Site:
    """A coordinator without a run; throttling so wide that it never answers."""
    return make_site(WIDE)


@pytest.fixture
def run_site(make_site: MakeSite) -> Site:
    """A coordinator with a small run."""
    return make_site(WIDE, with_run=True)


@pytest.fixture
def provider():
    provider = Provider()
    provider.start()
    yield provider
    provider.stop()


@pytest.fixture
def make(make_site, provider):
    """A coordinator whose people sign in at `provider`, which has its clock."""

    def make(admins=ADMINS, **options):
        settings = {"oidc_issuer": provider.url, "oidc_client_id": CLIENT, "oidc_client_secret": SECRET}
        site = make_site(WIDE, **{**settings, "oidc_admins": admins, **options})
        provider.now = site.clock.now
        return site

    return make

"""What would be unsafe about letting others reach this coordinator: one finding for each, none guessed at."""

from __future__ import annotations

import ipaddress
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from sqlalchemy import select

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.identity import secretfiles
from bithaul.coordinator.identity.clients import secrets_folder
from bithaul.coordinator.identity.people import list_people
from bithaul.coordinator.identity.tables import clients
from bithaul.coordinator.identity.transport import check_public_url, is_loopback, is_plain_http
from bithaul.coordinator.settings import Settings
from bithaul.errors import InvalidConfig

_WIDEST_PROXIES = 2**16  # addresses in one trusted network


@dataclass(frozen=True)
class Finding:
    """`setting` names what to change, `problem` says why and how."""

    setting: str
    problem: str


def unsafe_settings(c: Coordinator) -> list[Finding]:
    """Every unsafe setting, file mode and row; empty when none was found."""
    settings = c.settings
    return [*_transport(settings), *_proxies(settings), *_files(c), *_clients(c), *_people(c)]


def _transport(settings: Settings) -> Iterator[Finding]:
    url = settings.base_url
    try:
        check_public_url(url, allow_insecure_lan=True)
    except InvalidConfig as error:
        yield Finding("public_url", error.message)
        return
    if is_plain_http(url):
        yield Finding("public_url", f"{url} is plain http: anyone on that network reads secrets; use https.")
    if settings.allow_insecure_lan:
        yield Finding("allow_insecure_lan", "Plain http on a network is accepted; set it to false.")
    if not is_loopback(settings.host) and urlsplit(url).scheme == "http":
        yield Finding("host", f"{settings.host} is open to the network without https; bind 127.0.0.1.")


def _proxies(settings: Settings) -> Iterator[Finding]:
    for name in settings.trusted_proxies:
        if ipaddress.ip_network(name).num_addresses > _WIDEST_PROXIES:
            yield Finding("trusted_proxies", f"{name} is too wide: anyone in it may claim any address.")


def _files(c: Coordinator) -> Iterator[Finding]:
    if os.name != "posix":
        return
    folder = secrets_folder(c)
    for path in [folder, *folder.glob("*"), c.settings.database_file]:  # its WAL takes the same mode
        if path.exists() and _mode(path) & 0o077:
            yield Finding(str(path), f"Others on this machine can read it; run: chmod go-rwx {path}")
    toml = c.settings.directory / "bithaul.toml"
    if toml.exists() and _mode(toml) & 0o022:
        yield Finding(str(toml), f"Others on this machine can change it; run: chmod go-w {toml}")
    if toml.exists() and _mode(toml) & 0o044 and "oidc_client_secret" in toml.read_text(encoding="utf-8"):
        yield Finding(str(toml), f"Others can read the provider's secret in it; run: chmod go-r {toml}")
    if toml.exists() and _mode(toml) & 0o044 and "database_url" in toml.read_text(encoding="utf-8"):
        yield Finding(str(toml), f"Others can read the database's password in it; run: chmod go-r {toml}")
    if (folder / secretfiles.FIRST_PASSWORD).exists():
        note = folder / secretfiles.FIRST_PASSWORD
        yield Finding(str(note), "The first password still lies in a file; sign in and change it.")


def _clients(c: Coordinator) -> Iterator[Finding]:
    with c.database.read() as connection:
        rows = connection.execute(select(clients).where(clients.c.disabled.is_(False))).mappings().all()
    for row in rows:
        if not row["require_pkce"]:
            yield Finding(f"client {row['id']}", "It need not prove its codes (require_pkce is off).")
        for uri in row["redirect_uris"] or []:
            if is_plain_http(uri):
                yield Finding(f"client {row['id']}", f"Codes are sent over plain http to {uri}.")


def _people(c: Coordinator) -> Iterator[Finding]:
    for person in list_people(c):
        if person.must_change and not person.disabled:
            yield Finding(f"person {person.name}", "The generated password was never changed.")


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)

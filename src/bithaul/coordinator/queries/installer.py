"""The lines that turn another machine into a worker: for bash, PowerShell and Docker.

The secret goes by environment, never as an argument and never in an address. Every value is quoted for its
shell, although names are restricted and the address is the operator's own.
"""

from __future__ import annotations

import re
import shlex
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict

from bithaul.coordinator.queries.wheel import wheel_name

IMAGE = "python:3.12-slim"
PREFIX = "/install/"


class InstallLines(BaseModel):
    model_config = ConfigDict(frozen=True)

    bash: str
    powershell: str
    docker: str


def install_lines(base_url: str, *, worker: str, secret: str) -> InstallLines:
    """`base_url` without a trailing slash. A name that every shell leaves alone is not quoted twice."""
    wheel = f"{base_url}{PREFIX}{wheel_name()}"
    flags = f"--client-id {shlex.quote(worker)}"
    lan = " --allow-insecure-lan" if _is_plain(base_url) else ""
    url = shlex.quote(base_url)
    bash = (
        f" export BITHAUL_CLIENT_SECRET={shlex.quote(secret)}\n"
        "python3 -m venv ~/.bithaul/env &&\n"
        f"~/.bithaul/env/bin/pip install -q {shlex.quote(wheel)} &&\n"
        f"~/.bithaul/env/bin/bithaul worker --url {url} {flags} "
        f"--state-dir ~/.bithaul/{shlex.quote(worker)}{lan}"
    )
    powershell = (
        f"$env:BITHAUL_CLIENT_SECRET = {_powershell(secret)}\n"
        'py -m venv "$HOME\\.bithaul\\env"\n'
        f'& "$HOME\\.bithaul\\env\\Scripts\\pip" install -q {_powershell(wheel)}\n'
        f'& "$HOME\\.bithaul\\env\\Scripts\\bithaul" worker --url {_powershell(base_url)} '
        f"--client-id {_powershell(worker)} "
        f'--state-dir "$HOME\\.bithaul\\$({_powershell(worker)})"{lan}'
    )
    inside = (
        f"pip install -q {shlex.quote(wheel)} && "
        f"exec bithaul worker --url {url} {flags} --state-dir /state{lan}"
    )
    docker = (
        f" export BITHAUL_CLIENT_SECRET={shlex.quote(secret)}\n"
        f"docker run -d --restart unless-stopped --name {shlex.quote('bithaul-' + worker)} \\\n"
        f"  -e BITHAUL_CLIENT_SECRET -v {shlex.quote('bithaul-' + worker)}:/state \\\n"
        f"  {IMAGE} sh -c {shlex.quote(inside)}"
    )
    return InstallLines(bash=bash, powershell=powershell, docker=docker)


def _powershell(text: str) -> str:
    """A literal: nothing in single quotes means anything but a quote, of which PowerShell knows five."""
    return "'" + re.sub("['\u2018-\u201b]", r"\g<0>\g<0>", text) + "'"


def _is_plain(base_url: str) -> bool:
    parts = urlsplit(base_url)
    return parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1")

"""`bithaul check`: whether a run's settings are safe, before others can reach it.

Without `--deploy` it only tells whether the settings can be read and the public URL is one that starts.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from bithaul.cli.opened import Directory, opened
from bithaul.errors import InvalidConfig

app = typer.Typer()


@app.command()
def check(
    directory: Directory,
    deploy: Annotated[
        bool, typer.Option("--deploy", help="Name everything that is unsafe once others can reach it.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Find unsafe settings; exit code 2 when there are any."""
    from bithaul.coordinator.identity.deploy import unsafe_settings
    from bithaul.coordinator.identity.transport import check_public_url

    with opened(directory) as c:
        check_public_url(c.settings.base_url, allow_insecure_lan=c.settings.allow_insecure_lan)
        findings = unsafe_settings(c) if deploy else []
    if as_json:
        print(json.dumps({"ok": not findings, "findings": [asdict(finding) for finding in findings]}))
    for finding in [] if as_json else findings:
        print(f"{finding.setting}: {finding.problem}")
    if findings:
        raise InvalidConfig(f"{len(findings)} unsafe settings in {directory}; see the list.", code="unsafe")
    if not as_json:
        print("Nothing unsafe was found.")

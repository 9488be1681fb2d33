"""Audits constraints.txt against advisories.

`make audit` fetches osv.dev's export for PyPI and names every pinned version that one of its advisories
covers. Where the network does not allow it, it says so and ends with 2, after it has looked at
`advisories.json` beside it: holes that were fixed in versions which our floors demand.
`make audit ADVISORIES=all.zip` reads a file.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "constraints.txt"
KNOWN = Path(__file__).parent / "advisories.json"
EXPORT = "https://osv-vulnerabilities.storage.googleapis.com/PyPI/all.zip"
LARGEST = 2**30  # bytes of an export; today's have a tenth of it
_PIN = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9.!+]+)")


@dataclass(frozen=True)
class Finding:
    """A pinned version that an advisory covers."""

    package: str
    version: str
    advisory: str
    fixed: str  # in this version; empty when the advisory names none


def read_lock(path: Path = LOCK) -> dict[str, Version]:
    """Pinned versions by canonical name. Raises `ValueError` for a line that pins nothing, or pins again."""
    pins: dict[str, Version] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        match = _PIN.fullmatch(line.strip())
        if match is None:
            raise ValueError(f"{path.name}: {line!r} is no pin; write name==version.")
        name = canonicalize_name(match[1])
        if name in pins:
            raise ValueError(f"{path.name}: {name} is pinned twice.")
        pins[name] = Version(match[2])
    return pins


def read_advisories(path: Path) -> Iterator[dict[str, Any]]:
    """Records in OSV's format: a .json file of one or a list of them, or a .zip of such files."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith(".json"):
                    yield json.loads(archive.read(name))
        return
    told = json.loads(path.read_text(encoding="utf-8"))
    yield from told if isinstance(told, list) else [told]


def audit(pins: dict[str, Version], advisories: Iterable[dict[str, Any]]) -> list[Finding]:
    """Every pin that is covered. An advisory that was withdrawn covers nothing."""
    found = []
    for record in advisories:
        if record.get("withdrawn"):
            continue
        for affected in record.get("affected", []):
            package = affected.get("package", {})
            name = canonicalize_name(package.get("name", ""))
            if package.get("ecosystem") != "PyPI" or name not in pins:
                continue
            if _covers(affected, pins[name]):
                found.append(Finding(name, str(pins[name]), record["id"], _fixed(affected, pins[name])))
    return sorted(found, key=lambda finding: (finding.package, finding.advisory))


def _covers(affected: dict[str, Any], version: Version) -> bool:
    if any(_version(text) == version for text in affected.get("versions", [])):
        return True
    return any(_within(events, version) for events in _ranges(affected))


def _ranges(affected: dict[str, Any]) -> Iterator[list[dict[str, str]]]:
    for span in affected.get("ranges", []):
        if span.get("type") in ("ECOSYSTEM", "SEMVER"):
            yield span.get("events", [])


def _within(events: list[dict[str, str]], version: Version) -> bool:
    """OSV's rule: the last event at or below the version decides."""
    inside = False
    for kind, at in sorted(((k, t) for e in events for k, t in e.items()), key=lambda e: _version(e[1])):
        if kind == "introduced" and version >= _version(at):
            inside = True
        elif (kind == "fixed" and version >= _version(at)) or (
            kind == "last_affected" and version > _version(at)
        ):
            inside = False
    return inside


def _fixed(affected: dict[str, Any], version: Version) -> str:
    later = [
        _version(event["fixed"])
        for events in _ranges(affected)
        for event in events
        if "fixed" in event and _version(event["fixed"]) > version
    ]
    return str(min(later)) if later else ""


def _version(text: str) -> Version:
    """What is no version counts as the oldest: OSV writes "0" for "from the first on"."""
    try:
        return Version(text)
    except InvalidVersion:
        return Version("0")


def fetch(url: str, target: Path) -> None:
    """Raises `httpx2.HTTPError` or `OSError` where the network does not allow it."""
    size = 0
    with (
        httpx2.stream("GET", url, timeout=30, follow_redirects=True) as answer,
        target.open("wb") as file,
    ):
        answer.raise_for_status()
        for piece in answer.iter_bytes():
            size += len(piece)
            if size > LARGEST:
                raise OSError(f"more than {LARGEST} bytes")
            file.write(piece)
    if not zipfile.is_zipfile(target):
        raise OSError("no archive")


def main(arguments: list[str]) -> int:
    """0: nothing was found, 1: something was, 2: the newest list could not be fetched."""
    if arguments[:1] != ["--fetch"]:
        return look([Path(word) for word in arguments] or [KNOWN])
    url = arguments[1] if len(arguments) > 1 else EXPORT
    with tempfile.TemporaryDirectory() as folder:
        export = Path(folder) / "all.zip"
        try:
            fetch(url, export)
        except (httpx2.HTTPError, OSError) as error:
            sys.stdout.write(f"{url} cannot be fetched ({error}); only the known holes are looked for\n")
            return look([KNOWN]) or 2
        return look([export])


def look(files: list[Path]) -> int:
    records = [record for file in files for record in read_advisories(file)]
    pins = read_lock()
    findings = audit(pins, records)
    for finding in findings:
        way_out = f"fixed in {finding.fixed}" if finding.fixed else "no fixed version is named"
        sys.stdout.write(f"{finding.package} {finding.version}: {finding.advisory}, {way_out}\n")
    sys.stdout.write(f"{len(pins)} pins against {len(records)} advisories: {len(findings)} findings\n")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The third-party files of the site: what is served is exactly what the committed list names."""

from __future__ import annotations

import hashlib
import json
import runpy
from pathlib import Path

import pytest

import bithaul.coordinator.site as site

ROOT = Path(__file__).parents[3]
VENDOR = Path(site.__file__).parent / "static" / "vendor"
WANTED = json.loads((ROOT / "frontend" / "files.json").read_text())


def test_installed_files_are_the_named_ones() -> None:
    """Catches: an installation without the hook, a changed or missing file, one more than named."""
    installed = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in VENDOR.iterdir()}
    manifest = installed.pop("manifest.json")
    assert installed == {name: file["sha256"] for name, file in WANTED.items()}
    assert json.loads((VENDOR / "manifest.json").read_text()) == installed, manifest


def test_every_script_brings_its_licence() -> None:
    libraries = {file["from"].split("/")[0] for file in WANTED.values()}
    licensed = {file["from"].split("/")[0] for name, file in WANTED.items() if name.endswith("LICENSE.txt")}
    assert licensed == libraries == {"htmx.org", "idiomorph", "uplot"}


def test_the_lock_file_pins_by_hash_and_names_no_host() -> None:
    lock = json.loads((ROOT / "frontend" / "package-lock.json").read_text())
    packages = {name: entry for name, entry in lock["packages"].items() if name}
    assert packages
    for name, entry in packages.items():
        assert entry["integrity"].startswith("sha512-"), name
        assert "resolved" not in entry, name


def test_a_tampered_file_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: `install` that trusts a file because it is there."""
    vendor = runpy.run_path(str(ROOT / "frontend" / "vendor.py"))
    assert vendor["is_complete"]()
    for name in WANTED:
        (tmp_path / name).write_bytes((VENDOR / name).read_bytes())
    monkeypatch.setitem(vendor["is_complete"].__globals__, "TARGET", tmp_path)
    assert vendor["is_complete"]()
    (tmp_path / "htmx.min.js").write_bytes(b"alert(1)")
    assert not vendor["is_complete"]()

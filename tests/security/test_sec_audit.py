"""SEC-56: what is installed is pinned, pins keep our floors, and the audit of the pins finds what it must."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import sys
import threading
import tomllib
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location("lock_audit", HERE / "audit.py")
audit = importlib.util.module_from_spec(spec)
sys.modules["lock_audit"] = audit
spec.loader.exec_module(audit)

PROJECT = tomllib.loads((audit.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WITH_PYTHON = {"pip"}  # it installs the rest
WITH_TORCH = ("nvidia-", "cuda-", "triton")  # a GPU build of PyTorch pins these itself


def wanted():
    """Requirements of the project, its extras included."""
    extras = PROJECT["optional-dependencies"].values()
    return [Requirement(text) for text in (*PROJECT["dependencies"], *(t for e in extras for t in e))]


def reached():
    """Installed version by name of everything the requirements lead to on this machine."""
    found, waiting = {}, [(r, "") for r in wanted()]
    while waiting:
        requirement, extra = waiting.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        key = (name, frozenset(requirement.extras))
        if key in found or name in WITH_PYTHON or name.startswith(WITH_TORCH):
            continue
        try:
            version = Version(importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            continue  # of an extra that is not installed here
        found[key] = version
        below = [Requirement(text) for text in importlib.metadata.requires(name) or ()]
        waiting += [(r, extra) for r in below for extra in ("", *requirement.extras)]
    return {name: version for (name, _), version in found.items()}


def test_sec_56_everything_installed_is_pinned_to_what_it_is():
    """Wrong result: a dependency of a dependency that changes from one install to the next."""
    pins, installed = audit.read_lock(), reached()
    assert len(installed) > 60
    assert [name for name in installed if name not in pins] == []
    different = {
        name: (str(version), str(pins[name]))
        for name, version in installed.items()
        if version.public != pins[name].public
    }
    assert different == {}


def test_sec_56_pins_keep_every_floor():
    """Wrong result: a pin that `pip install` without the lock would refuse, or one below a fixed hole."""
    pins = audit.read_lock()
    for requirement in wanted():
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier, requirement
    floors = {canonicalize_name(r.name): r.specifier for r in wanted()}
    for record in audit.read_advisories(audit.KNOWN):
        affected = record["affected"][0]
        name, fixed = affected["package"]["name"], affected["ranges"][0]["events"][1]["fixed"]
        assert pins[name] >= Version(fixed), record["id"]
        if name in floors:  # nor may an install without the lock bring the hole back
            assert "0.0.1" not in floors[name], name
            lowest = min(Version(s.version) for s in floors[name] if s.operator in (">=", "=="))
            assert lowest >= Version(fixed), record["id"]


def test_sec_56_the_audit_of_the_known_holes_is_clean(capsys):
    assert audit.main([]) == 0
    assert capsys.readouterr().out.endswith(": 0 findings\n")


def record(name, *events, versions=(), ecosystem="PyPI", **more):
    span = {"type": "ECOSYSTEM", "events": [dict([event]) for event in events]}
    affected = {
        "package": {"ecosystem": ecosystem, "name": name},
        "ranges": [span],
        "versions": list(versions),
    }
    return {"id": "X-1", "affected": [affected], **more}


FROM_0 = ("introduced", "0")


@pytest.mark.parametrize(
    ("advisory", "found"),
    [
        (record("Some.Thing", FROM_0, ("fixed", "2.0.1")), True),
        (record("some-thing", FROM_0, ("fixed", "2.0")), False),  # the fixed version itself is free
        (record("some_thing", FROM_0, ("last_affected", "2.0")), True),
        (record("some-thing", FROM_0, ("last_affected", "1.9")), False),
        (record("some-thing", FROM_0), True),
        (record("some-thing", ("introduced", "2.1")), False),
        (record("some-thing", FROM_0, ("fixed", "1.5"), ("introduced", "1.9"), ("fixed", "2.1")), True),
        (record("some-thing", ("fixed", "2.1"), ("introduced", "1.9")), True),  # in any order
        (record("some-thing", FROM_0, ("fixed", "10.0")), True),  # numbers, not text
        (record("some-thing", versions=["1.0", "2.0.0"]), True),
        (record("some-thing", versions=["2.0.1"]), False),
        (record("some-thing", FROM_0, ecosystem="npm"), False),
        (record("some-thing", FROM_0, withdrawn="2026-01-01T00:00:00Z"), False),
        (record("other-thing", FROM_0), False),
    ],
)
def test_sec_56_the_audit_finds_what_an_advisory_covers(advisory, found):
    """Wrong results: a hole that is not seen; a cry about one that was closed."""
    findings = audit.audit({"some-thing": Version("2.0")}, [advisory])
    assert [finding.advisory for finding in findings] == (["X-1"] if found else [])


def test_sec_56_the_audit_reads_an_export_and_says_what_to_do(tmp_path, capsys):
    """Wrong result: an exit code of 0 with a finding, which a job would take for clean."""
    name, version = next(iter(audit.read_lock().items()))
    bad = record(name, FROM_0, ("fixed", f"{version.major + 1}.0"))
    export = tmp_path / "all.zip"
    with zipfile.ZipFile(export, "w") as archive:
        archive.writestr("X-1.json", json.dumps(bad))
        archive.writestr("X-2.json", json.dumps({**record("nobody-has-this", FROM_0), "id": "X-2"}))
        archive.writestr("README.txt", "no advisory")
    assert audit.main([str(export)]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{name} {version}: X-1, fixed in {version.major + 1}.0"
    assert said[1].endswith("against 2 advisories: 1 findings")


@pytest.fixture
def served(tmp_path):
    """A server of `tmp_path`, as its address."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_sec_56_the_audit_fetches_the_newest_list(tmp_path, served, capsys, monkeypatch):
    """Wrong results: an audit of an old list, or of none, that says nothing was found."""
    name, version = next(iter(audit.read_lock().items()))
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("X-1.json", json.dumps(record(name, FROM_0)))
    assert audit.main(["--fetch", f"{served}/all.zip"]) == 1
    assert capsys.readouterr().out.startswith(f"{name} {version}: X-1")
    (tmp_path / "page.zip").write_text("<html>sign in to the hotel's network</html>")
    for away in ("page.zip", "gone.zip"):
        assert audit.main(["--fetch", f"{served}/{away}"]) == 2
        said = capsys.readouterr().out.splitlines()
        assert "cannot be fetched" in said[0]
        assert said[-1].endswith(": 0 findings")
    monkeypatch.setattr(audit, "LARGEST", 10)
    assert audit.main(["--fetch", f"{served}/all.zip"]) == 2


@pytest.mark.parametrize(
    "text", ["a>=1\n", "a\n", "a==1\nA==2\n", "a==1 ; python_version>'3'\n", "-r other.txt\n"]
)
def test_sec_56_a_lock_that_pins_nothing_is_refused(tmp_path, text):
    (tmp_path / "lock").write_text(text)
    with pytest.raises(ValueError, match="lock"):
        audit.read_lock(tmp_path / "lock")

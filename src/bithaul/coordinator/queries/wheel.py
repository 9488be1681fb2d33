"""This very program as a wheel, so that a worker installs exactly the version its coordinator runs.

Made from the files that are installed here, whether from a wheel or from a checkout; the bytes are the same
each time. The package is open source, so the wheel is no secret.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import zipfile
from importlib.metadata import distribution
from importlib.resources import files
from importlib.resources.abc import Traversable

from bithaul import __version__

_EPOCH = (2020, 2, 2, 0, 0, 0)
_NOT_SHIPPED = {"__pycache__"}


def wheel_name() -> str:
    return f"bithaul-{__version__}-py3-none-any.whl"


def build_wheel() -> bytes:
    """A whole wheel (PEP 427), some MiB at most."""
    info = f"bithaul-{__version__}.dist-info"
    about = distribution("bithaul")
    members = dict(_read(files("bithaul"), "bithaul/"))
    members[f"{info}/METADATA"] = (about.read_text("METADATA") or "").encode()
    members[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: bithaul\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    members[f"{info}/entry_points.txt"] = (about.read_text("entry_points.txt") or "").encode()
    record = io.StringIO()
    writer = csv.writer(record, lineterminator="\n")
    for name, content in members.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        writer.writerow([name, f"sha256={digest}", len(content)])
    writer.writerow([f"{info}/RECORD", "", ""])
    members[f"{info}/RECORD"] = record.getvalue().encode()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            entry = zipfile.ZipInfo(name, date_time=_EPOCH)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
    return stream.getvalue()


def _read(folder: Traversable, prefix: str) -> list[tuple[str, bytes]]:
    out: list[tuple[str, bytes]] = []
    for entry in sorted(folder.iterdir(), key=lambda e: e.name):
        if entry.name in _NOT_SHIPPED or entry.name.endswith(".pyc"):
            continue
        if entry.is_dir():
            out += _read(entry, f"{prefix}{entry.name}/")
        else:
            out.append((prefix + entry.name, entry.read_bytes()))
    return out

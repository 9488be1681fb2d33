"""Reading the documentation: pages, their tables by heading, and the shell blocks in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
_SHELL = re.compile(r"^(?P<mark><!-- tested -->\n)?```sh\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL)
_FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_CELL = re.compile(r"(?<!\\)\|")


@dataclass(frozen=True)
class Block:
    """One ```sh block; `tested` when the line before it says so."""

    page: str
    code: str
    tested: bool


@dataclass(frozen=True)
class Pages:
    """The pages of docs/ and the README."""

    root: Path

    def text(self, name: str) -> str:
        return (self.root / name).read_text(encoding="utf-8")

    def tables(self, name: str) -> dict[str, list[list[str]]]:
        """Rows of cells under each heading, without header rows. A heading is its text without # and `."""
        found: dict[str, list[list[str]]] = {}
        heading, header = "", True
        for line in _FENCED.sub("", self.text(name)).splitlines():
            if line.startswith("#"):
                heading, header = line.lstrip("# ").replace("`", ""), True
            elif not line.startswith("|"):
                header = True
            elif set(line) <= set("|-: "):
                header = False
            elif not header:
                found.setdefault(heading, []).append([c.strip() for c in _CELL.split(line)[1:-1]])
        return found

    def blocks(self) -> list[Block]:
        """Every ```sh block of every page that readers see."""
        pages = [self.root / "README.md", *sorted((self.root / "docs").rglob("*.md"))]
        return [
            Block(str(page.relative_to(self.root)), match["code"], match["mark"] is not None)
            for page in pages
            for match in _SHELL.finditer(page.read_text(encoding="utf-8"))
        ]


@pytest.fixture(scope="session")
def pages() -> Pages:
    return Pages(ROOT)

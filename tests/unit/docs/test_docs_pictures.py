"""Every page of the admin site has a picture in the docs, and every picture is shown."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from bithaul.coordinator.app import create_app
from bithaul.coordinator.context import open_coordinator
from bithaul.coordinator.settings import load_settings

sys.path.insert(0, str(Path(__file__).parents[2] / "browser"))
from screenshots import SHOTS

ROOT = Path(__file__).parents[3]
NO_PAGE = re.compile(  # data, files and redirects
    r"\.json$|\{kind\}|/weights$|/state$|/tail$|^/static/|^/install/|^/connect/|^/$|/callback|/admin/signin|/rotate$"
)
SIMPLE = {"/admin/signed-out"}  # one sentence and a link


def pages(folder: Path) -> Iterator[str]:
    with closing(open_coordinator(load_settings(folder))) as c:
        todo = list(create_app(c)._app.routes)
    while todo:
        route = todo.pop()
        inner = getattr(route, "original_router", None)
        todo += getattr(route, "routes", None) or getattr(inner, "routes", [])
        if "GET" in (getattr(route, "methods", None) or ()) and not route.include_in_schema:
            yield route.path


def test_every_page_has_a_picture(tmp_path: Path) -> None:
    """Catches: a page that nobody looked at before it was shipped."""
    every = {path for path in pages(tmp_path) if not NO_PAGE.search(path)} - SIMPLE
    shown = [shot.path.partition("?")[0].format(task=1) for shot in SHOTS]
    shown.append("/signin")  # where somebody who is not signed in gets
    assert len(every) >= 13
    assert {
        path
        for path in every
        if not any(re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", path), name) for name in shown)
    } == set()


def test_every_picture_is_there_and_shown() -> None:
    """Catches: a picture that was renamed, and one that no page of the docs shows."""
    there = {path.stem for path in (ROOT / "docs" / "images").glob("site-*.png")}
    assert there == {shot.name for shot in SHOTS}
    guide = (ROOT / "docs" / "how-to" / "admin-site.md").read_text(encoding="utf-8")
    assert [name for name in sorted(there) if f"](../images/{name}.png)" not in guide] == []
    assert "](docs/images/site-dashboard.png)" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("shot", SHOTS, ids=lambda shot: shot.name)
def test_a_picture_has_the_size_that_it_is_taken_with(shot) -> None:
    """Catches: a picture of an older script, or a page that shrank to nothing."""
    head = (ROOT / "docs" / "images" / f"{shot.name}.png").read_bytes()[:24]
    width, height = int.from_bytes(head[16:20]), int.from_bytes(head[20:24])
    assert width == shot.width
    assert height == shot.height or (shot.whole and height >= 400)

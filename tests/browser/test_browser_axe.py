"""Every page under axe-core, which finds what people with a screen reader or keyboard stumble over."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from steps import PAGES, refresh

sys.path.insert(0, str(Path(__file__).parents[2] / "frontend"))
from vendor import axe

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def axe_source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return axe(tmp_path_factory.mktemp("axe"))


def serious(page, where: str) -> list[str]:
    """What axe finds on a page as it is, told with its place."""
    result = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    assert result["passes"], f"axe looked at nothing on {where}"
    return [
        f"{where}: {issue['id']} at {node['target']}: {node['failureSummary']}"
        for issue in result["violations"]
        if issue["impact"] in ("serious", "critical")
        for node in issue["nodes"][:3]
    ]


@pytest.mark.parametrize("width", [360, 1920])
@pytest.mark.parametrize("path", PAGES)
def test_no_page_has_a_serious_issue(open_tab, axe_source: str, path: str, width: int) -> None:
    """Catches: too little contrast, a control without a name, a scrolling part that no key reaches.

    Light and dark are looked at on one load, after a refresh: the parts that it swaps count too.
    """
    tab = open_tab(width=width)
    page = tab.go(path)
    if page.locator("#refresher").count():
        refresh(page)
    page.evaluate(axe_source)
    found = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 200) == (scheme == "dark")
        found += serious(page, f"{path} {scheme}")
    assert not found, "\n".join(found)
    tab.assert_quiet()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_pages_outside_have_no_serious_issue(open_tab, axe_source: str, scheme: str) -> None:
    """What somebody sees who is not signed in, and who took a wrong turn."""
    tab = open_tab(width=360, scheme=scheme)
    tab.page.context.clear_cookies()
    for path, heading in (("/admin", "Sign in"), ("/admin/nothing", "Not found")):
        page = tab.go(path)
        assert page.locator("h1").inner_text() == heading
        page.evaluate(axe_source)
        assert serious(page, path) == []

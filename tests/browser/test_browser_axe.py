"""Every page under axe-core, which finds what people with a screen reader or keyboard stumble over."""

from __future__ import annotations

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


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (360, "dark"),
        (1920, "light"),
        pytest.param(360, "light", marks=pytest.mark.slow),
        pytest.param(1920, "dark", marks=pytest.mark.slow),
    ],
)
def test_no_page_has_a_serious_issue(open_tab, axe_source: str, width: int, scheme: str) -> None:
    """Catches: too little contrast, a control without a name, a scrolling part that no key reaches."""
    tab = open_tab(width=width, scheme=scheme)
    found = []
    for path in PAGES:
        page = tab.go(path)
        page.wait_for_load_state("networkidle")
        if page.locator("#refresher").count():
            refresh(page)
        page.evaluate(axe_source)
        result = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
        assert result["passes"], f"axe looked at nothing on {path}"
        found += [
            f"{path}: {issue['id']} at {node['target']}: {node['failureSummary']}"
            for issue in result["violations"]
            if issue["impact"] in ("serious", "critical")
            for node in issue["nodes"][:3]
        ]
        tab.assert_quiet()
    assert not found, "\n".join(found)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_pages_outside_have_no_serious_issue(open_tab, axe_source: str, scheme: str) -> None:
    """What somebody sees who is not signed in, and who took a wrong turn."""
    tab = open_tab(width=360, scheme=scheme)
    tab.page.context.clear_cookies()
    for path, heading in (("/admin", "Sign in"), ("/admin/nothing", "Not Found")):
        page = tab.go(path)
        assert page.locator("h1").inner_text() == heading
        page.evaluate(axe_source)
        result = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
        assert result["passes"]
        bad = [i["id"] for i in result["violations"] if i["impact"] in ("serious", "critical")]
        assert bad == [], path

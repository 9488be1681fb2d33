"""A real coordinator process on a pretended run, and the system's Chromium before it.

Skipped, with the reason, where Playwright or a Chromium is missing; `.ci/run` installs one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

sys.path.insert(0, str(Path(__file__).parent))
from served import Process, chromium_path, prepare, serving
from steps import sign_in

WATCH = """
window.__violations = [];
document.addEventListener("securitypolicyviolation", (e) => window.__violations.push(
  `${e.violatedDirective} ${e.blockedURI} ${e.sourceFile}:${e.lineNumber}`));
"""


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    path = chromium_path()
    if path is None:
        pytest.skip("no Chromium on this machine; install the system's package `chromium`")
    sandbox = [] if os.name != "posix" or os.geteuid() else ["--no-sandbox"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=sandbox)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def coordinator() -> Iterator[Process]:
    with serving(partial(prepare, versions=300)) as running:
        yield running


@pytest.fixture(scope="module")
def signed_in(chromium: Browser, coordinator: Process) -> dict[str, Any]:
    """The cookies of a person who has signed in through the pages."""
    context = chromium.new_context()
    page = context.new_page()
    sign_in(page, coordinator.url)
    state = context.storage_state()
    context.close()
    return dict(state)


@dataclass
class Tab:
    """A page that remembers everything it complained about."""

    page: Page
    url: str
    complaints: list[str] = field(default_factory=list)

    def go(self, path: str) -> Page:
        self.page.goto(self.url + path)
        return self.page

    def assert_quiet(self) -> None:
        assert self.page.evaluate("window.__violations") == []
        assert self.complaints == []


Open = Callable[..., Tab]


@pytest.fixture
def open_tab(chromium: Browser, coordinator: Process, signed_in: dict[str, Any]) -> Iterator[Open]:
    contexts: list[BrowserContext] = []

    def make(*, width: int = 1280, height: int = 900, scheme: str = "light", **options: Any) -> Tab:
        context = chromium.new_context(
            viewport={"width": width, "height": height},
            color_scheme=scheme,
            storage_state=signed_in,
            **options,
        )
        context.set_default_timeout(15_000)
        context.add_init_script(WATCH)
        contexts.append(context)
        tab = Tab(context.new_page(), coordinator.url)
        tab.page.on(
            "console", lambda m: tab.complaints.append(m.text) if m.type in ("error", "warning") else None
        )
        tab.page.on("pageerror", lambda error: tab.complaints.append(str(error)))
        return tab

    yield make
    for context in contexts:
        context.close()

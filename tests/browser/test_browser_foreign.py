"""A person signs in through a foreign OpenID provider over https, in Chromium; one that lies is told of."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "security"))
from foreign_provider import CLIENT, SECRET, Authority, Provider
from served import Process, prepare

pytestmark = [pytest.mark.browser, pytest.mark.process]


@dataclass
class House:
    """A coordinator's process, the provider beside it, and a browser."""

    running: Process
    provider: Provider
    context: Any

    def page(self) -> Any:
        return self.context.new_page()

    def arrive(self, page: Any) -> None:
        """To the dashboard, by way of the provider, where the person says yes."""
        page.goto(self.running.url + "/admin")
        assert page.url.startswith(self.provider.url + "/authorize?")
        page.get_by_role("link", name="Yes, I am olga@example.org").click()


@pytest.fixture
def house(chromium: Any, tmp_path: Path) -> Iterator[House]:
    authority = Authority(tmp_path)
    provider = Provider(asks=True)
    provider.start(tls=authority.context())
    folder = tmp_path / "run"
    folder.mkdir()
    prepare(folder, versions=3)
    told = {"oidc_issuer": provider.url, "oidc_client_id": CLIENT, "oidc_client_secret": SECRET}
    told["oidc_ca_file"] = str(authority.file)
    lines = [f"{name} = {json.dumps(value)}" for name, value in told.items()]
    lines.append('oidc_admins = { olga = "sub:248289761001" }')
    with (folder / "bithaul.toml").open("a", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    running = Process(folder)
    running.start()
    context = chromium.new_context(ignore_https_errors=True)  # whom a browser trusts is its own business
    context.set_default_timeout(15_000)
    yield House(running, provider, context)
    context.close()
    running.stop()
    provider.stop()


def test_signing_in_and_out_through_a_foreign_provider(house: House) -> None:
    page = house.page()
    house.arrive(page)
    page.wait_for_url(house.running.url + "/admin")
    assert page.get_by_text("olga").first.is_visible()
    page.goto(house.running.url + "/account")
    page.get_by_role("button", name="Sign out", exact=True).click()
    page.wait_for_url("**/admin/signed-out")
    page.goto(house.running.url + "/admin")
    assert page.url.startswith(house.provider.url + "/authorize?"), "signed out: the provider is asked again"


LIES = {
    "wrong issuer": {"claims": {"iss": "https://evil.example"}},
    "expired token": {"claims": {"exp": 1_700_000_000, "iat": 1_699_999_000}},
    "answer of another provider": {"sent": {"iss": "https://evil.example"}},
}


def test_a_provider_that_lies_is_told_of_and_lets_nobody_in(house: House) -> None:
    for why, lie in LIES.items():
        house.provider.lie = lie
        page = house.page()
        house.arrive(page)
        assert page.url.startswith(house.running.url + "/admin/callback"), why
        assert "sign in again" in page.get_by_role("main").inner_text(), why
        page.goto(house.running.url + "/admin")
        assert page.url.startswith(house.provider.url), why
        page.close()
    house.provider.lie = {}
    page = house.page()
    house.arrive(page)
    page.wait_for_url(house.running.url + "/admin")

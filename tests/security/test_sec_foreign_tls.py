"""Section 9 of the security page: a foreign provider over https, and who vouches for it."""

from __future__ import annotations

import ssl
import sys
from contextlib import closing
from pathlib import Path

import httpx2
import pytest

from bithaul.coordinator.context import open_coordinator
from bithaul.coordinator.identity.foreign import ForeignProvider
from bithaul.coordinator.settings import Settings
from bithaul.errors import InvalidConfig

sys.path.insert(0, str(Path(__file__).parent))
from foreign_provider import ADMINS, CLIENT, SECRET, WIDE, Authority, Provider, begin, is_in


@pytest.fixture
def over_tls(make_site, tmp_path):
    """A function that starts a provider with a certificate, and a coordinator that trusts an authority."""
    started = []

    def make(certificate, **options):
        provider = Provider()
        provider.start(tls=certificate)
        started.append(provider)
        settings = {"oidc_issuer": provider.url, "oidc_client_id": CLIENT, "oidc_client_secret": SECRET}
        site = make_site(WIDE, **settings, oidc_admins=ADMINS, **options)
        provider.now = site.clock.now
        return site, provider

    yield make
    for provider in started:
        provider.stop()


def at(provider, location, authority):
    """What the provider answers to the browser, which trusts the authority too."""
    trusted = ssl.create_default_context(cafile=authority.file)
    return httpx2.get(location, follow_redirects=False, trust_env=False, verify=trusted)


def test_a_provider_over_https_with_an_authority_of_its_own(over_tls, tmp_path):
    authority = Authority(tmp_path)
    site, provider = over_tls(authority.context(), oidc_ca_file=str(authority.file))
    assert provider.url.startswith("https://")
    browser = site.browser()
    came = at(provider, begin(browser), authority)
    assert browser.get(came.headers["location"]).status_code == 303
    assert is_in(browser)
    for lie in ({"claims": {"iss": "https://evil.example"}}, {"claims": {"exp": 1_799_999_000}}):
        provider.lie = lie
        refused = site.browser()
        came = at(provider, begin(refused), authority)
        assert refused.get(came.headers["location"]).status_code == 401
        assert not is_in(refused)


def test_the_file_of_authorities_may_lie_in_the_run_s_folder(over_tls, tmp_path):
    authority = Authority(tmp_path)
    site, _ = over_tls(authority.context(), oidc_ca_file=f"../{authority.file.name}")
    assert "/authorize?" in begin(site.browser())


def test_a_provider_whose_certificate_is_not_good_gets_nothing(over_tls, tmp_path):
    """Wrong result: anybody on the way may be the provider, and so any of its people."""
    authority, other = Authority(tmp_path), Authority(tmp_path, "Another CA")
    wrong = {
        "nobody vouches": (authority.context(), {}),
        "another authority": (authority.context(), {"oidc_ca_file": str(other.file)}),
        "another name": (authority.context(name="id.example"), {"oidc_ca_file": str(authority.file)}),
        "over": (authority.context(days=-1), {"oidc_ca_file": str(authority.file)}),
    }
    made = iter(wrong.items())
    why, (certificate, options) = next(made)
    site, provider = over_tls(certificate, **options)
    while True:
        answer = site.browser().get("/admin/signin")
        assert (answer.status_code, provider.asked) == (503, []), why
        if (case := next(made, None)) is None:
            return
        why, (certificate, options) = case
        provider.stop()
        provider.start(tls=certificate)
        site.options = {**site.options, "oidc_ca_file": "", "oidc_issuer": provider.url, **options}
        site.restart()


@pytest.mark.parametrize("content", [None, "", "no certificate"])
def test_authorities_that_cannot_be_read_do_not_start(tmp_path, content):
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    whole = {"oidc_issuer": "https://id.example", "oidc_client_id": "x", "oidc_admins": ADMINS}
    c = open_coordinator(Settings(directory=tmp_path, oidc_ca_file="ca.pem", **whole))
    with closing(c), pytest.raises(InvalidConfig, match="oidc_ca_file"):
        ForeignProvider(c)

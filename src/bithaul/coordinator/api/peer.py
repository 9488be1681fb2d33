"""Where a request comes from: the peer's address, or what a configured proxy says of its own peer.

X-Forwarded-For counts only from `trusted_proxies`, read from the right up to the first address that is not
one of them. X-Forwarded-Host and -Proto never count: addresses of ours come from `public_url`.
"""

from __future__ import annotations

import ipaddress

from starlette.requests import Request

from bithaul.coordinator.settings import Settings

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Peers:
    def __init__(self, settings: Settings) -> None:
        self._trusted: list[Network] = [ipaddress.ip_network(name) for name in settings.trusted_proxies]

    def address_of(self, request: Request) -> str:
        """An IP address, or "unknown"."""
        address = request.client.host if request.client else "unknown"
        forwarded = ",".join(request.headers.getlist("x-forwarded-for")).split(",")
        while self._is_trusted(address) and forwarded:
            candidate = forwarded.pop().strip()
            if not _is_address(candidate):
                break
            address = candidate
        return address

    def _is_trusted(self, text: str) -> bool:
        if not _is_address(text):
            return False
        address = ipaddress.ip_address(text)
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped  # how a listener for both tells an IPv4 peer
        return any(address in network for network in self._trusted)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True

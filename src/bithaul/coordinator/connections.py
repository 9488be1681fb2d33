"""How many connections each address has open, so that no single one takes every place there is.

Counted by the event loop's thread alone, without a lock. A trusted proxy's own address is that of all its
visitors, and this machine may run many workers: these are not bounded. Of an IPv6 address its networks count.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Sequence

from bithaul.coordinator.identity.throttle import networks_of
from bithaul.coordinator.settings import Settings

LOOPBACK: Sequence[str] = ("127.0.0.0/8", "::1/128")


class PeerConnections:
    """`per_address`, but never more than half of `in_all`; a wider IPv6 network has twice as many each."""

    def __init__(self, *, per_address: int, in_all: int, unbounded: Sequence[str] = ()) -> None:
        self.most = min(per_address, in_all // 2)
        self.counts: Counter[str] = Counter()
        self._widest = in_all // 2
        self._unbounded = [ipaddress.ip_network(name) for name in unbounded]

    @classmethod
    def of(cls, settings: Settings, *, in_all: int) -> PeerConnections:
        unbounded = (*LOOPBACK, *settings.trusted_proxies)
        return cls(per_address=settings.connections_per_address, in_all=in_all, unbounded=unbounded)

    def enter(self, address: str) -> bool:
        """Count one more. False: not counted, for the address has as many as it may."""
        networks = self._counted(address)
        for n, network in enumerate(networks):
            if self.counts[network] >= min(self.most * 2**n, self._widest):
                return False
        self.counts.update(networks)
        return True

    def leave(self, address: str) -> None:
        """One that had entered is closed."""
        for network in self._counted(address):
            self.counts[network] -= 1
            if not self.counts[network]:
                del self.counts[network]

    def _counted(self, address: str) -> list[str]:
        """Under which names it counts; none when it is not bounded, or when there is no address to tell."""
        networks = list(networks_of(address))
        try:
            parsed = ipaddress.ip_address(networks[0] if len(networks) == 1 else address)
        except ValueError:
            return []
        return [] if any(parsed in network for network in self._unbounded) else networks

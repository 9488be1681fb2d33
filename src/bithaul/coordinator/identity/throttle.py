"""Throttling of failed attempts on a credential path: per client and address, per address, and in all.

It slows guessing and never locks out: only a failed attempt is counted, and only a failed attempt is
answered with 429, so the right secret works under attack. Passwords can be guessed, 256 random bits cannot:
where a password is asked for, `blocked` refuses the guessing address unheard, and nobody else. Attempts are
also rows, so a restart forgets none. Of an IPv6 address its network counts: who has one has 2^64 of them.
"""

from __future__ import annotations

import ipaddress
import math
import time
from dataclasses import dataclass

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from sqlalchemy import delete, insert, select

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.identity.tables import failed_attempts
from bithaul.errors import BithaulError

WINDOW_SECONDS = 60.0
KEEP_SECONDS = 7 * 24 * 3600.0


@dataclass(frozen=True)
class Limits:
    """Failed attempts a minute before the answer becomes 429."""

    per_client_and_address: int = 10
    per_address: int = 60
    in_all: int = 600


class TooManyAttempts(BithaulError):
    """Too many failed attempts from this address, or in all."""

    code = "throttled"
    http_status = 429

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"Too many failed attempts; try again in {retry_after} s.")
        self.retry_after = retry_after


class Pace:
    """How often one address may do what costs us a write and proves nothing. In memory only."""

    def __init__(self, *, per_minute: int) -> None:
        self._window = MovingWindowRateLimiter(MemoryStorage())
        self._item = RateLimitItemPerMinute(per_minute)

    def step(self, address: str) -> None:
        """Raises `TooManyAttempts`."""
        source = source_of(address)
        if not self._window.hit(self._item, source):
            reset = self._window.get_window_stats(self._item, source).reset_time
            raise TooManyAttempts(max(1, math.ceil(reset - time.time())))


class Throttle:
    """One per credential path. Not a queue and not a ban."""

    def __init__(self, c: Coordinator, path: str, *, limits: Limits) -> None:
        self._c = c
        self._path = path
        self._window = MovingWindowRateLimiter(MemoryStorage())
        self._pair = RateLimitItemPerMinute(limits.per_client_and_address, namespace="pair")
        self._address = RateLimitItemPerMinute(limits.per_address, namespace="address")
        self._all = RateLimitItemPerMinute(limits.in_all, namespace="all")
        since = c.clock.now() - WINDOW_SECONDS
        recent = select(failed_attempts).where(failed_attempts.c.path == path, failed_attempts.c.time > since)
        with c.database.read() as connection:
            for row in connection.execute(recent.limit(limits.in_all)).mappings():
                self._count(row["client_id"], row["address"])

    def blocked(self, client_id: str, address: str) -> int | None:
        """Retry-After when this address has guessed too often, at this name or in all; None to go on."""
        client_id, source = client_id[:64], source_of(address)
        for item, key in ((self._address, (source,)), (self._pair, (source, client_id))):
            if not self._window.test(item, self._path, *key):
                return self._wait(item, key)
        return None

    def failed(self, client_id: str, address: str) -> int | None:
        """Count a failed attempt. None: answer as usual; a number: answer 429 with this Retry-After."""
        client_id, address = client_id[:64], address[:64]
        wait = self._count(client_id, address)
        if wait is not None:
            return wait
        now = self._c.clock.now()
        with self._c.database.write() as connection:
            connection.execute(delete(failed_attempts).where(failed_attempts.c.time < now - KEEP_SECONDS))
            connection.execute(
                insert(failed_attempts).values(
                    path=self._path, client_id=client_id, address=address, time=now
                )
            )
        return None

    def _count(self, client_id: str, address: str) -> int | None:
        # Checked from wide to narrow: once the wide window is full, no new keys are stored in memory.
        source = source_of(address)
        for item, key in (
            (self._all, ("*",)),
            (self._address, (source,)),
            (self._pair, (source, client_id)),
        ):
            if not self._window.hit(item, self._path, *key):
                return self._wait(item, key)
        return None

    def _wait(self, item: RateLimitItem, key: tuple[str, ...]) -> int:
        reset = self._window.get_window_stats(item, self._path, *key).reset_time
        return max(1, math.ceil(reset - time.time()))


def source_of(address: str) -> str:
    """What an address counts as: of IPv6 its /64, which one customer has for himself (RFC 6177)."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(parsed) >> 64 << 64, 64)))

"""Throttling of failed attempts on a credential path: per client and address, per address, and in all.

It slows guessing and never locks out: only a failed attempt is counted, and only a failed attempt is
answered with 429, so the right secret works under attack. Passwords can be guessed, 256 random bits cannot:
where a password is asked for, `blocked` refuses the guessing address unheard, and nobody else; while there
are too many failures in all, each address has `TRIES_IN_A_CROWD`. Attempts are also rows, so a restart
forgets none. Of an IPv6 address its networks count: who has one has 2^64 of them, or 2^80.
"""

from __future__ import annotations

import ipaddress
import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from sqlalchemy import delete, insert, select

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.identity.tables import failed_attempts
from bithaul.errors import BithaulError

WINDOW_SECONDS = 60.0
KEEP_SECONDS = 3600.0  # a row is read once, in the first minute after a restart
MOST_ROWS = 10_000  # all paths together: three minutes of an attack on each
MOST_KEYS = 10_000  # in memory, of one kind
TRIES_IN_A_CROWD = 2
_IPV6_NETWORKS = (64, 56, 48)  # RFC 6177: one customer has a /64 at least, and up to a /48


@dataclass(frozen=True)
class Limits:
    """Failed attempts a minute before the answer becomes 429. A wider IPv6 network has twice as many."""

    per_client_and_address: int = 10
    per_address: int = 60
    in_all: int = 600


class TooManyAttempts(BithaulError):
    """Too many failed attempts from this address, or in all."""

    code = "throttled"
    http_status = 429
    said: ClassVar[str] = "Too many failed attempts"

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"{self.said}; try again in {retry_after} s.")
        self.retry_after = retry_after


class Window:
    """What was counted in the last minute, by key. Above `MOST_KEYS` the longest quiet is forgotten."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._times: OrderedDict[str, deque[float]] = OrderedDict()

    def hit(self, key: str) -> bool:
        """Count once more. False: not counted, for it is full."""
        with self._lock:
            times = self._recent(key)
            if len(times) >= self.limit:
                return False
            times.append(time.monotonic())
            self._times[key] = times
            self._times.move_to_end(key)
            if len(self._times) > MOST_KEYS:
                self._times.popitem(last=False)
            return True

    def wait(self, key: str, *, limit: int | None = None) -> int | None:
        """Seconds until it is no longer full; None when it is not."""
        limit = self.limit if limit is None else min(limit, self.limit)
        with self._lock:
            times = self._recent(key)
            if len(times) < limit:
                return None
            return max(1, math.ceil(times[-limit] + WINDOW_SECONDS - time.monotonic()))

    def _recent(self, key: str) -> deque[float]:
        times = self._times.get(key)
        if times is None:
            return deque()
        since = time.monotonic() - WINDOW_SECONDS
        while times and times[0] <= since:
            times.popleft()
        if not times:
            del self._times[key]
        return times


class Networks:
    """A window for every network of an address; each wider one of IPv6 takes twice as many."""

    def __init__(self, limit: int) -> None:
        self._windows = [Window(limit * 2**n) for n in range(len(_IPV6_NETWORKS))]

    def wait(self, address: str, *, limit: int | None = None) -> int | None:
        """Seconds until none of them is full, the narrowest asked first; None when none is.

        `limit`: of the narrowest, when it is less than usual.
        """
        for n, (window, network) in enumerate(zip(self._windows, networks_of(address), strict=False)):
            wait = window.wait(network, limit=None if limit is None else limit * 2**n)
            if wait is not None:
                return wait
        return None

    def hit(self, address: str) -> int | None:
        """Count once more in each of them, or in none and say how long to wait: then one is full.

        What a full network does more is nobody else's: it does not use up what its neighbours have.
        """
        wait = self.wait(address)
        if wait is None:
            for window, network in zip(self._windows, networks_of(address), strict=False):
                window.hit(network)
        return wait


class Pace:
    """How often one address may do what costs us a write and proves nothing. In memory only."""

    def __init__(self, *, per_minute: int) -> None:
        self._networks = Networks(per_minute)

    def step(self, address: str) -> None:
        """Raises `TooManyAttempts`."""
        wait = self._networks.hit(address)
        if wait is not None:
            raise TooManyAttempts(wait)


class Throttle:
    """One per credential path. Not a queue and not a ban.

    `guessable`: a password is asked for, and each failure has cost a hash. These are counted also when there
    are too many in all; else no new key is stored then.
    """

    def __init__(self, c: Coordinator, path: str, *, limits: Limits, guessable: bool = False) -> None:
        self._c = c
        self._path = path
        self._guessable = guessable
        self._all = Window(limits.in_all)
        self._networks = Networks(limits.per_address)
        self._pairs = Window(limits.per_client_and_address)
        since = c.clock.now() - WINDOW_SECONDS
        recent = select(failed_attempts).where(failed_attempts.c.path == path, failed_attempts.c.time > since)
        with c.database.read() as connection:
            for row in connection.execute(recent.limit(limits.in_all)).mappings():
                self._count(row["client_id"], row["address"])

    def blocked(self, client_id: str, address: str) -> int | None:
        """Retry-After when this address has guessed too often, at this name or in all; None to go on.

        In a crowd that is earlier: guesses from ever new addresses find each of them nearly used up, and
        whoever mistypes once gets in with the next try.
        """
        crowd = self._all.wait("") is not None
        wait = self._networks.wait(address, limit=TRIES_IN_A_CROWD if crowd else None)
        return wait or self._pairs.wait(_pair(address, client_id))

    def failed(self, client_id: str, address: str) -> int | None:
        """Count a failed attempt. None: answer as usual; a number: answer 429 with this Retry-After."""
        client_id, address = client_id[:64], address[:64]
        wait = self._count(client_id, address)
        if wait is not None:
            return wait
        now = self._c.clock.now()
        values = {"path": self._path, "client_id": client_id, "address": address, "time": now}
        with self._c.database.write() as connection:
            [newest] = connection.execute(insert(failed_attempts).values(values)).inserted_primary_key or [0]
            connection.execute(delete(failed_attempts).where(failed_attempts.c.time < now - KEEP_SECONDS))
            connection.execute(delete(failed_attempts).where(failed_attempts.c.id <= newest - MOST_ROWS))
        return None

    def _count(self, client_id: str, address: str) -> int | None:
        """Retry-After when one of them is full; then nothing is counted behind it."""
        wait = self._networks.wait(address)
        if wait is not None:  # what it does more is nobody else's: not its neighbours', not everybody's
            return wait
        crowded = None if self._all.hit("") else self._all.wait("") or 1
        if crowded is not None and not self._guessable:
            return crowded
        wait = self._networks.hit(address)
        pair = _pair(address, client_id)
        if wait is None and not self._pairs.hit(pair):
            wait = self._pairs.wait(pair) or 1
        return crowded or wait


def networks_of(address: str) -> Iterator[str]:
    """What an address counts as, the narrowest first."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        yield address[:64]
        return
    if isinstance(parsed, ipaddress.IPv4Address):
        yield str(parsed)
    elif parsed.ipv4_mapped is not None:
        yield str(parsed.ipv4_mapped)
    else:
        for length in _IPV6_NETWORKS:
            yield str(ipaddress.IPv6Network((int(parsed) >> (128 - length) << (128 - length), length)))


def _pair(address: str, client_id: str) -> str:
    return f"{next(networks_of(address))} {client_id[:64]}"

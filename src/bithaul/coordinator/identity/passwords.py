"""Passwords of people: Argon2id (RFC 9106) through argon2-cffi, rules for new ones, generated ones.

No composition rules: 12 characters or more (NIST SP 800-63B). An unknown name costs the same as a known
one. Hashing takes 19 MiB and tens of milliseconds, so `PasswordThreads` lets two run at a time (one
where there are two cores) and bounds the queue.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Final, TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from bithaul.errors import InvalidInput, Unavailable

SHORTEST: Final = 12
LONGEST: Final = 256
THREADS: Final = 2 if (os.cpu_count() or 1) > 2 else 1  # one core at least is left to workers
QUEUE: Final = 12 * THREADS  # the last one waits a third of a second
_HASHER: Final = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)  # OWASP's first choice
_ALPHABET: Final = "abcdefghijkmnpqrstuvwxyz23456789"  # 32 letters that are not mistaken for each other
_GROUPS, _GROUP = 4, 5  # 100 bits

Result = TypeVar("Result")


def hash_password(password: str) -> str:
    return _HASHER.hash(password)


def is_password(stored: str | None, password: str) -> bool:
    """Whether `password` is the one of this hash. None (no such person) takes as long and is False."""
    try:
        return (
            _HASHER.verify(_dummy() if stored is None else stored, password[:LONGEST]) and stored is not None
        )
    except (VerificationError, InvalidHashError):
        return False


def needs_rehash(stored: str) -> bool:
    """Whether the parameters have changed since."""
    return _HASHER.check_needs_rehash(stored)


def generate_password() -> str:
    return "-".join("".join(secrets.choice(_ALPHABET) for _ in range(_GROUP)) for _ in range(_GROUPS))


def check_new(password: str, *, name: str) -> None:
    """Raises `InvalidInput` with the sentence the person sees."""
    if len(password) < SHORTEST:
        raise InvalidInput(f"The new password needs {SHORTEST} characters or more.", code="weak_password")
    if len(password) > LONGEST:
        raise InvalidInput(f"The new password may have at most {LONGEST} characters.", code="weak_password")
    if len(set(password)) < 5 or name.lower() in password.lower():
        raise InvalidInput(
            "The new password is too easy to guess: do not repeat a few characters or use the name.",
            code="weak_password",
        )


class PasswordThreads:
    """Threads of their own, so that a flood of sign-ins stops neither heartbeats nor the event loop.

    The same ones always: the allocator keeps what a hash took for each thread that ever made one.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="passwords")
        self._waiting = 0

    def refuse_when_full(self) -> None:
        """Raises `Unavailable`."""
        if self._waiting >= QUEUE:
            raise Unavailable("Too many people sign in at this moment; try again.", code="sign_in_busy")

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place in the queue, to take once the form is read and before anything else is done.

        Not before: who sends a form slowly would hold it. Raises `Unavailable` when the queue is full.
        """
        self.refuse_when_full()
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    async def run(self, work: Callable[[], Result]) -> Result:
        """What `work` answers; the caller has a place."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


@cache
def _dummy() -> str:
    return hash_password(secrets.token_urlsafe(32))

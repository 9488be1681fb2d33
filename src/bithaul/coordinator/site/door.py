"""Who may see the pages. The site knows this protocol only; identity supplies it, tests bring their own."""

from __future__ import annotations

from typing import Protocol

from starlette.requests import Request


class Person(Protocol):
    """Somebody who is signed in as an operator."""

    @property
    def name(self) -> str:
        """For the audit log and the page's corner."""
        ...


class Door(Protocol):
    """Every page asks it first; without one the app has no pages."""

    async def admin(self, request: Request) -> Person:
        """The operator behind this request. Raises for everybody else."""
        ...

    def csrf(self, request: Request) -> str:
        """The token that this visitor's forms must carry."""
        ...

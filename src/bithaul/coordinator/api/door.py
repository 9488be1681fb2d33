"""Before the pages that ask for a password: who comes when the queue is full is told at once, and cheaply.

Of two hundred people who sign in at the same moment most must come back. What their answer costs is taken
from the workers' requests behind them, so it is given before any form is read, route looked up or row asked.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from bithaul.coordinator.api.problems import Answers
from bithaul.coordinator.identity.passwords import PasswordThreads
from bithaul.errors import Unavailable

ASK_FOR_PASSWORDS = frozenset({"/signin", "/account/password"})


class Door:
    def __init__(self, app: ASGIApp, *, threads: PasswordThreads, answers: Answers) -> None:
        self._app = app
        self._threads = threads
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in ASK_FOR_PASSWORDS:
            try:
                self._threads.refuse_when_full()
            except Unavailable as error:
                await self._answers.of(scope, error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

"""`bithaul coordinator`: serve one run until SIGTERM or Ctrl-C.

Prints one line when it is ready and writes the address to coordinator.url in the run's folder. Refuses to
start, with one sentence, on a port in use, a damaged run or an unsafe public URL.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from filelock import FileLock, Timeout

from bithaul.errors import Conflict, InvalidConfig
from bithaul.visible import visible

if TYPE_CHECKING:
    from bithaul.coordinator.context import Coordinator

FIRST_ADMIN = "admin"

app = typer.Typer()


@app.command()
def coordinator(
    directory: Annotated[Path, typer.Option("--dir", help="The run's folder.")],
    host: Annotated[str | None, typer.Option(help="Address to listen on; 127.0.0.1 unless set.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
    public_url: Annotated[str | None, typer.Option(help="The address workers dial, if not this one.")] = None,
    allow_insecure_lan: Annotated[
        bool, typer.Option("--allow-insecure-lan", help="Accept plain http on a private network.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the readiness line as JSON.")] = False,
) -> None:
    """Serve one run's weights, corpus and work queue."""
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, _stop)
    from bithaul.coordinator.app import create_app
    from bithaul.coordinator.context import open_coordinator
    from bithaul.coordinator.identity.transport import check_public_url
    from bithaul.coordinator.server import Server, bind, url_of
    from bithaul.coordinator.services.runner import ServiceRunner, lead
    from bithaul.coordinator.services.startup import check_run, note_start
    from bithaul.coordinator.settings import load_settings

    if not directory.is_dir():
        raise InvalidConfig(
            f"There is no run folder {directory}; make one with: bithaul up --dir {directory}"
        )
    insecure = allow_insecure_lan or None  # the option switches on and never off
    wanted = load_settings(
        directory, host=host, port=port, public_url=public_url, allow_insecure_lan=insecure
    )
    listener = bind(wanted.host, wanted.port)
    try:
        url = url_of(wanted.host, listener)
        port = listener.getsockname()[1]
        settings = load_settings(
            directory, host=wanted.host, port=port, public_url=public_url, allow_insecure_lan=insecure
        )
        warning = check_public_url(settings.base_url, allow_insecure_lan=settings.allow_insecure_lan)
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_OneLine("%(asctime)s %(name)s %(message)s"))
        logging.basicConfig(level=logging.INFO, handlers=[handler])
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        if warning is not None:
            print(f"bithaul: warning: {warning}", file=sys.stderr)
        lock = FileLock(directory / "coordinator.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            message = f"Another coordinator already serves {directory}; stop it first."
            raise Conflict(message, code="already_running") from error
        context = open_coordinator(settings)
        try:
            lead(context)
            check_run(context)
            note_start(context)
            _ensure_admin(context)
            file = directory / "coordinator.url"

            def ready() -> None:
                aside = file.with_suffix(".url.new")
                aside.write_text(url + "\n", encoding="utf-8")
                aside.replace(file)
                line = {"url": url, "public_url": settings.base_url, "pid": os.getpid()}
                print(json.dumps(line) if as_json else f"listening on {url}", flush=True)

            application = create_app(context, runner=ServiceRunner.standard(context))
            try:
                Server(application, settings, on_ready=ready).run([listener])
            finally:
                file.unlink(missing_ok=True)
        finally:
            context.close()
            lock.release()
    finally:
        listener.close()


class _OneLine(logging.Formatter):
    """A message is one line, whatever a request or a worker has put into it; tracebacks keep theirs."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return visible(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        return visible(super().formatException(ei), keep="\n")


def _ensure_admin(c: Coordinator) -> None:
    """The first start makes the first person; a terminal is told the password, else a file of mode 0600."""
    from bithaul.coordinator.identity import secretfiles
    from bithaul.coordinator.identity.clients import secrets_folder
    from bithaul.coordinator.identity.people import count_people, create_person

    if count_people(c):
        return
    password = create_person(c, FIRST_ADMIN, actor="system")
    if sys.stderr.isatty():
        told = f"the password {password} (shown once)"
    else:
        note = secretfiles.write_note(secrets_folder(c), secretfiles.FIRST_PASSWORD, password + "\n")
        told = f"the password in {note}"
    print(f"bithaul: sign in at {c.settings.base_url}/admin as {FIRST_ADMIN} with {told}", file=sys.stderr)


def _stop(_signal: int, _frame: FrameType | None) -> NoReturn:
    """Before and after the server's own handling: asked to stop means exit 0."""
    raise SystemExit(0)

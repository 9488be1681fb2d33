"""Runs the application on uvicorn: one process, hardened settings, a clean start and a clean stop.

The socket is bound here, before anything is printed, so a port in use is one clear sentence and the address
that is announced is the one that listens.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable

import uvicorn
from starlette.types import ASGIApp

from bithaul.coordinator import garbage
from bithaul.coordinator.connections import PeerConnections
from bithaul.coordinator.protocol import HardenedHttpToolsProtocol
from bithaul.coordinator.settings import Settings
from bithaul.errors import BithaulError, InvalidConfig

MAX_CONNECTIONS = 4096  # a worker keeps one open between its heartbeats; an idle one costs 8 KiB
OTHER_FILES = 256  # databases, blobs and uploads that are open at the same time
SHUTDOWN_SECONDS = 10


class PortInUse(BithaulError):
    code = "port_in_use"
    http_status = 503
    exit_code = 9


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `PortInUse` or `InvalidConfig`; port 0 takes a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named because asyncio switches off Nagle's delay (40 ms an answer) only then.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":  # on Windows this option would let two coordinators share the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(256)
    except OSError as error:
        listener.close()
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise PortInUse(
                f"Port {port} on {host} is in use or not allowed; stop the program that holds it, or choose "
                "another one with --port."
            ) from error
        raise InvalidConfig(f"Cannot listen on {host}: {error.strerror or error}; check --host.") from error
    listener.setblocking(False)
    return listener


def url_of(host: str, listener: socket.socket) -> str:
    """http://host:port of a bound socket."""
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listener.getsockname()[1]}"


class Server(uvicorn.Server):
    """uvicorn's server with a call when it is ready."""

    def __init__(self, app: ASGIApp, settings: Settings, *, on_ready: Callable[[], None]) -> None:
        super().__init__(config(app, settings))
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            garbage.settle()
            self._on_ready()


def most_connections() -> int:
    """As many as the system lets this process have, after asking it for all that it may."""
    if os.name != "posix":
        return MAX_CONNECTIONS
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else max(64, min(wanted, soft) - OTHER_FILES)


def config(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    most = most_connections()

    class Protocol(HardenedHttpToolsProtocol):
        peers = PeerConnections.of(settings, in_all=most)

    return uvicorn.Config(
        app,
        loop="asyncio",
        http=Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=most,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )

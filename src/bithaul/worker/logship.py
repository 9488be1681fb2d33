"""The worker's log: lines on the console, and a bounded copy that travels to the coordinator in batches.

While the coordinator is away the newest entries are kept; what had to go is counted and said with the next
batch. Shipping never blocks or fails the work. The logger is an object, nothing is configured globally.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, MutableMapping
from typing import TextIO, cast

import structlog
from structlog.typing import FilteringBoundLogger, WrappedLogger

from bithaul.exchange.messages import LogBatch, LogEntry
from bithaul.visible import visible

BATCH = 500
_TEXT = 500
_LEVELS = {"debug": "debug", "info": "info", "warning": "warning", "warn": "warning"}


class LogBuffer:
    """The newest `bound` entries that the coordinator has not confirmed. Thread-safe."""

    def __init__(self, bound: int = 5_000) -> None:
        self._bound = bound
        self._entries: deque[LogEntry] = deque()
        self._dropped = 0
        self._lock = threading.Lock()

    def add(self, entry: LogEntry) -> None:
        with self._lock:
            self._entries.append(entry)
            if len(self._entries) > self._bound:
                self._entries.popleft()
                self._dropped += 1

    def ship(self, send: Callable[[LogBatch], None]) -> int:
        """Send the oldest batch, if any. When `send` raises, the entries are kept and the error goes on."""
        with self._lock:
            entries = [self._entries.popleft() for _ in range(min(BATCH, len(self._entries)))]
            dropped, self._dropped = self._dropped, 0
        if not entries and not dropped:
            return 0
        try:
            send(LogBatch(entries=entries, dropped=dropped))
        except BaseException:
            with self._lock:
                self._entries.extendleft(reversed(entries))
                self._dropped += dropped
                while len(self._entries) > self._bound:
                    self._entries.popleft()
                    self._dropped += 1
            raise
        return len(entries)


def worker_log(
    buffer: LogBuffer,
    *,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.time,
    json_lines: bool = False,
) -> FilteringBoundLogger:
    """A logger that writes to `stream` (standard error) and into `buffer` (from level info on)."""
    stream = sys.stderr if stream is None else stream

    def copy(
        _: WrappedLogger, method: str, event: MutableMapping[str, object]
    ) -> MutableMapping[str, object]:
        if method != "debug":
            fields = {k: _plain(v) for k, v in event.items() if k not in ("event", "level", "timestamp")}
            level = _LEVELS.get(method, "error")
            entry = {"time": clock(), "level": level, "event": str(event["event"])[:200], "fields": fields}
            buffer.add(LogEntry.model_validate(entry))
        return event

    render = (
        [structlog.processors.JSONRenderer()]  # spells out everything that is not ASCII
        if json_lines
        else [_seen, structlog.dev.ConsoleRenderer(colors=stream.isatty(), pad_event_to=0, sort_keys=False)]
    )
    logger = structlog.wrap_logger(
        structlog.PrintLogger(stream),
        processors=[
            copy,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S" if not json_lines else "iso", utc=json_lines),
            structlog.processors.format_exc_info,
            *render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger("info"),
        context_class=dict,
    )
    return cast("FilteringBoundLogger", logger)


def _seen(_: WrappedLogger, _method: str, event: MutableMapping[str, object]) -> MutableMapping[str, object]:
    """Words of the coordinator reach this terminal as letters and do nothing to it."""
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = visible(value, keep="\n" if key == "exception" else "")
    return event


def _plain(value: object) -> str | int | float | bool | None:
    """What the log message may carry: numbers as they are, the rest as bounded text."""
    if isinstance(value, str):
        return value[:_TEXT]
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else str(value)
    return str(value)[:_TEXT]

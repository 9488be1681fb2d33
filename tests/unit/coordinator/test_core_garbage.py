"""What the garbage collector of a coordinator looks through, and what it leaves out."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from bithaul.coordinator import garbage
from bithaul.coordinator.server import Server, bind
from bithaul.coordinator.settings import Settings

PROGRAM = """
import gc, weakref
import bithaul.coordinator.app
from bithaul.coordinator.garbage import settle

class Ring:
    def __init__(self):
        self.itself = self

usual = gc.get_threshold()
gc.disable()
left_by_start_up = weakref.ref(Ring())
gc.enable()
before = len(gc.get_objects())
settle()
left = len(gc.get_objects())
waste = left_by_start_up() is None
gone = weakref.ref(Ring())
young, *older = gc.get_threshold()
for _ in range(2 * young):
    Ring()  # by itself, nobody asks for a collection
print(before, left, waste, gone() is None, young > 5 * usual[0], older == list(usual[1:]))
"""


def test_a_full_collection_leaves_out_what_start_up_made() -> None:
    """Catches pauses of a fifth of a second in which no worker is answered, waste of start-up that is kept
    for ever, a collector that is off, and one that looks as often as before."""
    run = subprocess.run([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True, check=True)
    before, left, *told = run.stdout.split()
    assert int(before) > 50_000
    assert int(left) < int(before) / 20
    assert told == ["True"] * 4


def test_a_server_settles_before_it_says_that_it_is_ready(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    order: list[str] = []
    monkeypatch.setattr(garbage, "settle", lambda: order.append("settled"))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "lifespan"
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})

    def ready() -> None:
        order.append("ready")
        server.should_exit = True

    server = Server(app, Settings(directory=tmp_path), on_ready=ready)
    thread = threading.Thread(target=server.run, args=([bind("127.0.0.1", 0)],))
    thread.start()  # browser tests in this process may have left a loop running in this thread
    thread.join(30)
    assert not thread.is_alive()
    assert order == ["settled", "ready"]
    assert gc.isenabled()

"""What checking a token costs each request, and what it costs to refuse a revoked one: medians in ms.

A real SQLite file with a thousand clients and ten thousand denied tokens, and the call that every guarded
route makes. `good` is a worker's token; the others are refused: by the deny list (a single token was
revoked), by the credential's version (rotated), by the client (disabled); `revoke` is what revoking one
writes. Bar: 0.5 ms for the checks. The last line is JSON. Example:

    python benchmarks/identity.py --checks 4000
"""

from __future__ import annotations

import argparse
import json
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

from sqlalchemy import insert, select

from bithaul.coordinator.context import Coordinator, open_coordinator
from bithaul.coordinator.identity.clients import create_client, disable_client, rotate_client
from bithaul.coordinator.identity.keys import SigningKeys
from bithaul.coordinator.identity.sessions import Sessions
from bithaul.coordinator.identity.tables import clients, denied_tokens
from bithaul.coordinator.identity.tokens import InvalidToken, Tokens
from bithaul.coordinator.settings import load_settings
from bithaul.exchange.messages import WORKER_SCOPE

CLIENTS, DENIED, BAR = 1000, 10_000, 0.5
NAMES = ("good", "denied", "rotated", "disabled")


def fill(c: Coordinator) -> None:
    """As many clients and denied tokens as a large fleet has after a bad week."""
    for name in NAMES:
        create_client(c, name, scope=WORKER_SCOPE)
    with c.database.write() as connection:
        row = dict(connection.execute(select(clients).where(clients.c.id == "good")).mappings().one())
        connection.execute(insert(clients), [{**row, "id": f"w{i}"} for i in range(CLIENTS)])
        until = time.time() + 3600
        rows = [{"jti": secrets.token_hex(16), "expires_at": until} for _ in range(DENIED)]
        connection.execute(insert(denied_tokens), rows)


def mint(c: Coordinator, tokens: Tokens, name: str) -> str:
    with c.database.write() as connection:
        cv = connection.execute(select(clients.c.cv).where(clients.c.id == name)).scalar_one()
        return tokens.mint(connection, client_id=name, scope=WORKER_SCOPE, cv=cv)


def deny(c: Coordinator, tokens: Tokens, jti: str) -> None:
    with c.database.write() as connection:
        tokens.deny(connection, jti=jti, expires_at=int(time.time()) + 3600)


def timed(work: Callable[[], object], checks: int) -> dict[str, float]:
    """Milliseconds: the middle one and the 99th of a hundred, after fifty to warm up."""
    taken = []
    for _ in range(checks + 50):
        began = time.perf_counter()
        with suppress(InvalidToken):
            work()
        taken.append(1e3 * (time.perf_counter() - began))
    taken = sorted(taken[50:])
    return {"median_ms": statistics.median(taken), "p99_ms": taken[int(0.99 * len(taken))]}


def measure(c: Coordinator, checks: int) -> list[dict[str, object]]:
    tokens = Tokens(c, SigningKeys(c), Sessions(c))
    fill(c)
    issued = {name: mint(c, tokens, name) for name in NAMES}
    deny(c, tokens, tokens.verify(issued["denied"]).jti)
    rotate_client(c, "rotated")
    disable_client(c, "disabled")
    assert tokens.verify(issued["good"]).client_id == "good"
    rows: list[dict[str, object]] = []
    for name in NAMES:
        if name != "good":
            with suppress(InvalidToken):
                tokens.verify(issued[name])
                raise SystemExit(f"the {name} token is good")
        rows.append({"token": name, **timed(lambda name=name: tokens.verify(issued[name]), checks)})
    rows.append({"token": "revoke", **timed(lambda: deny(c, tokens, secrets.token_hex(16)), checks // 10)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checks", type=int, default=4000)
    checks = parser.parse_args().checks
    with tempfile.TemporaryDirectory() as folder, closing(open_coordinator(load_settings(Path(folder)))) as c:
        rows = measure(c, checks)
    slowest = max(float(str(row["median_ms"])) for row in rows if row["token"] != "revoke")
    told = {"slowest_median_ms": slowest, "bar_ms": BAR, "below": slowest < BAR, "clients": CLIENTS}
    print(json.dumps({**told, "denied": DENIED, "checks": checks, "rows": rows}))


if __name__ == "__main__":
    main()

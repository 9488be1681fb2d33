"""People who all press "Sign in" at the same moment, again and again: a program of its own.

In a process of its own, because 200 clients in the process that measures would be measured too. Standard
input is one JSON object with `host`, `port`, `bursts` and `requests`, each the bytes of one whole request;
standard output one JSON object: how long each burst took to be answered, and the answers by status.
"""

from __future__ import annotations

import asyncio
import collections
import json
import sys
import time


async def ask(host: str, port: int, request: bytes) -> int:
    """The status of one request on a connection of its own, after the whole answer was read."""
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return int(answer.split(b" ", 2)[1])


async def crowd(host: str, port: int, requests: list[bytes], *, bursts: int) -> dict[str, object]:
    statuses: collections.Counter[int] = collections.Counter()
    took = []
    for _ in range(bursts):
        began = time.monotonic()
        statuses.update(await asyncio.gather(*(ask(host, port, request) for request in requests)))
        took.append(time.monotonic() - began)
    return {"statuses": dict(statuses), "took": took}


if __name__ == "__main__":
    told = json.load(sys.stdin)
    sent = [request.encode() for request in told["requests"]]
    found = asyncio.run(crowd(told["host"], told["port"], sent, bursts=told["bursts"]))
    sys.stdout.write(json.dumps(found))

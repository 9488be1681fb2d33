"""Coverage-guided fuzzing of what strangers' bytes reach: `python tests/security/fuzz.py TARGET SECONDS`.

Needs atheris (Linux; `pip install atheris`), which is not a dependency. Each target knows the errors that an
input may cause; anything else, or an allocation beyond the cap, is a finding: atheris prints it and keeps the
input. The last line is JSON with the number of inputs tried. `make fuzz` runs all targets. What `signed` does
stands in `fuzz_signed.py`.
"""

from __future__ import annotations

import atexit
import io
import json
import os
import shutil
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import atheris

sys.path.insert(0, str(Path(__file__).parent))

with atheris.instrument_imports(include=["bithaul", "joserfc"]):
    from fuzz_signed import Signed
    from starlette.requests import Request

    from bithaul.coordinator.api import tus
    from bithaul.coordinator.api.forms import parse
    from bithaul.coordinator.api.guard import depth, members
    from bithaul.coordinator.api.ranges import parse as parse_range
    from bithaul.coordinator.context import open_coordinator
    from bithaul.coordinator.identity.clients import create_client
    from bithaul.coordinator.identity.keys import SigningKeys
    from bithaul.coordinator.identity.sessions import Sessions
    from bithaul.coordinator.identity.tokens import Tokens
    from bithaul.coordinator.settings import Settings
    from bithaul.corpus.importers import read_any
    from bithaul.errors import BithaulError
    from bithaul.exchange.codecs import CODECS, decode
    from bithaul.exchange.frame import read_header
    from bithaul.exchange.weights import read_weights

CAP = 4 * 2**20  # bytes that decoding 512 bytes may hold at the most
LONGEST = 4096
FOLDER = Path(tempfile.mkdtemp(prefix="bithaul-fuzz-"))
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)


class Place:
    offset, size = 0, 64


class Layout:
    tensors = (Place,)
    size = 64


def capped(work: Callable[[], object]) -> None:
    """Raises MemoryError when `work` held more than the cap, whatever it answered."""
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    try:
        with suppress(BithaulError):
            work()
    finally:
        if tracemalloc.get_traced_memory()[1] - before > CAP:
            raise MemoryError(f"more than {CAP} bytes")


def codecs(data: bytes) -> None:
    codec = list(CODECS.values())[data[0] % len(CODECS)] if data else next(iter(CODECS.values()))
    magic = getattr(codec, "magic", b"")
    capped(lambda: decode(codec, data[1:], Layout))
    capped(lambda: decode(codec, magic + data[1:], Layout))
    capped(lambda: read_header(io.BytesIO(data)))
    capped(lambda: read_weights(data, expected_count=64))


def make_tokens() -> tuple[Tokens, str]:
    c = open_coordinator(Settings(directory=FOLDER / "run"))
    create_client(c, "w1", scope="bithaul.worker")
    keys = SigningKeys(c)
    return Tokens(c, keys, Sessions(c)), str(keys.jwks()["keys"][0]["kid"])


def jwts() -> Callable[[bytes], None]:
    tokens, kid = make_tokens()

    def one(data: bytes) -> None:
        text = data.decode("utf-8", errors="surrogateescape")
        for token in (text, f"{tus_b64({'alg': 'RS256', 'typ': 'at+jwt', 'kid': kid})}.{text}"):
            with suppress(BithaulError):
                tokens.verify(token)
                raise AssertionError("a token that nobody has signed is good")

    return one


def tus_b64(value: object) -> str:
    import base64

    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def headers(data: bytes) -> None:
    """What a resumable upload, a range and a form are described by."""
    names = (b"upload-length", b"upload-metadata", b"upload-checksum", b"upload-offset", b"tus-resumable")
    parts = data.split(b"\n", len(names))
    sent: list[tuple[bytes, bytes]] = list(zip(names, parts, strict=False))
    request = Request({"type": "http", "method": "POST", "path": "/", "headers": sent})
    for read in (tus._length, tus._metadata, tus._checksum, tus._require_version):
        with suppress(BithaulError):
            read(request)
    with suppress(BithaulError):
        tus._number(request, "upload-offset")
    with suppress(BithaulError):
        parse_range(data.decode("latin-1"), 1000)
    with suppress(BithaulError):
        parse(data)
    depth(data)
    members(data)


def importer(data: bytes) -> None:
    kinds = (".jsonl", ".tsv", ".csv", ".txt")
    path = FOLDER / f"data{kinds[data[0] % 4] if data else '.jsonl'}"
    path.write_bytes(data[1:])
    capped(lambda: read_any(path))


TARGETS: dict[str, Callable[[], Callable[[bytes], None]]] = {
    "codecs": lambda: codecs,
    "jwt": jwts,
    "signed": lambda: Signed(FOLDER / "run"),
    "headers": lambda: headers,
    "importer": lambda: importer,
}


def main() -> None:
    name, seconds = sys.argv[1], float(sys.argv[2])
    target = TARGETS[name]()
    tried = 0
    began = time.monotonic()
    tracemalloc.start()

    def one(data: bytes) -> None:
        nonlocal tried
        tried += 1
        target(data)
        if time.monotonic() - began > seconds:
            told: dict[str, Any] = {
                "target": name,
                "inputs": tried,
                "seconds": round(time.monotonic() - began),
                **getattr(target, "counts", {}),
            }
            sys.stdout.write(json.dumps(told) + "\n")
            sys.stdout.flush()
            shutil.rmtree(FOLDER, ignore_errors=True)
            os._exit(0)  # atheris never returns

    corpus = FOLDER / "corpus"
    corpus.mkdir()
    atheris.Setup([sys.argv[0], str(corpus), f"-max_len={LONGEST}", "-rss_limit_mb=4096"], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

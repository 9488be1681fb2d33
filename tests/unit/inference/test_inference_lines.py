"""Lines from a pipe: every line once, at once when slow, in batches when fast."""

from __future__ import annotations

import os
import threading

import pytest

from bithaul.inference.lines import line_batches


def lines_of(*chunks: bytes, batch: int = 64, max_line_bytes: int = 1000) -> list[str]:
    source = iter([*chunks, b""])
    return [
        line
        for lines in line_batches(lambda: next(source), batch=batch, max_line_bytes=max_line_bytes)
        for line in lines
    ]


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ([], []),
        ([b"one\n"], ["one"]),
        ([b"one"], ["one"]),
        ([b"\n"], [""]),
        ([b"a\n\n\nb\n"], ["a", "", "", "b"]),
        ([b"a\r\nb\rc\n"], ["a", "b\rc"]),
        ([b"hal", b"f and half\nnext", b"\n"], ["half and half", "next"]),
        ([bytes([byte]) for byte in "zwölf 🚛\n".encode()], ["zwölf 🚛"]),
        (["a\u2028b\x85c\x0b\n".encode(), b"d\n"], ["a\u2028b\x85c\x0b", "d"]),
        ([b"\xff\xfe\n"], ["\ufffd\ufffd"]),
    ],
)
def test_each_input_line_is_one_line(chunks: list[bytes], expected: list[str]) -> None:
    """Lost empty lines, lines cut at a chunk's border or at other separators would shift the rest."""
    assert lines_of(*chunks) == expected


def test_a_line_without_end_is_cut_not_collected() -> None:
    assert lines_of(*[b"x" * 900] * 50, b"\nnext\n") == ["x" * 1000, "next"]


def test_batches_are_full_when_input_is_fast() -> None:
    """One at a time would make a file of requests many times slower."""
    read, write = os.pipe()
    os.write(write, b"line\n" * 100)
    os.close(write)
    with os.fdopen(read, "rb", buffering=0) as stream:
        sizes = [len(lines) for lines in line_batches(lambda: stream.read(65536), batch=30)]
    assert sum(sizes) == 100
    assert max(sizes) <= 30


def test_a_slow_line_is_not_held_back() -> None:
    """Waiting for a full batch would hang a program that waits for its answer."""
    read, write = os.pipe()
    with os.fdopen(read, "rb", buffering=0) as stream, os.fdopen(write, "wb", buffering=0) as sink:
        batches = line_batches(lambda: stream.read(65536), batch=30)
        sink.write(b"first\n")
        assert next(batches) == ["first"]
        sink.write(b"second\n")
        assert next(batches) == ["second"]
        sink.close()
        assert list(batches) == []


def test_what_reading_raises_is_raised_after_the_lines_before() -> None:
    """A broken pipe must not look like the end of the input."""
    calls = iter([b"one\n"])

    def read() -> bytes:
        try:
            return next(calls)
        except StopIteration:
            raise OSError("gone") from None

    batches = line_batches(read)
    found = next(batches)
    with pytest.raises(OSError, match="gone"):
        next(batches)
    assert found == ["one"]


def test_no_thread_is_left_behind() -> None:
    before = threading.active_count()
    lines_of(b"a\n", b"b\n")
    for thread in threading.enumerate():
        if thread.name == "lines":
            thread.join(5)
    assert threading.active_count() <= before

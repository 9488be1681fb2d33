"""Importers: every format, and bad lines named by file and line with nothing half imported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bithaul.corpus.example import Example, TextLine
from bithaul.corpus.importers import read_any, read_examples, read_text
from bithaul.corpus.truckmate.generator import generate
from bithaul.errors import InvalidData, NotFound

PAIR = [{"name": "a", "value": "x"}, {"name": "b", "value": "y"}]
TWICE = [{"name": "n", "value": "3"}, {"name": "n", "value": "6"}]


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_jsonl_with_slots_as_object_or_list(tmp_path: Path) -> None:
    records = [
        {"text": "go", "intent": "navigate", "slots": {"city": "Dallas", "stops": ["Waco", "Tyler"]}},
        {"text": "play x by y", "intent": "Play", "slots": PAIR},
        {"text": "rate 3 of 6", "intent": "Rate", "slots": TWICE},
        {"text": "stop", "intent": "stop"},
        {"text": "stop", "label": "halt", "slots": None},
    ]  # fmt: skip
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, records)) + "\n\n")
    assert read_examples(path) == [
        Example("go", "navigate", (("city", "Dallas"), ("stops", ("Waco", "Tyler")))),
        Example("play x by y", "Play", (("a", "x"), ("b", "y"))),
        Example("rate 3 of 6", "Rate", (("n", ("3", "6")),)),
        Example("stop", "stop"),
        Example("stop", "halt"),
    ]


@pytest.mark.parametrize("header", ["", "text\tlabel\n", "Text\tIntent\n"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_tsv_with_and_without_header(header: str, end: str, tmp_path: Path) -> None:
    content = (header + "book a flight\ttravel\nwhat's up?\tsmall talk\n").replace("\n", end)
    path = write(tmp_path / "a.tsv", b"\xef\xbb\xbf" + content.encode())
    assert read_examples(path) == [Example("book a flight", "travel"), Example("what's up?", "small talk")]


def test_a_header_may_name_the_columns_in_the_other_order(tmp_path: Path) -> None:
    """Read as text and label, such a file would train the requests as intents."""
    path = write(tmp_path / "a.tsv", "label\ttext\ntravel\tbook a flight\nsmall talk\twhat's up?\n")
    assert read_examples(path) == [Example("book a flight", "travel"), Example("what's up?", "small talk")]


def test_csv_with_quotes_and_a_line_break_in_a_field(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'text,label\n"go, then ""stop""",a\n"two\nlines",b\nplain,c\n')
    assert read_examples(path) == [
        Example('go, then "stop"', "a"),
        Example("two\nlines", "b"),
        Example("plain", "c"),
    ]


def test_plain_text_and_text_only_jsonl(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", " first line \n\n second\n")
    assert read_text(path) == [TextLine("first line"), TextLine("second")]
    path = write(tmp_path / "b.jsonl", '{"text": "a b"}\n{"text": "c"}\n')
    assert read_any(path) == [TextLine("a b"), TextLine("c")]
    with pytest.raises(InvalidData, match="without labels"):
        read_examples(path)


def test_the_text_form_of_the_generator(tmp_path: Path) -> None:
    examples = list(generate(count=50, seed=1, split="train"))
    path = write(tmp_path / "a.txt", "".join(example.line() + "\n" for example in examples))
    assert read_examples(path) == examples
    write(path, path.read_text() + "[USER] hi [INTENT] {broken\n")
    with pytest.raises(InvalidData, match=r"a\.txt:51: the label is not JSON"):
        read_any(path)


def test_a_folder_is_read_in_order_of_names(tmp_path: Path) -> None:
    write(tmp_path / "b.tsv", "two\tb\n")
    write(tmp_path / "a.csv", "one,a\n")
    write(tmp_path / "sub" / "c.jsonl", '{"text": "three", "intent": "c"}\n')
    write(tmp_path / "notes.md", "not data")
    assert [example.text for example in read_examples(tmp_path)] == ["one", "two", "three"]
    write(tmp_path / "z.txt", "plain\n")
    with pytest.raises(InvalidData, match="mixes"):
        read_any(tmp_path)


BAD = [
    ("a.jsonl", '{"text": "ok", "intent": "a"}\n{"text": \n', r"a\.jsonl:2: not JSON"),
    ("a.jsonl", '["x"]\n', r"a\.jsonl:1: a line must be an object"),
    ("a.jsonl", '{"text": "", "intent": "a"}\n', r"a\.jsonl:1: .text. must be"),
    ("a.jsonl", '{"text": 3, "intent": "a"}\n', r"a\.jsonl:1: .text. must be"),
    ("a.jsonl", '{"text": "x", "intent": null}\n', r"a\.jsonl:1: .intent. must be"),
    ("a.jsonl", '{"text": "x", "slots": {}}\n', r"a\.jsonl:1: .slots. without an"),
    ("a.jsonl", '{"text": "x", "intent": "a", "slots": "b"}\n', r"a\.jsonl:1: .slots. must be"),
    ("a.jsonl", '{"text": "x", "intent": "a", "slots": [{"name": "b"}]}\n', r"a\.jsonl:1: each slot"),
    ("a.jsonl", '{"text": "x", "intent": "a", "slots": {"b": 3}}\n', r"a\.jsonl:1: the value of slot 'b'"),
    ("a.jsonl", '{"text": "x\\ud800", "intent": "a"}\n', r"a\.jsonl:1: .*surrogate"),
    ("a.jsonl", "[" * 100_000 + "\n", r"a\.jsonl:1: "),
    ("a.tsv", "fine\ta\nno label\n", r"a\.tsv:2: 1 columns instead of text and label"),
    ("a.tsv", "fine\ta\n\ttwo\n", r"a\.tsv:2: the text is empty"),
    ("a.tsv", "a\tb\tc\n", r"a\.tsv:1: 3 columns"),
    ("a.tsv", b"fine\ta\n\xff\xfe\tb\n", r"a\.tsv:2: not UTF-8"),
    ("a.csv", 'fine,a\n\n"two\nlines",b\nbad\n', r"a\.csv:5: 1 columns"),
    ("a.csv", 'fine,a\n"open,b\n', r"a\.csv:2: not CSV"),
    ("a.txt", b"fine\n\xff\n", r"a\.txt:2: not UTF-8"),
    ("a.bin", "x", "the format must be one of"),
    ("a.tsv", "\n\n", "holds no examples"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD)
def test_a_bad_line_is_named_and_nothing_is_imported(
    name: str, content: str | bytes, message: str, tmp_path: Path
) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(InvalidData, match=message):
        read_any(path)


def test_all_bad_lines_are_named_at_once_up_to_a_bound(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "good\ta\n" + "bad\n" * 25)
    with pytest.raises(InvalidData) as caught:
        read_any(path)
    assert caught.value.message.count("a.tsv:") == 10
    assert "and 15 more" in caught.value.message


def test_a_missing_path_and_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        read_any(tmp_path / "missing.tsv")
    with pytest.raises(InvalidData, match="holds no file"):
        read_any(tmp_path)

"""Other people's data as examples: JSONL, TSV, CSV, plain text, or a folder of them.

Bad lines are reported with file and line number, all of them in one `InvalidData`, and then nothing is
imported. Labels and slot names keep the file's spelling. Nothing is fetched.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from bithaul.corpus.example import Example, SlotValue, TextLine, merge_slots
from bithaul.corpus.pieces import INTENT, USER
from bithaul.errors import InvalidData, NotFound

SHOWN = 10
MAX_LINE = 1_000_000
LABELLED = (".jsonl", ".tsv", ".csv")
_HEADERS = {("text", "label"), ("text", "intent"), ("utterance", "intent"), ("utterance", "label")}

Problems = list[str]


def read_examples(path: Path) -> list[Example]:
    """Labelled requests of a .jsonl, .tsv or .csv file, or of all such files in a folder, sorted by name."""
    found = read_any(path)
    examples = [item for item in found if isinstance(item, Example)]
    if len(examples) != len(found):
        raise InvalidData(f"{path} holds plain text without labels; requests need text and intent.")
    return examples


def read_text(path: Path) -> list[TextLine]:
    """Plain text, one line each, blank lines left out; also .jsonl whose lines have only a text."""
    found = read_any(path)
    lines = [item for item in found if isinstance(item, TextLine)]
    if len(lines) != len(found):
        raise InvalidData(f"{path} holds labelled requests; give a .txt file, or .jsonl with only a text.")
    return lines


def read_any(path: Path) -> list[Example] | list[TextLine]:
    """Whatever `path` holds, by its format; a folder must hold one kind only."""
    problems: Problems = []
    items: list[Example | TextLine] = []
    for file in _files(path):
        items += _READERS[file.suffix.lower()](file, problems)
    if problems:
        more = f" (and {len(problems) - SHOWN} more)" if len(problems) > SHOWN else ""
        raise InvalidData("Nothing was imported; correct " + "; ".join(problems[:SHOWN]) + more + ".")
    if not items:
        raise InvalidData(f"{path} holds no examples; give a file with at least one line.")
    examples = [item for item in items if isinstance(item, Example)]
    lines = [item for item in items if isinstance(item, TextLine)]
    if examples and lines:
        raise InvalidData(f"{path} mixes labelled requests and plain text; import them separately.")
    return examples or lines


def _files(path: Path) -> list[Path]:
    if path.is_file():
        if path.suffix.lower() not in _READERS:
            raise InvalidData(f"{path}: the format must be one of {', '.join(sorted(_READERS))}.")
        return [path]
    if path.is_dir():
        inside = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in _READERS)
        if not inside:
            raise InvalidData(f"{path} holds no file of {', '.join(sorted(_READERS))}.")
        return inside
    raise NotFound(f"{path} does not exist; check the path.")


def _lines(file: Path, problems: Problems) -> Iterator[tuple[int, str]]:
    """Numbered lines that are not blank. UTF-8 with or without a byte-order mark, any line end."""
    with file.open("rb") as stream:
        number = 0
        while raw := stream.readline(MAX_LINE + 1):
            number += 1
            if len(raw) > MAX_LINE:
                problems.append(f"{file}:{number}: the line is longer than {MAX_LINE} bytes")
                return
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                problems.append(f"{file}:{number}: not UTF-8 at byte {error.start}")
                continue
            if text.strip():
                yield number, text.rstrip("\r\n")


def _read_txt(file: Path, problems: Problems) -> list[Example | TextLine]:
    """Plain text; or the text form of examples, when the first line has it."""
    items: list[Example | TextLine] = []
    labelled: bool | None = None
    for number, line in _lines(file, problems):
        if labelled is None:
            labelled = line.startswith(f"{USER} ") and f" {INTENT} " in line
        if not labelled:
            items.append(TextLine(line.strip()))
            continue
        try:
            items.append(_text_form(line))
        except ValueError as error:
            problems.append(f"{file}:{number}: {error}")
    return items


def _text_form(line: str) -> Example:
    """`[USER] text [INTENT] label`, the form that `bithaul corpus generate` writes."""
    text, mark, label = line.removeprefix(f"{USER} ").rpartition(f" {INTENT} ")
    if not mark or not line.startswith(f"{USER} "):
        raise ValueError(f"not of the form {USER} text {INTENT} label")
    try:
        record = json.loads(label)
    except json.JSONDecodeError as error:
        raise ValueError(f"the label is not JSON ({error.msg})") from None
    item = _record({**record, "text": text}) if isinstance(record, dict) else None
    if not isinstance(item, Example):
        raise ValueError("the label is not an object with an intent")
    return item


def _read_jsonl(file: Path, problems: Problems) -> list[Example | TextLine]:
    items: list[Example | TextLine] = []
    for number, line in _lines(file, problems):
        try:
            items.append(_record(json.loads(line)))
        except json.JSONDecodeError as error:
            problems.append(f"{file}:{number}: not JSON ({error.msg} at column {error.colno})")
        except (ValueError, RecursionError) as error:
            problems.append(f"{file}:{number}: {error}")
    return items


def _record(record: object) -> Example | TextLine:
    """One JSON object as an item; ValueError says what is wrong with it."""
    if any("\ud800" <= char <= "\udfff" for char in json.dumps(record, ensure_ascii=False)):
        raise ValueError("half of a surrogate pair is no character")
    if not isinstance(record, dict):
        raise ValueError('a line must be an object like {"text": ..., "intent": ..., "slots": ...}')
    text = record.get("text")
    if not isinstance(text, str) or not text.strip():
        raise ValueError('"text" must be a string that is not empty')
    if "intent" not in record and "label" not in record:
        if "slots" in record:
            raise ValueError('"slots" without an "intent"')
        return TextLine(text)
    intent = record.get("intent", record.get("label"))
    if not isinstance(intent, str) or not intent.strip():
        raise ValueError('"intent" must be a string that is not empty')
    return Example(text, intent, _slots(record.get("slots")))


def _slots(slots: object) -> tuple[tuple[str, SlotValue], ...]:
    """Slots as {name: value or list of values}, or as a list of {"name", "value"}."""
    if slots is None:
        return ()
    pairs: list[tuple[object, object]] = []
    if isinstance(slots, dict):
        for name, value in slots.items():
            pairs += [(name, v) for v in value] if isinstance(value, list) else [(name, value)]
    elif isinstance(slots, list):
        for entry in slots:
            if not isinstance(entry, dict) or "name" not in entry or "value" not in entry:
                raise ValueError('each slot of a list must be {"name": ..., "value": ...}')
            pairs.append((entry["name"], entry["value"]))
    else:
        raise ValueError('"slots" must be an object, or a list of {"name": ..., "value": ...}')
    checked: list[tuple[str, str]] = []
    for name, value in pairs:
        if not isinstance(name, str) or not name.strip():
            raise ValueError("a slot name must be a string that is not empty")
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"the value of slot {name!r} must be a string that is not empty")
        checked.append((name, value))
    return merge_slots(checked)


def _read_tsv(file: Path, problems: Problems) -> list[Example | TextLine]:
    rows = ((number, line.split("\t")) for number, line in _lines(file, problems))
    return _table(file, rows, problems)


def _read_csv(file: Path, problems: Problems) -> list[Example | TextLine]:
    def rows() -> Iterator[tuple[int, list[str]]]:
        numbered: list[int] = []

        def feed() -> Iterator[str]:
            for number, line in _lines(file, problems):
                numbered.append(number)
                yield line + "\n"

        reader = csv.reader(feed(), strict=True)
        while True:
            first = len(numbered)
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                problems.append(f"{file}:{numbered[min(first, len(numbered) - 1)]}: not CSV ({error})")
                return
            yield numbered[first], row

    return _table(file, rows(), problems)


def _table(file: Path, rows: Iterator[tuple[int, list[str]]], problems: Problems) -> list[Example | TextLine]:
    """Rows of text and label; the first row may be a header, and may name them in the other order."""
    items: list[Example | TextLine] = []
    reversed_columns = False
    for i, (number, row) in enumerate(rows):
        cells = [cell.strip() for cell in row]
        names = tuple(cell.lower() for cell in cells)
        if i == 0 and (names in _HEADERS or names[::-1] in _HEADERS):
            reversed_columns = names not in _HEADERS
            continue
        if reversed_columns:
            cells.reverse()
        if len(cells) != 2:
            problems.append(f"{file}:{number}: {len(cells)} columns instead of text and label")
        elif not all(cells):
            problems.append(f"{file}:{number}: the {'label' if cells[0] else 'text'} is empty")
        else:
            items.append(Example(cells[0], cells[1]))
    return items


_READERS: dict[str, Callable[[Path, Problems], list[Example | TextLine]]] = {
    ".jsonl": _read_jsonl,
    ".tsv": _read_tsv,
    ".csv": _read_csv,
    ".txt": _read_txt,
}

"""Text to audit a model on, in the model's own tokens: every line or document framed as in training.

A model of plain text has seen one stream of `[BOS] words [EOS]`. A model of requests has seen each request
alone as `[BOS] [USER] words [INTENT] label`; here `[INTENT]` is its end of line. Frame tokens that are
certain (`[BOS]`, `[USER]`) are given and never counted. A word is what stands between blanks of the
normalised text and may be several tokens.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bithaul.corpus.example import TextLine
from bithaul.corpus.importers import read_any
from bithaul.corpus.tokenizer import Tokenizer
from bithaul.errors import InvalidData, InvalidInput

Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

STREAM = "one stream of [BOS] words [EOS]"
REQUESTS = "each line alone as [BOS] [USER] words [INTENT]"


@dataclass(frozen=True)
class Framed:
    """Documents as token rows. `counted[i][j]`: token j of row i is predicted and counted.

    `bytes` are UTF-8 bytes of the texts without blanks at their ends, plus 1 for each line end.
    `unknown_bytes` are those of the pieces that became `[UNK]`, in the tokenizer's normal form.
    """

    rows: tuple[Ids, ...]
    counted: tuple[Mask, ...]
    documents: int
    words: int
    unknown_words: int  # words with an [UNK] in them
    bytes: int
    unknown_bytes: int
    framing: str

    @property
    def predicted(self) -> Ids:
        """The counted tokens of all rows, end to end: int64 [N]."""
        pairs = zip(self.rows, self.counted, strict=True)
        return np.concatenate([row[counted] for row, counted in pairs])


def read_documents(path: Path, *, text_field: str = "text") -> list[str]:
    """Lines of plain text, or the texts of JSONL objects, tables and folders of them; blank ones left out.

    Labels are ignored. `text_field` names the text of JSONL objects. Raises `NotFound`, or `InvalidData` with
    file and line.
    """
    if path.suffix.lower() == ".jsonl" and path.is_file():
        found = _field_of(path, text_field)
    elif text_field != "text":
        raise InvalidInput(f"--text-field names a field of a .jsonl file, and {path} is none.")
    else:
        found = [item.text.strip() for item in read_any(path)]
    if not found:
        raise InvalidData(f"{path} holds no text; give a file with at least one line.")
    return found


def _field_of(path: Path, field: str) -> list[str]:
    found: list[str] = []
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (ValueError, RecursionError):
                raise InvalidData(f"{path}:{number}: not a JSON object in UTF-8; correct the line.") from None
            text = record.get(field) if isinstance(record, dict) else None
            if not isinstance(text, str):
                known = ", ".join(record) if isinstance(record, dict) else "none"
                raise InvalidData(
                    f"{path}:{number}: no text in the field {field!r}; name another with --text-field "
                    f"(fields here: {known})."
                )
            if text.strip():
                found.append(text.encode("utf-8", "replace").decode().strip())
    return found


def frame(tokenizer: Tokenizer, texts: Sequence[str], *, requests: bool) -> Framed:
    """`texts` as the model reads them; `requests` for a model that was trained on requests.

    Texts without any token are left out. Raises `InvalidData` when none is left.
    """
    encoded = tokenizer.encode_many([TextLine(text) for text in texts])
    kept = [(text, row[1:-1]) for text, row in zip(texts, encoded, strict=True) if len(row) > 2]
    if not kept:
        raise InvalidData("There are no words to predict; give a file with text.")
    if requests:
        given = [tokenizer.bos, tokenizer.user]
        rows = [np.array([*given, *ids, tokenizer.intent], dtype=np.int64) for _, ids in kept]
        counted = [np.arange(len(row)) >= len(given) for row in rows]
    else:
        lines = ((tokenizer.bos, *ids, tokenizer.eos) for _, ids in kept)
        rows = [np.fromiter(chain.from_iterable(lines), dtype=np.int64)]
        counted = [rows[0] != tokenizer.bos]
    words = Counter(word for text, _ in kept for word in tokenizer.fold(text).split(" "))
    unknown = _unknown_bytes(tokenizer, list(words))
    return Framed(
        rows=tuple(rows),
        counted=tuple(counted),
        documents=len(kept),
        words=words.total(),
        unknown_words=sum(words[word] for word in unknown),
        bytes=sum(len(text.strip().encode()) + 1 for text, _ in kept),
        unknown_bytes=sum(words[word] * size for word, size in unknown.items()),
        framing=REQUESTS if requests else STREAM,
    )


def _unknown_bytes(tokenizer: Tokenizer, words: Sequence[str]) -> dict[str, int]:
    """UTF-8 bytes that `[UNK]` stands for in each word that has one."""
    rows = tokenizer.encode_many([TextLine(word) for word in words])
    return {
        word: sum(
            len(spelling.strip().encode())
            for i, spelling in tokenizer.encode_words(word)
            if i == tokenizer.unk
        )
        for word, row in zip(words, rows, strict=True)
        if tokenizer.unk in row
    }

"""The word-level tokenizer of a run, on the `tokenizers` library; `tokenizer.json` alone does all of it.

A word the vocabulary does not hold falls into word pieces, longest first, where the vocabulary was given some
(`train(word_pieces=)`), and is one `[UNK]` otherwise. Promises: `decode(encode_example(e))` is the normalised
line exactly when there is no `[UNK]`; digits are spelled; every intent and slot name is one token; user text
never becomes a special or structural token; a vocabulary never changes after training. Plain text that was
split before may be taken as it is (`train(as_given=True)`): words between blanks, `<unk>` the unknown one.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, models, processors, trainers

from bithaul.corpus import pieces
from bithaul.corpus.example import Example, SlotValue, TextLine
from bithaul.corpus.files import sha256_of, write_bytes
from bithaul.corpus.pieces import SPECIAL as SPECIAL
from bithaul.errors import CorruptFile, InvalidData, InvalidInput, NotFound

DEFAULT_VOCAB_SIZE = 5174
DEFAULT_MIN_FREQUENCY = 2
DEFAULT_WORD_PIECES = 1000  # of labelled requests; plain text gets none
MAX_NAME = 100
_LONGEST_WORD = 256  # characters; a longer one is [UNK]. Above the longest name with its marks

_NAME = re.compile(r"[^\s\"\\＂▁]*\w[^\"\\＂▁]*")


@dataclass(frozen=True)
class JsonStructure:
    """Token ids a label is made of, for constrained decoding. In the order of a label:

    `open_intent INTENT`, then `close_no_slots`, or `open_slots` and one or more of
    `SLOT key_value words` (one value) or `SLOT list_open words (list_next words)*` (several values).
    Between slots stands `next_slot` after one value and `list_close_next` after a list; the label ends with
    `close` or `list_close`. `list_next` and `next_slot` are different ids.
    """

    open_intent: int  # {"intent":
    close_no_slots: int  # "}
    open_slots: int  # ","slots":{
    key_value: int  # " behind SLOT, which is "name":
    next_slot: int  # ",
    close: int  # "}}
    list_open: int  # ["
    list_next: int  # ","
    list_close_next: int  # "],
    list_close: int  # "]}}
    intents: dict[str, int]  # normalised name -> id
    slots: dict[str, int]

    def ids(self) -> frozenset[int]:
        """All ids that are part of a label's frame or names; every other id is a word of text or value."""
        marks = [self.open_intent, self.close_no_slots, self.open_slots, self.key_value, self.next_slot]
        marks += [self.close, self.list_open, self.list_next, self.list_close_next, self.list_close]
        return frozenset((*marks, *self.intents.values(), *self.slots.values()))


class Tokenizer:
    """Words to ids and back. Make one with `train` or `load`."""

    def __init__(self, serialised: str) -> None:
        self._json = serialised
        self._line = tokenizers.Tokenizer.from_str(serialised)
        self._vocab = self._line.get_vocab(with_added_tokens=False)
        # User text goes through the same words without the rules for labels and special tokens.
        self._has_pieces = isinstance(self._line.model, models.WordPiece)
        self._plain = tokenizers.Tokenizer(_model(self._vocab, word_pieces=self._has_pieces))
        self.as_given = not _folds(serialised)
        rules = pieces.as_given() if self.as_given else pieces.folded()
        self._plain.normalizer = rules.plain_normalizer()
        self._plain.pre_tokenizer = rules.plain_splitter()
        self._fold = rules.folding()
        self._split = rules.plain_splitter()
        self._values: dict[str, list[int]] = {}
        by_id = sorted(self._vocab.items(), key=lambda item: item[1])
        self._intents = {name: i for p, i in by_id if (name := pieces.intent_name(p)) is not None}
        self._slots = {name: i for p, i in by_id if (name := pieces.slot_name(p)) is not None}

    @classmethod
    def train(
        cls,
        items: Iterable[Example | TextLine],
        *,
        vocab_size: int = DEFAULT_VOCAB_SIZE,
        min_frequency: int = DEFAULT_MIN_FREQUENCY,
        word_pieces: int = 0,
        as_given: bool = False,
    ) -> Tokenizer:
        """Special and structural tokens, digits and all names, `word_pieces` parts of words (0: none), then
        the most frequent words up to the cap.

        Ties are broken by spelling, so equal input gives equal bytes. `as_given` is for plain text without
        word pieces only.
        """
        rules = pieces.as_given() if as_given else pieces.folded()
        counts: Counter[str] = Counter()
        intents: dict[str, str] = {}
        slots: dict[str, str] = {}
        fold, split = rules.folding(), rules.plain_splitter()
        texts: Counter[str] = Counter()
        for item in items:
            texts[item.text] += 1
            if isinstance(item, Example):
                if as_given:
                    raise InvalidInput("Labelled requests are always folded; leave out --as-given.")
                _register(intents, item.intent, fold.normalize_str(item.intent), "intent")
                for name, value in item.slots:
                    _register(slots, name, fold.normalize_str(name), "slot")
                    texts.update(_escape(fold.normalize_str(v)) for v in _each(value))
        for text, times in texts.items():
            for piece in _pieces(text, fold, split):
                counts[piece] += times
        if as_given:
            if word_pieces:
                raise InvalidInput("Text as given has no word pieces; leave out --word-pieces.")
            counts.pop(pieces.GIVEN_UNKNOWN, None)
        fixed = [*SPECIAL, *pieces.STRUCTURAL, *pieces.ALWAYS]
        fixed += [pieces.intent_piece(name) for name in sorted(intents)]
        fixed += [pieces.slot_piece(name) for name in sorted(slots)]
        if len(fixed) > vocab_size:
            raise InvalidData(
                f"{len(intents)} intents and {len(slots)} slots need a vocabulary of at least {len(fixed)}; "
                f"raise --vocab-size from {vocab_size}."
            )
        always = set(fixed)
        ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        words = [piece for piece, count in ranked if count >= min_frequency and piece not in always]
        parts = word_parts(counts, word_pieces)[: vocab_size - len(fixed)] if word_pieces else []
        ordered = list(dict.fromkeys([*fixed, *parts, *words]))
        return cls._from_pieces(ordered[:vocab_size], rules, word_pieces=word_pieces > 0)

    @classmethod
    def _from_pieces(cls, ordered: Sequence[str], rules: pieces.TextRules, *, word_pieces: bool) -> Tokenizer:
        vocab = {piece: i for i, piece in enumerate(ordered)}
        backend = tokenizers.Tokenizer(_model(vocab, word_pieces=word_pieces))
        backend.normalizer = rules.line_normalizer()
        backend.pre_tokenizer = rules.line_splitter()
        backend.decoder = rules.decoder()
        frame = [pieces.PAD, pieces.BOS, pieces.EOS]
        backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in frame])
        marks = [pieces.USER, pieces.INTENT]
        backend.add_tokens([AddedToken(t, special=False, normalized=False) for t in marks])
        backend.post_processor = processors.TemplateProcessing(
            single=f"{pieces.BOS} $A {pieces.EOS}",
            special_tokens=[(t, vocab[t]) for t in (pieces.BOS, pieces.EOS)],
        )
        return cls(backend.to_str(pretty=True))

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read a `tokenizer.json` written by `save`. NotFound, or CorruptFile when it is something else."""
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise NotFound(f"There is no tokenizer at {path}; run `bithaul corpus tokenize` first.") from None
        try:
            vocab = json.loads(text)["model"]["vocab"]
            ordered = sorted(vocab, key=lambda piece: int(vocab[piece]))
            needed = [*SPECIAL, *pieces.STRUCTURAL]
            if ordered[: len(needed)] != needed or sorted(vocab.values()) != list(range(len(vocab))):
                raise ValueError("its special tokens are not the expected ones")
        except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
            raise CorruptFile(
                f"{path} is not a tokenizer of this program ({error}); make a new one with `corpus tokenize`."
            ) from None
        return cls(text.removesuffix("\n"))

    def save(self, path: Path) -> None:
        """Write `tokenizer.json`, atomically; equal tokenizers give equal bytes."""
        write_bytes(path, self._bytes())

    def _bytes(self) -> bytes:
        return self._json.encode() + b"\n"

    @property
    def sha256(self) -> str:
        """SHA-256 of the saved file: the identity of this vocabulary."""
        return sha256_of(self._bytes())

    @property
    def vocab_size(self) -> int:
        return len(self._vocab)

    @property
    def pad(self) -> int:
        return self._vocab[pieces.PAD]

    @property
    def unk(self) -> int:
        return self._vocab[pieces.UNK]

    @property
    def bos(self) -> int:
        return self._vocab[pieces.BOS]

    @property
    def eos(self) -> int:
        return self._vocab[pieces.EOS]

    @property
    def user(self) -> int:
        return self._vocab[pieces.USER]

    @property
    def intent(self) -> int:
        return self._vocab[pieces.INTENT]

    def structure(self) -> JsonStructure:
        """The ids of label JSON, see `JsonStructure`."""
        v = self._vocab
        return JsonStructure(
            open_intent=v[pieces.OPEN_INTENT],
            close_no_slots=v[pieces.CLOSE_NO_SLOTS],
            open_slots=v[pieces.OPEN_SLOTS],
            key_value=v[pieces.KEY_VALUE],
            next_slot=v[pieces.NEXT_SLOT],
            close=v[pieces.CLOSE],
            list_open=v[pieces.LIST_OPEN],
            list_next=v[pieces.LIST_NEXT],
            list_close_next=v[pieces.LIST_CLOSE_NEXT],
            list_close=v[pieces.LIST_CLOSE],
            intents=dict(self._intents),
            slots=dict(self._slots),
        )

    def normalise(self, text: str) -> str:
        """The normal form of a line: NFKC, lower case, plain quotes, single spaces.

        In a line of the corpus's text form `[USER]`, `[INTENT]` and the label's JSON stay what they are.
        """
        head, user, tail = text.partition(f"{pieces.USER} ")
        body, mark, label = tail.rpartition(f" {pieces.INTENT} ")
        if head.strip() or not user or not mark:
            return self.fold(text)
        return f"{pieces.USER} {self.fold(body)} {pieces.INTENT} {self._fold_label(label)}"

    def _fold_label(self, label: str) -> str:
        try:
            parsed = json.loads(label)
        except json.JSONDecodeError:
            return self.fold(label)
        return json.dumps(self._fold_json(parsed), ensure_ascii=False, separators=(",", ":"))

    def _fold_json(self, value: object) -> object:
        if isinstance(value, dict):
            return {self.fold(str(k)): self._fold_json(v) for k, v in value.items()}
        if isinstance(value, list):
            return [self._fold_json(v) for v in value]
        return self.fold(value) if isinstance(value, str) else value

    def fold(self, text: str) -> str:
        """The normal form of user text or of one value; nothing in it has a special meaning."""
        return str(self._fold.normalize_str(text))

    def normalise_example(self, item: Example | TextLine) -> str:
        """The line that `decode(encode_example(item))` gives back."""
        if isinstance(item, TextLine):
            return self.fold(item.text)
        slots = tuple(
            (self.fold(n), self.fold(v) if isinstance(v, str) else tuple(map(self.fold, v)))
            for n, v in item.slots
        )
        label = Example("", self.fold(item.intent), slots).label_json()
        return " ".join(part for part in (pieces.USER, self.fold(item.text), pieces.INTENT, label) if part)

    def encode_example(self, item: Example | TextLine) -> list[int]:
        """`[BOS] [USER] text [INTENT] label [EOS]`, or `[BOS] words [EOS]` for plain text."""
        return self.encode_many([item])[0]

    def encode_many(self, items: Sequence[Example | TextLine]) -> list[list[int]]:
        """`encode_example` of each item, much faster than one by one."""
        encodings = self._plain.encode_batch([item.text for item in items], add_special_tokens=False)
        return [self._frame(item, e.ids) for item, e in zip(items, encodings, strict=True)]

    def encode_prompt(self, text: str) -> list[int]:
        """`[BOS] [USER] text [INTENT]`: what the model continues with a label."""
        return [self.bos, self.user, *self._encode_plain(text), self.intent]

    def encode_words(self, text: str) -> list[tuple[int, str]]:
        """Id and spelling of each piece; the spellings joined and stripped are the normalised text."""
        found = _pieces(text, self._fold, self._split)
        cut = [token for piece in found for token in self._cut(piece)]
        return [(i, spelling.replace(pieces.SPACE, " ")) for i, spelling in cut]

    def _cut(self, piece: str) -> list[tuple[int, str]]:
        """A word's id, or those of its parts, with spellings; `[UNK]` keeps the whole word's."""
        known = self._vocab.get(piece)
        if known is not None:
            return [(known, piece)]
        parts = self._plain.model.tokenize(piece) if self._has_pieces else []
        whole = not parts or any(part.id == self.unk for part in parts)
        return [(self.unk, piece)] if whole else [(part.id, part.value) for part in parts]

    def spelled(self, token_id: int) -> list[int]:
        """The parts that would stand for a word of the vocabulary if it were unknown.

        Empty where there are none: without word pieces, and for ids that are no words of several letters.
        """
        word = self.token(token_id)
        if not self._has_pieces or len(word.removeprefix(pieces.SPACE)) < 2 or not pieces.is_word(word):
            return []
        parts: list[int] = []
        start = 0
        while start < len(word):
            ends = (end for end in range(len(word), start, -1) if end - start < len(word))
            end = next((end for end in ends if word[start:end] in self._vocab), None)
            if end is None:
                return []
            parts.append(self._vocab[word[start:end]])
            start = end
        return parts

    def decode(self, ids: Sequence[int]) -> str:
        """The normalised line, without `[PAD] [BOS] [EOS]`."""
        return str(self._line.decode(list(ids), skip_special_tokens=True))

    def token(self, token_id: int) -> str:
        """The spelling of one id in the vocabulary file (`▁` stands for a space before it)."""
        piece = self._line.id_to_token(token_id)
        if piece is None:
            raise NotFound(f"Token {token_id} is not in a vocabulary of {self.vocab_size}.")
        return str(piece)

    def _encode_plain(self, text: str) -> list[int]:
        return list(self._plain.encode(text, add_special_tokens=False).ids)

    def _frame(self, item: Example | TextLine, words: Sequence[int]) -> list[int]:
        if isinstance(item, TextLine):
            return [self.bos, *words, self.eos]
        return [self.bos, self.user, *words, self.intent, *self._label(item), self.eos]

    def _label(self, item: Example) -> list[int]:
        v = self._vocab
        ids = [v[pieces.OPEN_INTENT], self._name(self._intents, item.intent, "intent")]
        if not item.slots:
            return [*ids, v[pieces.CLOSE_NO_SLOTS]]
        ids.append(v[pieces.OPEN_SLOTS])
        for i, (name, value) in enumerate(item.slots):
            last = i == len(item.slots) - 1
            ids.append(self._name(self._slots, name, "slot"))
            if isinstance(value, str):
                ids += [v[pieces.KEY_VALUE], *self._value(value)]
                ids.append(v[pieces.CLOSE if last else pieces.NEXT_SLOT])
                continue
            if not value:
                raise InvalidData(f"Slot {name!r} has an empty list; leave it out or give it a value.")
            ids.append(v[pieces.LIST_OPEN])
            for j, part in enumerate(value):
                ids += [v[pieces.LIST_NEXT]] if j else []
                ids += self._value(part)
            ids.append(v[pieces.LIST_CLOSE if last else pieces.LIST_CLOSE_NEXT])
        return ids

    def _value(self, value: str) -> list[int]:
        known = self._values.get(value)
        if known is None:
            escaped = _escape(self.fold(value))
            known = self._values[value] = self._encode_plain(escaped) if escaped else []
        return known

    def _name(self, names: dict[str, int], name: str, kind: str) -> int:
        known = names.get(name)
        if known is None:
            known = names.get(self.fold(name))
        if known is None:
            raise InvalidData(f"The tokenizer does not know the {kind} {name!r}; make a new corpus with it.")
        return known


def _folds(serialised: str) -> bool:
    steps = json.loads(serialised)["normalizer"]["normalizers"]
    return any(step["type"] == "Lowercase" for step in steps)


def _model(vocab: dict[str, int], *, word_pieces: bool) -> models.Model:
    if not word_pieces:
        return models.WordLevel(vocab, unk_token=pieces.UNK)
    # The mark is in front of a word's beginning, so that a part inside a word needs none.
    return models.WordPiece(
        vocab,
        unk_token=pieces.UNK,
        max_input_chars_per_word=_LONGEST_WORD,
        continuing_subword_prefix="",
    )


def word_parts(counts: Mapping[str, int], limit: int) -> list[str]:
    """Up to `limit` parts of words: each letter at the start and inside of a word, then frequent strings.

    `counts` are pieces of text. Byte-pair merges (Sennrich et al. 2016) are learnt on the different words,
    each counted once: what matters is how words are made, not which are said most.
    """
    words = sorted(piece for piece in counts if pieces.is_word(piece))
    seen: Counter[str] = Counter()
    for word in words:
        seen.update(word.replace(pieces.SPACE, "") * counts[word])
    letters = [letter for letter, _ in sorted(seen.items(), key=lambda item: (-item[1], item[0]))]
    single = [mark + letter for letter in letters for mark in (pieces.SPACE, "")]
    backend = tokenizers.Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=len(letters) + 1 + 2 * limit, min_frequency=2, show_progress=False
    )
    backend.train_from_iterator(words, trainer)
    ranked = sorted(backend.get_vocab().items(), key=lambda item: item[1])
    merged = [piece for piece, _ in ranked if len(piece.replace(pieces.SPACE, "")) > 1]
    return [*single, *merged][:limit]


def _pieces(
    text: str, fold: tokenizers.normalizers.Normalizer, split: tokenizers.pre_tokenizers.PreTokenizer
) -> list[str]:
    """`▁`-marked pieces of plain text, the same that the plain backend makes."""
    folded = fold.normalize_str(text)
    if not folded:
        return []
    marked = pieces.SPACE + folded.replace(" ", pieces.SPACE)
    return [piece for piece, _ in split.pre_tokenize_str(marked)]


def _escape(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)[1:-1]


def _each(value: SlotValue) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else value


def _register(names: dict[str, str], name: str, normalised: str, kind: str) -> None:
    before = names.setdefault(normalised, name)
    if before != name:
        raise InvalidData(
            f"The {kind} names {before!r} and {name!r} differ only in case or spacing; use one."
        )
    if len(normalised) > MAX_NAME or not _NAME.fullmatch(normalised):
        raise InvalidData(
            f"{name[:MAX_NAME]!r} cannot be the name of {'an' if kind == 'intent' else 'a'} {kind}: "
            f"at most {MAX_NAME} characters, a letter or digit, no quote or backslash."
        )

"""How a line falls into pieces: the normaliser, the splitter and the decoder of `tokenizer.json`.

A piece is a word, one digit, one punctuation mark, or a fused bit of label JSON. `▁` in front of a piece
says "after a space", so text decodes exactly. Bits of label JSON are spelled with the full-width quote `＂`,
which NFKC turns into a plain one: whatever a person types, it can never become a structural piece.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tokenizers import Regex, decoders, normalizers, pre_tokenizers

SPACE = "▁"
QUOTE = "＂"

PAD, UNK, BOS, EOS, USER, INTENT = "[PAD]", "[UNK]", "[BOS]", "[EOS]", "[USER]", "[INTENT]"
SPECIAL = (PAD, UNK, BOS, EOS, USER, INTENT)
GIVEN_UNKNOWN = f"{SPACE}<unk>"  # how data sets with a closed vocabulary write the unknown word

OPEN_INTENT = f"{SPACE}{{{QUOTE}intent{QUOTE}:"
CLOSE_NO_SLOTS = f"{QUOTE}}}"
OPEN_SLOTS = f"{QUOTE},{QUOTE}slots{QUOTE}:{{"
KEY_VALUE = QUOTE
NEXT_SLOT = f"{QUOTE},"
CLOSE = f"{QUOTE}}}}}"
LIST_OPEN = f"[{QUOTE}"
LIST_NEXT = f"{QUOTE},{QUOTE}"
LIST_CLOSE_NEXT = f"{QUOTE}],"
LIST_CLOSE = f"{QUOTE}]}}}}"
STRUCTURAL = (
    OPEN_INTENT,
    CLOSE_NO_SLOTS,
    OPEN_SLOTS,
    KEY_VALUE,
    NEXT_SLOT,
    CLOSE,
    LIST_OPEN,
    LIST_NEXT,
    LIST_CLOSE_NEXT,
    LIST_CLOSE,
)
# Both forms of every digit, and what JSON needs to escape a quote inside a value.
ALWAYS = tuple(f"{mark}{char}" for mark in (SPACE, "") for char in '0123456789\\"')


def intent_piece(normalised: str) -> str:
    """The one piece of an intent name."""
    return QUOTE + normalised.replace(" ", SPACE)


def slot_piece(normalised: str) -> str:
    """The one piece of a slot name, with the colon behind it."""
    return QUOTE + normalised.replace(" ", SPACE) + QUOTE + ":"


def intent_name(piece: str) -> str | None:
    """The normalised name behind an intent's piece, None for any other piece."""
    if piece in STRUCTURAL or not piece.startswith(QUOTE) or piece.endswith(QUOTE + ":"):
        return None
    return piece[1:].replace(SPACE, " ")


def slot_name(piece: str) -> str | None:
    """The normalised name behind a slot's piece, None for any other piece."""
    if piece in STRUCTURAL or not (piece.startswith(QUOTE) and piece.endswith(QUOTE + ":")):
        return None
    return piece[1:-2].replace(SPACE, " ")


_WORD = r"[\p{L}\p{M}]+"
_WHOLE_WORD = re.compile(rf"{SPACE}?[^\W\d_]+")
_ENDING = r"'(?:s|t|re|ve|m|ll|d)(?![\p{L}\p{M}])"
_PLAIN = rf"▁?(?:{_WORD}|{_ENDING}|[^▁])|▁"
_FRAME = r"▁\{＂intent＂:|＂,＂slots＂:\{|＂,＂(?=▁)|＂\]?,(?=＂)|＂\]?\}\}?|\[?＂(?=[▁＂])"
_STRUCTURE = _FRAME + r"|＂[^＂]+＂:|＂[^＂]+(?=＂)"


def is_word(piece: str) -> bool:
    """Whether a piece is a word, or a part of one: letters, perhaps with the mark of a space before."""
    return _WHOLE_WORD.fullmatch(piece) is not None


_LABEL = r'(?=.*"\]?\}\}?$)'  # only where the rest of the segment ends like a label


def _replace(pattern: str, content: str) -> normalizers.Normalizer:
    return normalizers.Replace(Regex(pattern), content)


def _folding() -> list[normalizers.Normalizer]:
    return [
        normalizers.NFKC(),
        normalizers.Lowercase(),
        normalizers.NFKC(),
        _replace("[‘’ʼ]", "'"),
        _replace("[“”]", '"'),
        _replace("▁", "_"),
        _replace(r"\s+", " "),
        normalizers.Strip(),
    ]


@dataclass(frozen=True)
class TextRules:
    """How text becomes pieces: its normal form, and what is a piece.

    `structure` and `line_pieces` are for a whole line, where `[USER]` and label JSON mean what they are.
    """

    normal_form: tuple[normalizers.Normalizer, ...]
    pieces: str  # pattern of the normal form with `▁`
    structure: tuple[normalizers.Normalizer, ...] = ()
    line_pieces: str | None = None
    spelled: tuple[tuple[str | Regex, str], ...] = ()  # what decoding replaces in a piece

    def folding(self) -> normalizers.Normalizer:
        return normalizers.Sequence([*self.normal_form])

    def plain_normalizer(self) -> normalizers.Normalizer:
        """Folding, then `▁` for each space and in front: what user text goes through."""
        return normalizers.Sequence([*self.normal_form, *_marks()])

    def line_normalizer(self) -> normalizers.Normalizer:
        """Like `plain_normalizer`, and label JSON gets its structural spelling: for a whole line."""
        return normalizers.Sequence([*self.normal_form, *self.structure, *_marks()])

    def plain_splitter(self) -> pre_tokenizers.PreTokenizer:
        return pre_tokenizers.Split(Regex(self.pieces), "isolated")

    def line_splitter(self) -> pre_tokenizers.PreTokenizer:
        return pre_tokenizers.Split(Regex(self.line_pieces or self.pieces), "isolated")

    def decoder(self) -> decoders.Decoder:
        """Pieces back to text; exact, because every space is in a piece."""
        whole = [(QUOTE + SPACE, QUOTE), (QUOTE, '"')] if self.structure else []
        return decoders.Sequence(
            [
                *(decoders.Replace(pattern, content) for pattern, content in self.spelled),
                decoders.Fuse(),
                *(decoders.Replace(pattern, content) for pattern, content in whole),
                decoders.Replace(SPACE, " "),
                decoders.Strip(" ", 1, 0),
            ]
        )


def folded() -> TextRules:
    """NFKC, lower case, plain quotes, single spaces; a piece is a word, a digit or a mark."""
    return TextRules(
        tuple(_folding()),
        _PLAIN,
        tuple(_label_structure()),
        f"{_STRUCTURE}|{_PLAIN}",
        ((INTENT, SPACE + INTENT), (UNK, SPACE + UNK)),
    )


def as_given() -> TextRules:
    """For plain text that was split before: a piece is what stands between blanks, spelled as it is."""
    own_marks = (_replace(SPACE, "_"), _replace(QUOTE, '"'))
    return TextRules(
        (*own_marks, _replace(r"\s+", " "), normalizers.Strip()),
        rf"{SPACE}[^{SPACE}]*",
        spelled=((Regex(r"^\[UNK\]$"), SPACE + UNK),),
    )


def _marks() -> list[normalizers.Normalizer]:
    return [_replace(" ", SPACE), normalizers.Prepend(SPACE)]


def _label_structure() -> list[normalizers.Normalizer]:
    """Label JSON at the end of a line gets its structural spelling."""
    free = r"(?<!\\)"
    return [
        _replace(r'^\{"intent":"' + _LABEL, "{＂intent＂:＂"),
        _replace(free + r'","slots":\{"' + _LABEL, "＂,＂slots＂:{＂"),
        _replace(free + r'":\["' + _LABEL, "＂:[＂▁"),
        _replace(free + r'":"(?!"[,}])' + _LABEL, "＂:＂▁"),
        _replace(free + r'":"' + _LABEL, "＂:＂"),
        _replace(free + r'"\],"' + _LABEL, "＂],＂"),
        _replace(free + r'","(?=[^"＂]*＂:)' + _LABEL, "＂,＂"),
        _replace(free + r'","' + _LABEL, "＂,＂▁"),
        _replace(free + r'"\]\}\}$', "＂]}}"),
        _replace(free + r'"\}\}$', "＂}}"),
        _replace(free + r'"\}$', "＂}"),
    ]

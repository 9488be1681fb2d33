"""A corpus folder from examples: tokenizer, labels, shards, held-out set, probe, and the manifest last.

Equal input and seed give equal bytes on every machine. Training examples are shuffled once, here; the
held-out ones keep their order. A folder without a manifest is an unfinished one.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bithaul.corpus.augment import AS_IT_IS, Augmentation, WordNoise, swap_values, value_pools
from bithaul.corpus.example import Example, TextLine
from bithaul.corpus.files import write_bytes
from bithaul.corpus.labels import LabelSet
from bithaul.corpus.shards import ShardInfo, write_shard
from bithaul.corpus.tokenizer import (
    DEFAULT_MIN_FREQUENCY,
    DEFAULT_VOCAB_SIZE,
    DEFAULT_WORD_PIECES,
    Tokenizer,
)
from bithaul.errors import CorruptFile, InvalidData, InvalidInput, NotFound

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
LABELS = "labels.json"
HELDOUT_RECORDS = "heldout.jsonl"
PROBE_EXAMPLES = 256  # measured again and again while a run trains, so not many, and not more than
PROBE_TOKENS = 8_192

Item = Example | TextLine


class CorpusManifest(BaseModel):
    """What a corpus folder holds. File names are relative: `<shard id>.bin` and `<shard id>.idx`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["bithaul-corpus-1"] = "bithaul-corpus-1"
    kind: Literal["intents", "text"]
    description: str
    generator_version: str | None
    seed: int
    augmentation: Augmentation = AS_IT_IS
    tokenizer_sha256: str
    vocab_size: int
    max_tokens: int
    shards: list[ShardInfo]
    heldout: list[ShardInfo]
    probe: ShardInfo | None
    train_tokens: int
    heldout_tokens: int
    left_out: int = Field(description="Examples longer than max_tokens, in neither split.")
    unknown_share: float = Field(description="Share of [UNK] among the training tokens.")
    heldout_unknown_share: float

    @property
    def train_examples(self) -> int:
        return sum(shard.examples for shard in self.shards)

    @property
    def heldout_examples(self) -> int:
        return sum(shard.examples for shard in self.heldout)

    def save(self, directory: Path) -> None:
        write_bytes(directory / MANIFEST, self.model_dump_json(indent=1).encode() + b"\n")

    @classmethod
    def load(cls, directory: Path) -> CorpusManifest:
        """Read `manifest.json` of a corpus folder."""
        path = directory / MANIFEST
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise NotFound(f"{directory} has no {MANIFEST}; build the corpus again.") from None
        except ValidationError as error:
            raise CorruptFile(f"{path} is not a corpus manifest: {error.errors()[0]['msg']}.") from None


def build_corpus(
    directory: Path,
    train: Sequence[Item],
    heldout: Sequence[Item],
    *,
    max_tokens: int,
    seed: int,
    vocab_size: int = DEFAULT_VOCAB_SIZE,
    min_frequency: int = DEFAULT_MIN_FREQUENCY,
    word_pieces: int | None = None,
    as_given: bool = False,
    augmentation: Augmentation = AS_IT_IS,
    shard_examples: int = 5000,
    description: str = "",
    generator_version: str | None = None,
    tokenizer: Tokenizer | None = None,
) -> CorpusManifest:
    """Write a whole corpus folder. `max_tokens` is the model's context length + 1.

    `word_pieces` is how many parts of words the vocabulary gets (None: 1,000 for labelled requests, none for
    plain text). `as_given` takes words of plain text as they are, see `tokenizer`. `augmentation` is for
    labelled requests, and for the training split only.

    Labelled examples that are longer are counted in `left_out` and not written. Plain text is one stream cut
    into pieces of `max_tokens`; neighbours share one token, so every token is predicted once. The vocabulary
    comes from `train` alone, unless an existing `tokenizer` is given.
    """
    kind = _kind(train, heldout)
    if max_tokens < 8 or shard_examples < 1:
        raise InvalidInput("max_tokens must be at least 8 and shard_examples at least 1.")
    if kind == "text" and augmentation != AS_IT_IS:
        raise InvalidInput("Plain text is not augmented; leave out copies, swap, spell and drop.")
    if word_pieces is None:
        word_pieces = DEFAULT_WORD_PIECES if kind == "intents" else 0
    tokenizer = tokenizer or Tokenizer.train(
        train, vocab_size=vocab_size, min_frequency=min_frequency, word_pieces=word_pieces, as_given=as_given
    )
    _require_known_labels(tokenizer, heldout)
    train_ids, long_train = _augmented(tokenizer, train, max_tokens, augmentation, seed)
    heldout_ids, long_heldout = _rows(tokenizer, heldout, max_tokens)
    if not train_ids:
        raise InvalidData(f"No training example fits into {max_tokens} tokens; use a larger context.")
    probe = _probe(heldout_ids, seed)

    (directory / MANIFEST).unlink(missing_ok=True)
    tokenizer.save(directory / TOKENIZER)
    labelled = [item for item in train if isinstance(item, Example)]
    LabelSet.from_examples(labelled, tokenizer).save(directory / LABELS)
    records = [item.as_record() if isinstance(item, Example) else {"text": item.text} for item in heldout]
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    write_bytes(directory / HELDOUT_RECORDS, "".join(lines).encode())
    shards = _write(directory, "train", train_ids, shard_examples)
    held = _write(directory, "heldout", heldout_ids, shard_examples)
    manifest = CorpusManifest(
        kind=kind,
        description=description,
        generator_version=generator_version,
        seed=seed,
        augmentation=augmentation,
        tokenizer_sha256=tokenizer.sha256,
        vocab_size=tokenizer.vocab_size,
        max_tokens=max_tokens,
        shards=shards,
        heldout=held,
        probe=write_shard(directory, "probe-00000", probe) if probe else None,
        train_tokens=sum(shard.tokens for shard in shards),
        heldout_tokens=sum(shard.tokens for shard in held),
        left_out=long_train + long_heldout,
        unknown_share=_unknown_share(train_ids, tokenizer.unk),
        heldout_unknown_share=_unknown_share(heldout_ids, tokenizer.unk),
    )
    manifest.save(directory)
    return manifest


def _chance(purpose: str, seed: int) -> random.Random:
    return random.Random(f"{purpose} {seed}")  # noqa: S311 - an order, not a secret


def _kind(train: Sequence[Item], heldout: Sequence[Item]) -> Literal["intents", "text"]:
    kinds = {type(item) for item in chain(train, heldout)}
    if not train:
        raise InvalidData("There are no training examples; give a file with at least one.")
    if len(kinds) > 1:
        raise InvalidData("Labelled requests and plain text cannot be mixed in one corpus; import one kind.")
    return "intents" if kinds == {Example} else "text"


def _require_known_labels(tokenizer: Tokenizer, heldout: Sequence[Item]) -> None:
    known = tokenizer.structure()
    for item in heldout:
        if isinstance(item, Example):
            if tokenizer.fold(item.intent) not in known.intents:
                raise InvalidData(f"The held-out intent {item.intent!r} is in no training example.")
            for name, _ in item.slots:
                if tokenizer.fold(name) not in known.slots:
                    raise InvalidData(f"The held-out slot {name!r} is in no training example.")


def _rows(tokenizer: Tokenizer, items: Sequence[Item], max_tokens: int) -> tuple[list[list[int]], int]:
    """Id rows of at most `max_tokens`, and how many examples were too long."""
    encoded = tokenizer.encode_many(items)
    if not items or isinstance(items[0], Example):
        rows = [row for row in encoded if len(row) <= max_tokens]
        return rows, len(encoded) - len(rows)
    stream = list(chain.from_iterable(row for row in encoded if len(row) > 2))
    step = max_tokens - 1
    return [stream[i : i + max_tokens] for i in range(0, max(len(stream) - 1, 0), step)], 0


def _probe(rows: list[list[int]], seed: int) -> list[list[int]]:
    """Some held-out rows, in their order."""
    chosen: list[int] = []
    tokens = 0
    for i in _chance("probe", seed).sample(range(len(rows)), min(PROBE_EXAMPLES, len(rows))):
        if chosen and tokens + len(rows[i]) > PROBE_TOKENS:
            break
        chosen.append(i)
        tokens += len(rows[i])
    return [rows[i] for i in sorted(chosen)]


def _augmented(
    tokenizer: Tokenizer, items: Sequence[Item], max_tokens: int, augmentation: Augmentation, seed: int
) -> tuple[list[list[int]], int]:
    """The training rows, copy after copy, each shuffled; and how many examples were too long in some copy."""
    rows: list[list[int]] = []
    longest_left_out = 0
    examples = [item for item in items if isinstance(item, Example)]
    pools = value_pools(examples, tokenizer) if augmentation.swap else {}
    noise = WordNoise(tokenizer, augmentation)
    order, dice = _chance("shuffle", seed), _chance("augment", seed)
    for _ in range(augmentation.copies):
        if pools:
            items = [swap_values(e, pools, tokenizer, augmentation.swap, dice) for e in examples]
        copy, left_out = _rows(tokenizer, items, max_tokens)
        if augmentation.spell or augmentation.drop:
            changed = [noise.apply(row, dice) for row in copy]
            copy = [new if len(new) <= max_tokens else row for new, row in zip(changed, copy, strict=True)]
        order.shuffle(copy)
        rows += copy
        longest_left_out = max(longest_left_out, left_out)
    return rows, longest_left_out


def _write(directory: Path, name: str, rows: Sequence[Sequence[int]], size: int) -> list[ShardInfo]:
    parts = [rows[i : i + size] for i in range(0, len(rows), size)]
    return [write_shard(directory, f"{name}-{i:05d}", part) for i, part in enumerate(parts)]


def _unknown_share(rows: Sequence[Sequence[int]], unk: int) -> float:
    total = sum(map(len, rows))
    return round(sum(row.count(unk) for row in rows) / total, 6) if total else 0.0

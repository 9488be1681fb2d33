"""`bithaul corpus`: generate Truck Mate data, check other people's, make a corpus folder from either."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from bithaul.corpus.augment import Augmentation
from bithaul.corpus.build import MANIFEST, CorpusManifest, Item, build_corpus
from bithaul.corpus.example import Example
from bithaul.corpus.generator import (
    DEFAULT_EXAMPLES,
    DEFAULT_HELDOUT,
    TextManifest,
    read_corpus,
    write_corpus,
)
from bithaul.corpus.importers import read_any
from bithaul.corpus.tokenizer import DEFAULT_MIN_FREQUENCY, DEFAULT_VOCAB_SIZE
from bithaul.errors import InvalidInput

app = typer.Typer(help="Generate, import and tokenize training data.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of sentences.")]
Out = Annotated[Path, typer.Option("--out", help="Folder to write; made when it is missing.")]
Seed = Annotated[int, typer.Option(help="Equal seeds give equal bytes.")]


@app.command()
def generate(
    out: Out,
    count: Annotated[int, typer.Option(min=1, help="Training examples.")] = DEFAULT_EXAMPLES,
    heldout: Annotated[int, typer.Option(min=0, help="Held-out examples.")] = DEFAULT_HELDOUT,
    seed: Seed = 1,
    shard_size: Annotated[int, typer.Option(min=1, help="Examples per file.")] = 5_000,
    as_json: Json = False,
) -> None:
    """Write Truck Mate requests with their labels, one per line, and a manifest."""

    def progress(done: int) -> None:
        if not as_json and sys.stderr.isatty():
            print(f"\r{done:,} lines", end="", file=sys.stderr, flush=True)

    manifest = write_corpus(
        out, seed=seed, count=count, heldout=heldout, shard_size=shard_size, progress=progress
    )
    if as_json:
        print(manifest.model_dump_json())
        return
    unique = manifest.unique_examples / manifest.examples
    print(
        f"{manifest.examples:,} training examples ({unique:.1%} unique), {manifest.heldout:,} held out: {out}"
    )
    print(f"Next: bithaul corpus tokenize {out} --out {out.with_name(out.name + '-tokens')}")


@app.command()
def tokenize(
    data: Annotated[Path, typer.Argument(help="A generated folder, or a file or folder an importer reads.")],
    out: Out,
    heldout: Annotated[
        Path | None, typer.Option(help="Held-out data, where DATA does not bring its own.")
    ] = None,
    vocab_size: Annotated[
        int, typer.Option(min=64, help="Upper bound of the vocabulary.")
    ] = DEFAULT_VOCAB_SIZE,
    min_frequency: Annotated[
        int, typer.Option(min=1, help="Rarer words fall into word pieces, or become [UNK] without them.")
    ] = DEFAULT_MIN_FREQUENCY,
    word_pieces: Annotated[
        int | None,
        typer.Option(min=0, help="Parts of words in the vocabulary (1,000; none for plain text)."),
    ] = None,
    as_given: Annotated[
        bool, typer.Option("--as-given", help="Plain text: keep case, cut at blanks only, <unk> is unknown.")
    ] = False,
    copies: Annotated[int, typer.Option(min=1, max=1000, help="Times each training example is written.")] = 1,
    swap: Annotated[
        float, typer.Option(min=0, max=1, help="Chance of a slot to get another example's value.")
    ] = 0.0,
    spell: Annotated[
        float, typer.Option(min=0, max=1, help="Chance of a word to be written in its word pieces.")
    ] = 0.0,
    drop: Annotated[float, typer.Option(min=0, max=1, help="Chance of a word to become [UNK].")] = 0.0,
    max_tokens: Annotated[int, typer.Option(min=8, help="Longest example: the context length + 1.")] = 129,
    shard_examples: Annotated[int, typer.Option(min=1, help="Examples per shard.")] = 5_000,
    seed: Seed = 1,
    as_json: Json = False,
) -> None:
    """Make a corpus folder: tokenizer.json, labels.json, binary shards, held-out set and manifest."""
    if out.resolve() == data.resolve():
        raise InvalidInput(f"{out} is the data itself; give --out a folder of its own.")
    generator_version: str | None = None
    train: list[Item]
    held: list[Item]
    if (data / MANIFEST).is_file():
        source = TextManifest.load(data)
        train, held = list(read_corpus(data, "train")), list(read_corpus(data, "heldout"))
        generator_version = source.generator_version
    else:
        train, held = list(read_any(data)), []
    if heldout is not None:
        held = list(read_any(heldout))
    manifest = build_corpus(
        out,
        train,
        held,
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        word_pieces=word_pieces,
        as_given=as_given,
        augmentation=Augmentation(copies=copies, swap=swap, spell=spell, drop=drop),
        max_tokens=max_tokens,
        shard_examples=shard_examples,
        seed=seed,
        description=data.name,
        generator_version=generator_version,
    )
    print(manifest.model_dump_json() if as_json else _summary(manifest, out))


def _summary(manifest: CorpusManifest, out: Path) -> str:
    lines = [
        f"{manifest.train_examples:,} training examples, {manifest.train_tokens:,} tokens, "
        f"{manifest.unknown_share:.2%} unknown",
        f"{manifest.heldout_examples:,} held-out examples, {manifest.heldout_tokens:,} tokens, "
        f"{manifest.heldout_unknown_share:.2%} unknown",
        f"vocabulary of {manifest.vocab_size:,}; {manifest.left_out} examples left out as longer than "
        f"{manifest.max_tokens} tokens",
        f"written to {out}",
    ]
    return "\n".join(lines)


@app.command(name="import")
def import_(
    data: Annotated[Path, typer.Argument(help="A .jsonl, .tsv, .csv or .txt file, or a folder of them.")],
    as_json: Json = False,
) -> None:
    """Check that a file or folder can be imported, and say what is in it. Nothing is written."""
    items = read_any(data)
    examples = [item for item in items if isinstance(item, Example)]
    intents = Counter(example.intent for example in examples)
    slots = Counter(name for example in examples for name, _ in example.slots)
    report = {
        "kind": "intents" if examples else "text",
        "examples": len(items),
        "intents": dict(sorted(intents.items())),
        "slots": dict(sorted(slots.items())),
    }
    if as_json:
        print(json.dumps(report, ensure_ascii=False))
        return
    what = (
        f"labelled requests, {len(intents)} intents, {len(slots)} slot names" if examples else "lines of text"
    )
    print(f"{len(items):,} {what}: {data} can be imported")

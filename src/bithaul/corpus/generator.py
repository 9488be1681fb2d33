"""The Truck Mate corpus: examples by seed and split, and a folder of text shards with a manifest.

A folder holds `train-00000.txt` ... and `heldout-00000.txt` ..., one example per line in text form, and
`manifest.json` with names, counts, sizes and SHA-256. Equal arguments give equal bytes everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from bithaul.corpus.example import Example
from bithaul.corpus.files import sha256_of, write_bytes
from bithaul.corpus.importers import read_examples
from bithaul.corpus.truckmate.generator import GENERATOR_VERSION, Split, generate
from bithaul.errors import CorruptFile, InvalidInput, NotFound

__all__ = ["GENERATOR_VERSION", "TextManifest", "TextShard", "generate", "read_corpus", "write_corpus"]

DEFAULT_EXAMPLES = 50_000
DEFAULT_HELDOUT = 2_000


class TextShard(BaseModel):
    """One text file: its name in the folder, lines, bytes, SHA-256."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    split: Split
    examples: int
    bytes: int
    sha256: str


class TextManifest(BaseModel):
    """What `bithaul corpus generate` wrote."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["bithaul-text-1"] = "bithaul-text-1"
    generator_version: str
    seed: int
    examples: int
    heldout: int
    unique_examples: int
    shards: list[TextShard]

    @classmethod
    def load(cls, directory: Path) -> TextManifest:
        """Read the manifest of a generated folder; CorruptFile when it is another kind of file."""
        path = directory / "manifest.json"
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise NotFound(
                f"{directory} has no manifest.json; run `bithaul corpus generate` first."
            ) from None
        except ValidationError as error:
            raise CorruptFile(f"{path} is not of generated text: {error.errors()[0]['msg']}.") from None


def write_corpus(
    directory: Path,
    *,
    seed: int,
    count: int = DEFAULT_EXAMPLES,
    heldout: int = DEFAULT_HELDOUT,
    shard_size: int = 5_000,
    progress: Callable[[int], None] | None = None,
) -> TextManifest:
    """Write both splits as text shards, the manifest last; `progress` hears the number of lines so far."""
    if shard_size < 1:
        raise InvalidInput(f"A shard needs at least 1 example, not {shard_size}.")
    shards: list[TextShard] = []
    seen: set[str] = set()
    done = 0
    totals: tuple[tuple[Split, int], ...] = (("train", count), ("heldout", heldout))
    for split, total in totals:
        lines = (example.line() for example in generate(count=total, seed=seed, split=split))
        for number in range(-(-total // shard_size)):
            part = list(islice(lines, shard_size))
            if split == "train":
                seen.update(part)
            data = "".join(f"{line}\n" for line in part).encode()
            name = f"{split}-{number:05d}.txt"
            write_bytes(directory / name, data)
            shards.append(
                TextShard(name=name, split=split, examples=len(part), bytes=len(data), sha256=sha256_of(data))
            )
            done += len(part)
            if progress is not None:
                progress(done)
    manifest = TextManifest(
        generator_version=GENERATOR_VERSION,
        seed=seed,
        examples=count,
        heldout=heldout,
        unique_examples=len(seen),
        shards=shards,
    )
    write_bytes(directory / "manifest.json", manifest.model_dump_json(indent=1).encode() + b"\n")
    return manifest


def read_corpus(directory: Path, split: Split) -> list[Example]:
    """The examples of one split of a generated folder, every file checked against the manifest."""
    examples: list[Example] = []
    for shard in TextManifest.load(directory).shards:
        if shard.split != split:
            continue
        path = directory / shard.name
        if not path.is_file():
            raise NotFound(f"{path} is missing; run `bithaul corpus generate` again.")
        if sha256_of(path.read_bytes()) != shard.sha256:
            raise CorruptFile(f"{path} does not have the SHA-256 of its manifest; generate it again.")
        examples += read_examples(path)
    return examples

"""Make a run folder ready to train: data, tokenizer, shards, database, first weights, client secrets.

Nothing counts as prepared until `run.json` is there, which is written last; a preparation that was
interrupted starts over. What takes seconds says so.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from bithaul.cli.local.folder import RunFolder, RunSpec
from bithaul.coordinator.commands.create_run import CreateRun, create_run
from bithaul.coordinator.commands.standing import pin_worker
from bithaul.coordinator.context import Coordinator, open_coordinator
from bithaul.coordinator.identity.clients import create_client, list_clients, rotate_client
from bithaul.coordinator.settings import load_settings
from bithaul.corpus.augment import suggested
from bithaul.corpus.build import LABELS, CorpusManifest, build_corpus
from bithaul.corpus.example import Example, TextLine
from bithaul.corpus.generator import generate
from bithaul.corpus.importers import read_any
from bithaul.corpus.labels import LabelSet
from bithaul.errors import InvalidConfig, InvalidData
from bithaul.exchange.codecs import codec_named
from bithaul.exchange.messages import ADMIN_SCOPE, WORKER_SCOPE
from bithaul.exchange.weights import weights_named
from bithaul.model.config import load_config
from bithaul.rounds.rules import rule_named
from bithaul.training.recipe import TrainingRecipe

TRUCK_MATE_EXAMPLES = 50_000
TRUCK_MATE_HELDOUT_SHARE = 1 / 25  # 2,000 held-out requests for 50,000
ADMIN_CLIENT = "up"

Say = Callable[[str], None]
Items = Sequence[Example] | Sequence[TextLine]


def worker_ids(count: int) -> list[str]:
    return [f"worker-{i + 1}" for i in range(count)]


def prepare(
    folder: RunFolder, spec: RunSpec, *, budget_tokens: int | None, budget_seconds: float | None, say: Say
) -> None:
    """Build everything a coordinator needs in `folder`; `spec` is written when all of it is durable."""
    # A wrong name is said before anything is built.
    load_config(spec.preset, vocab_size=spec.vocab_size)
    if spec.codec is not None:
        codec_named(spec.codec)
    weights_named(spec.weights)
    rule_named(spec.merge_rule, spec.merge_options)
    TrainingRecipe().changed(spec.recipe)
    if not math.isfinite(spec.task_seconds):
        raise InvalidConfig(f"A task must take some seconds, not {spec.task_seconds}.")
    folder.begin_preparation()
    manifest = _build_corpus(folder, spec, say)
    config = load_config(spec.preset, vocab_size=manifest.vocab_size, ternary=spec.ternary)
    for warning in config.warnings():
        say(f"note: {warning}")
    few = manifest.augmentation.copies > 1 and not any(LabelSet.load(folder.corpus / LABELS).slots.values())
    recipe = TrainingRecipe.for_preset(config.name, manifest.kind, workers=spec.workers, few=few)
    with closing(open_coordinator(load_settings(folder.root))) as coordinator:
        create_run(
            coordinator,
            CreateRun(
                run=folder.root.name.lower()[:64],
                model=config,
                recipe=recipe.changed(spec.recipe).model_dump(mode="json"),
                corpus_dir=folder.corpus,
                merge_rule=spec.merge_rule,
                merge_options=spec.merge_options,
                gates=spec.gates,
                max_update_norm=spec.max_update_norm,
                budget_tokens=budget_tokens,
                budget_seconds=budget_seconds,
                task_seconds=spec.task_seconds,
                codec=spec.codec,
                weights=spec.weights,
                seed=spec.seed,
            ),
        )
        _make_clients(coordinator, folder, spec.workers)
    folder.write_spec(spec)
    folder.end_preparation()


def ensure_clients(folder: RunFolder, workers: int) -> None:
    """Give every worker of this run a client and a secret file, also when workers were added."""
    with closing(open_coordinator(load_settings(folder.root))) as coordinator:
        _make_clients(coordinator, folder, workers)


def data_digest(train: Path, valid: Path) -> str:
    """SHA-256 (hex) over names and bytes of both inputs; folders are read file by file in name order."""
    digest = hashlib.sha256()
    for root in (train, valid):
        if not root.exists():
            raise InvalidData(f"There is no file or folder {root}; name your data with --train and --valid.")
        for path in sorted(root.rglob("*")) if root.is_dir() else [root]:
            if path.is_file():
                digest.update(path.name.encode() + b"\0")
                with path.open("rb") as file:
                    while chunk := file.read(1 << 20):
                        digest.update(chunk)
    return digest.hexdigest()


def _build_corpus(folder: RunFolder, spec: RunSpec, say: Say) -> CorpusManifest:
    aside = folder.root / "corpus.new"
    for leftover in (aside, folder.corpus, folder.root / "blobs"):
        shutil.rmtree(leftover, ignore_errors=True)
    for leftover in folder.root.glob("coordinator.db*"):
        leftover.unlink()
    train, heldout = _read_data(spec, say)
    augmentation = spec.augmentation or suggested(train, generated=spec.train is None)
    say(f"{len(train):,} training and {len(heldout):,} held-out examples; learning the vocabulary")
    context = load_config(spec.preset, vocab_size=spec.vocab_size).context_length
    manifest = build_corpus(
        aside,
        train,
        heldout,
        vocab_size=spec.vocab_size,
        min_frequency=2,
        word_pieces=spec.word_pieces,
        as_given=spec.as_given,
        augmentation=augmentation,
        seed=spec.seed,
        max_tokens=context + 1,
    )
    aside.replace(folder.corpus)
    say(
        f"{manifest.train_tokens:,} training tokens, {manifest.vocab_size:,} words in the vocabulary"
        + (f", {augmentation}" if manifest.kind == "intents" else "")
    )
    return manifest


def _read_data(spec: RunSpec, say: Say) -> tuple[Items, Items]:
    if spec.train is None or spec.valid is None:
        count = spec.examples or TRUCK_MATE_EXAMPLES
        say(f"generating {count:,} Truck Mate requests")
        train = list(generate(count=count, seed=spec.seed, split="train"))
        heldout = max(100, round(count * TRUCK_MATE_HELDOUT_SHARE))
        return train, list(generate(count=heldout, seed=spec.seed, split="heldout"))
    return read_any(Path(spec.train)), read_any(Path(spec.valid))


def _make_clients(coordinator: Coordinator, folder: RunFolder, workers: int) -> None:
    known = {client.id for client in list_clients(coordinator)}
    wanted = [(ADMIN_CLIENT, ADMIN_SCOPE), *((name, WORKER_SCOPE) for name in worker_ids(workers))]
    for client_id, scope in wanted:
        if client_id in known and folder.secret_file(client_id).exists():
            continue
        if client_id in known:
            secret = rotate_client(coordinator, client_id, actor="up")
        else:
            secret = create_client(coordinator, client_id, scope=scope, actor="up")
            if scope == WORKER_SCOPE:
                pin_worker(coordinator, client_id, expected=True)  # a machine of one's own is no stranger
        folder.write_secret(client_id, secret)

"""Create the run: import its corpus into the blob store, write version 1 durably, then the rows.

A coordinator holds one run. Asking again is a `Conflict`; a crash half-way leaves blobs without rows, which
the next start clears away, and no run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bithaul.coordinator.commands.publish import publish
from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import runs, versions
from bithaul.coordinator.database.runs import RunRow, ShardRow
from bithaul.coordinator.database.versions import VersionRow
from bithaul.corpus.build import CorpusManifest
from bithaul.corpus.shards import ShardInfo
from bithaul.corpus.tokenizer import SPECIAL
from bithaul.errors import Conflict, CorruptFile, InvalidConfig, NotFound
from bithaul.exchange.codecs import codec_named
from bithaul.exchange.messages import RunState
from bithaul.exchange.sparse import TopK
from bithaul.exchange.weights import FP32, weights_named
from bithaul.model.config import ModelConfig
from bithaul.model.init import initial_vector
from bithaul.model.layout import layout_of
from bithaul.rounds.gates import Gate, gates_named
from bithaul.rounds.positions import BLOCK
from bithaul.rounds.rules import codec_of, rule_named
from bithaul.rounds.scores import FEWEST_TARGETS

PIECE = 1_048_576


@dataclass(frozen=True)
class CreateRun:
    """`recipe` is a TrainingRecipe as JSON. One of the budgets may be None, not both."""

    run: str
    model: ModelConfig
    recipe: Mapping[str, object]
    corpus_dir: Path
    budget_tokens: float | None = None
    budget_seconds: float | None = None
    merge_rule: str = "sync"
    merge_options: Mapping[str, float | str] = field(default_factory=dict)
    task_seconds: float = 8.0
    codec: str | None = None  # None: the rule's own
    weights: str = FP32.choice  # how versions are published, of `exchange.weights.WEIGHTS`
    seed: int = 0
    probe_every: int = 2  # measure every k-th version on the held-out probe; 0: none
    max_update_norm: float | None = None  # updates with a larger L2 norm are refused
    gates: Sequence[str] = ()  # of `rounds.gates.Gate`


def create_run(c: Coordinator, wanted: CreateRun) -> RunRow:
    """Raises `Conflict` when there is a run, `InvalidConfig`, `UnknownName`, `CorruptFile`, `OutOfDisk`."""
    manifest = _check(wanted)
    with c.database.read() as connection:
        _refuse_second(runs.find_run(connection))
    shards = _import_shards(c, wanted.corpus_dir, manifest)
    vector = initial_vector(wanted.model, seed=wanted.seed)
    blobs = publish(c, vector, version=1, form=weights_named(wanted.weights))
    now = c.clock.now()
    examples = sum(s.examples for s in manifest.shards)
    counted = sum(s.tokens - s.examples for s in manifest.shards)  # the first token of each is no target
    with c.database.write() as connection:
        _refuse_second(runs.find_run(connection))
        run_id = runs.insert_run(
            connection,
            {
                "name": wanted.run,
                "state": RunState.READY,
                "model": wanted.model.model_dump(mode="json"),
                "recipe": dict(wanted.recipe),
                "layout_hash": layout_of(wanted.model).hash,
                "tokenizer_sha256": manifest.tokenizer_sha256,
                "label_token": SPECIAL.index("[INTENT]") if manifest.kind == "intents" else None,
                "codec": wanted.codec or codec_of(wanted.merge_rule),
                "weights": wanted.weights,
                "merge_rule": wanted.merge_rule,
                "merge_options": dict(wanted.merge_options),
                "budget_tokens": wanted.budget_tokens,
                "budget_seconds": wanted.budget_seconds,
                "task_seconds": wanted.task_seconds,
                "probe_every": wanted.probe_every,
                "max_update_norm": wanted.max_update_norm,
                "gates": list(gates_named(wanted.gates)),
                "seed": wanted.seed,
                "tokens_per_example": max(1.0, counted / examples),
                "position_block": BLOCK,
                "position_cursor": 0,
                "active_seconds": 0.0,
                "active_anchor": None,
                "created_at": now,
            },
        )
        runs.insert_shards(connection, [_row(run_id, s, kind, i) for i, (s, kind) in enumerate(shards)])
        versions.insert_version(
            connection,
            VersionRow(
                run_id,
                1,
                sha256=blobs.weights.sha256,
                size=blobs.weights.size,
                created_at=now,
                theta_sha256=blobs.theta.sha256,
            ),
        )
        return runs.get_run(connection)


def _refuse_second(run: RunRow | None) -> None:
    if run is not None:
        raise Conflict(f"This folder already holds the run {run.name!r}; resume it or use another folder.")


def _check(wanted: CreateRun) -> CorpusManifest:
    manifest = CorpusManifest.load(wanted.corpus_dir)
    rule_named(wanted.merge_rule, wanted.merge_options)
    if wanted.codec is not None:
        codec_named(wanted.codec)
    weights_named(wanted.weights)
    gates_named(wanted.gates)
    if wanted.budget_tokens is None and wanted.budget_seconds is None:
        raise InvalidConfig("A run needs a budget of tokens or of seconds.")
    for name in ("budget_tokens", "budget_seconds", "task_seconds", "max_update_norm"):
        value = getattr(wanted, name)
        if value is not None and not 0 < value < float("inf"):
            raise InvalidConfig(f"{name} must be a positive number, not {value}.")
    if wanted.probe_every < 0:
        raise InvalidConfig("probe_every must be 0 (never) or a positive number of versions.")
    if manifest.vocab_size != wanted.model.vocab_size:
        raise InvalidConfig(
            f"The model has a vocabulary of {wanted.model.vocab_size}, the corpus of {manifest.vocab_size}; "
            "set the model's vocab_size to the corpus's."
        )
    if not sum(s.examples for s in manifest.shards):
        raise InvalidConfig(f"The corpus in {wanted.corpus_dir} has no training examples.")
    if Gate.SCORE in wanted.gates:
        _check_scores(wanted, manifest)
    return manifest


def _check_scores(wanted: CreateRun, manifest: CorpusManifest) -> None:
    """Whether the gate `score` can find anything here."""
    codec = wanted.codec or codec_of(wanted.merge_rule)
    if isinstance(codec_named(codec), TopK):
        raise InvalidConfig(
            f"The gate score looks at what an update does to the loss on its own examples; {codec} sends few "
            "values at a time and the rest later, so honest updates look like others (lab note 28). Leave "
            "the gate out, or take another codec, such as int8-block-v1."
        )
    targets = sum(s.tokens - s.examples for s in manifest.shards)
    if targets < FEWEST_TARGETS:
        raise InvalidConfig(
            "The gate score compares examples that a task used with others of the corpus and needs "
            f"{FEWEST_TARGETS} training tokens or more; the corpus in {wanted.corpus_dir} has {targets}. "
            "Leave the gate out, or take a larger corpus."
        )


def _import_shards(c: Coordinator, folder: Path, manifest: CorpusManifest) -> list[tuple[ShardInfo, str]]:
    wanted = [(s, "train") for s in manifest.shards if s.examples]
    if manifest.probe is not None and manifest.probe.examples:
        wanted.append((manifest.probe, "probe"))
    for shard, _ in wanted:
        for suffix, sha256 in (("bin", shard.sha256), ("idx", shard.index_sha256)):
            path = folder / f"{shard.id}.{suffix}"
            if not path.is_file():
                raise NotFound(f"The corpus file {path} is missing; build the corpus again.")
            if c.blobs.put(_pieces(path), name=c.ids.nonce()).sha256 != sha256:
                raise CorruptFile(
                    f"{path} does not have the SHA-256 of its manifest; build the corpus again."
                )
    return wanted


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            yield piece


def _row(run_id: int, shard: ShardInfo, kind: str, ordinal: int) -> ShardRow:
    return ShardRow(
        id=shard.id,
        run_id=run_id,
        kind=kind,
        ordinal=ordinal,
        examples=shard.examples,
        tokens=shard.tokens,
        size=shard.bytes,
        sha256=shard.sha256,
        index_size=shard.index_bytes,
        index_sha256=shard.index_sha256,
    )

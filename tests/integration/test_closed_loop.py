"""The closed loop over real HTTP: a worker's steps, merged at rate 1, are the same steps run here.

The local side is one `Trainer` that trains straight on and never loads weights again, on examples cut from
the corpus folder here. The wrong updates at the end of the file are put in on purpose; each must be seen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sqlalchemy import select

from bithaul.coordinator.database.tables import leases, reports, tasks
from bithaul.corpus.shards import Shard
from bithaul.corpus.tokenizer import SPECIAL
from bithaul.exchange.weights import open_weights
from bithaul.model.init import initial_vector
from bithaul.model.products import default_path
from bithaul.rounds.positions import Span, pieces
from bithaul.training import trainer as trainer_module
from bithaul.training.calibrate import Calibration
from bithaul.training.recipe import TrainingRecipe
from bithaul.training.trainer import Trainer
from bithaul.worker import task as task_module
from bithaul.worker import tools as tools_module

BLOCK = 1024  # values of one scale of int8-block-v1
Vector = np.ndarray[Any, np.dtype[np.float32]]
# Warm-up would begin at rate 0, where a step of the wrong sign looks like one of the right sign.
RECIPE = TrainingRecipe(
    peak_lr=1e-2, batch_examples=8, warmup_share=0.0, optimizer_warmup_steps=2, dropout=0.1
)


UNHURRIED = {"budget_tokens": 6000.0, "task_seconds": 20.0}
"""Tasks of 500, 1,000, ... tokens whose seconds never run out: where a task ends early, its rates were
planned for more examples than the ledger has."""


@pytest.fixture(autouse=True)
def _same_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timing might choose another path, or another task size, on a busy machine."""
    measured = Calibration(tokens_per_second=25.0, spread=0.0, path="", reason="", memory_bytes=1)
    monkeypatch.setattr(tools_module, "calibrate", lambda *_, **__: measured)
    monkeypatch.setattr(trainer_module, "choose_path", lambda shapes, forced=None: default_path())


def distributed(room: Any, **changes: Any) -> Vector:
    """The coordinator's weights after one worker spent the run's budget."""
    room.make_run(recipe=RECIPE.model_dump(mode="json"), **changes)
    with room.serve():
        room.work()
    assert room.version > 1
    return room.theta(room.version)


def accepted_tasks(room: Any) -> list[Any]:
    """Positions, rates' progress, seed and steps of every accepted update, in the order of merging."""
    query = (
        select(
            tasks.c.positions, leases.c.progress_start, leases.c.progress_end, leases.c.seed, reports.c.steps
        )
        .join_from(reports, leases, reports.c.lease_id == leases.c.id)
        .join(tasks, reports.c.task_id == tasks.c.id)
        .where(reports.c.verdict == "accepted")
        .order_by(reports.c.merged_in)
    )
    with room.c.database.read() as connection:
        return list(connection.execute(query))


def local(room: Any) -> Vector:
    """The same steps here. Of the coordinator only sizes, progress and seeds are believed."""
    run, corpus = room.run, sorted(room.corpus.glob("train-*.bin"))
    shards = [Shard.open(path, path.with_suffix(".idx")) for path in corpus]
    trainer = Trainer(run.model, RECIPE, label_token=SPECIAL.index("[INTENT]"), threads=1)
    trainer.load(initial_vector(run.model, seed=run.seed))
    done = 0
    for task in accepted_tasks(room):
        count = sum(n for _, n in task.positions)
        assert task.positions == [[done, count]], "slices do not follow one another"
        parts = pieces([Span(done, count)], shard_sizes=[len(s) for s in shards], seed=run.seed)
        examples = [e for p in parts for e in shards[p.shard].slice(p.first, p.count)]
        trained = trainer.train(
            examples, progress_start=task.progress_start, progress_end=task.progress_end, seed=task.seed
        )
        assert trained.steps == task.steps
        done += count
    assert done > 0
    return trainer.vector()


def test_fp32_is_bit_exact_over_many_tasks(room: Any) -> None:
    """Catches wrong sign, scale, slice, base, seed, progress, lost moments, rounding (pitfalls T1 to T3)."""
    merged = distributed(room, codec="fp32-v1", probe_every=3, **UNHURRIED)
    assert len(accepted_tasks(room)) == room.version - 1 >= 3
    expected = local(room)
    assert np.abs(expected - room.theta(1)).max() > 0.02, "nothing was learnt"
    assert np.array_equal(merged, expected)


def local_from_published(room: Any) -> tuple[Vector, Vector]:
    """The same steps here, each task from theta rounded to bfloat16: theta and the published end."""
    run, corpus = room.run, sorted(room.corpus.glob("train-*.bin"))
    shards = [Shard.open(path, path.with_suffix(".idx")) for path in corpus]
    trainer = Trainer(run.model, RECIPE, label_token=SPECIAL.index("[INTENT]"), threads=1)
    theta = initial_vector(run.model, seed=run.seed)
    for task in accepted_tasks(room):
        parts = pieces(
            [Span(*p) for p in task.positions], shard_sizes=[len(s) for s in shards], seed=run.seed
        )
        examples = [e for p in parts for e in shards[p.shard].slice(p.first, p.count)]
        published = torch.from_numpy(theta).to(torch.bfloat16).float().numpy()
        trainer.load(published)
        trainer.train(
            examples, progress_start=task.progress_start, progress_end=task.progress_end, seed=task.seed
        )
        update = published.astype(np.float64) - trainer.vector().astype(np.float64)
        theta = (theta.astype(np.float64) - update).astype(np.float32)
    return theta, torch.from_numpy(theta).to(torch.bfloat16).float().numpy()


def test_published_bf16_is_bit_exact_over_many_tasks(room: Any) -> None:
    """Catches a worker that starts from another vector than its update is measured from, a coordinator that
    steps from what it published, and weights that are not half as long on the worker's disk."""
    merged = distributed(room, codec="fp32-v1", weights="bf16", probe_every=3, **UNHURRIED)
    assert len(accepted_tasks(room)) == room.version - 1 >= 3
    theta, published = local_from_published(room)
    assert np.abs(published - room.theta(1)).max() > 0.02, "nothing was learnt"
    assert np.array_equal(merged, published)
    assert np.array_equal(room.own_theta(room.version), theta)
    fetched = list((room.directory / "workers/w1").rglob("*.bgwt"))
    assert {path.stat().st_size for path in fetched} == {16 + 2 * theta.size}


def quanta(room: Any, update: Vector) -> Vector:
    """One quantum per value: the scale of its block, max|u| / 127 rounded up to fp16 (at most 2**-10 more,
    or 2**-24 where fp16 is subnormal). Blocks are 1,024 values of one tensor."""
    out = np.empty_like(update)
    for tensor in room.run.layout.tensors:
        for start in range(tensor.offset, tensor.offset + tensor.size, BLOCK):
            end = min(start + BLOCK, tensor.offset + tensor.size)
            scale = np.abs(update[start:end]).max() / np.float32(127)
            out[start:end] = scale * np.float32(1 + 2**-10) + np.float32(2**-24)
    return out


def test_int8_is_within_one_quantum_and_the_worker_keeps_the_rest(room: Any) -> None:
    """One task of H steps. A quantum is the int8 step of a value's own block, max|u| / 127; rounding is to
    the nearest, so no value is off by more than half a quantum, and what is missing is in the residual."""
    merged = distributed(room, codec="int8-block-v1", budget_tokens=1000.0, task_seconds=60.0)
    (task,) = accepted_tasks(room)
    assert task.steps >= 10
    expected = local(room)
    quantum = quanta(room, room.theta(1) - expected)
    rounding = np.spacing(np.abs(expected)) * 2
    assert (np.abs(merged - expected) <= 0.5 * quantum + rounding).all()
    assert np.abs(merged - expected).max() > 0, "int8 that loses nothing is not int8"
    (file,) = (room.directory / "workers/w1/residual").iterdir()
    residual = open_weights(file, expected_count=expected.size).vector
    np.testing.assert_allclose(merged - residual, expected, atol=1e-6)


WRONG: dict[str, Callable[[Vector], Vector]] = {
    "sign": lambda u: -u,
    "scaled up by a twentieth": lambda u: u * 1.05,
    "scaled by the learning rate": lambda u: u * 0.01,
    "shifted by one value": lambda u: np.roll(u, 1),
}


@pytest.mark.parametrize("codec", ["fp32-v1", "int8-block-v1"])
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_update_is_seen(room: Any, monkeypatch: pytest.MonkeyPatch, codec: str, name: str) -> None:
    """The two tests above can fail: with these updates they do (far beyond a quantum)."""
    right = task_module.pseudo_gradient
    monkeypatch.setattr(task_module, "pseudo_gradient", lambda *a, **k: WRONG[name](right(*a, **k)))
    merged = distributed(room, codec=codec, budget_tokens=500.0, task_seconds=60.0)
    expected = local(room)
    quantum = quanta(room, room.theta(1) - expected)
    assert (np.abs(merged - expected) > 2 * quantum).any()

"""The gate `score`: updates of real training are looked at with the real model, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sqlalchemy import insert, select, update

from bithaul.coordinator.commands.roll_back import roll_back
from bithaul.coordinator.commands.scores import score_next
from bithaul.coordinator.commands.standing import pin_worker, restore_worker
from bithaul.coordinator.context import CrashPoints
from bithaul.coordinator.database import fleet, runs, scores, versions
from bithaul.coordinator.database.tables import reports
from bithaul.coordinator.database.tables import scores as score_rows
from bithaul.coordinator.queries.progress import progress
from bithaul.coordinator.queries.taskbrowser import task_page
from bithaul.coordinator.queries.workerpage import worker_page
from bithaul.coordinator.services.retention import retain
from bithaul.coordinator.services.scorer import score_waiting
from bithaul.coordinator.services.startup import check_run
from bithaul.corpus.shards import Shard
from bithaul.errors import InvalidConfig
from bithaul.exchange.messages import Receipt, TaskMessage, Verdict
from bithaul.model.products import default_path
from bithaul.rounds.scores import FEWEST, LEAST, WAITING
from bithaul.training.recipe import TrainingRecipe
from bithaul.training.trainer import Trainer

House = Any
ENGINES = "both"
RECIPE = {"batch_examples": 4, "peak_lr": 0.02, "warmup_share": 0.0, "optimizer_warmup_steps": 0}
POINTS = [name for name in CrashPoints.NAMES if name.startswith("score.")]


@pytest.fixture
def corpus(corpus_of_blocks: Path) -> Path:
    return corpus_of_blocks


@pytest.fixture
def scored_run(make_house: Callable[..., House], corpus: Path) -> Callable[..., House]:
    def make(*names: str, **changes: Any) -> House:
        torch.set_num_threads(1)
        house = make_house(settings=changes.pop("settings", {}))
        wanted = {"gates": ["score"], "corpus_dir": corpus, "recipe": RECIPE, "codec": "int8-block-v1"}
        house.create(**{**wanted, **changes})
        house.register(*(names or ("ann", "bob")), speed=89.6)  # 128 examples a task: two blocks
        return house

    return make


def trained(house: House, corpus: Path, task: TaskMessage) -> np.ndarray[Any, Any]:
    """The update that an honest worker makes of the task."""
    trainer = Trainer(
        house.run.model,
        TrainingRecipe.model_validate(RECIPE),
        label_token=None,
        threads=1,
        path=default_path(),
    )
    start = house.published(task.base_version)
    trainer.load(start)
    examples = [
        example
        for r in task.ranges
        for example in Shard.open(corpus / f"{r.shard}.bin", corpus / f"{r.shard}.idx").slice(
            r.first, r.count
        )
    ]
    trainer.train(examples, progress_start=0.1, progress_end=0.1, seed=1)
    return start - trainer.vector()


def one_round(house: House, corpus: Path, *names: str, copies: str = "") -> dict[str, Receipt]:
    """Everybody reports, `copies` what the first has done; then there is a version."""
    found, last = {}, None
    for name in names or ("ann", "bob"):
        task = house.claim(name)
        last = last if name == copies else trained(house, corpus, task)
        found[name] = house.report(name, task, update=last)
        assert found[name].verdict is Verdict.ACCEPTED
    house.clock.time += 20.0
    assert house.merge() is not None
    return found


def wait_for_all(house: House) -> None:
    """Each accepted report waits for a score, whatever was drawn."""
    with house.c.database.write() as connection:
        connection.execute(update(reports).values(to_score=True))


def waiting(house: House) -> list[int]:
    with house.c.database.read() as connection:
        return [report.seq for report in scores.waiting(connection, house.run.id)]


def rows(house: House) -> list[Any]:
    with house.c.database.read() as connection:
        return list(connection.execute(select(score_rows).order_by(score_rows.c.report)).mappings())


def row_of(house: House, name: str) -> fleet.WorkerRow:
    with house.c.database.read() as connection:
        return fleet.get_worker(connection, name)


def test_who_trains_keeps_its_weight_and_who_copies_loses_some(
    scored_run: Callable[..., House], corpus: Path
) -> None:
    """Catches the wrong sign, base or examples, and a score without effect."""
    names = ("ann", "bob", "eve")
    house = scored_run(*names)
    for _ in range(FEWEST):
        one_round(house, corpus, *names, copies="eve")
        wait_for_all(house)
        with house.c.database.write() as connection:
            scores.give_up(connection, [row["report"] for row in rows(house)])
        while score_next(house.c) is not None:
            pass
    found = {name: row_of(house, name) for name in names}
    assert [row.scored for row in found.values()] == [FEWEST] * 3
    assert min(found["ann"].score, found["bob"].score) > 0.9
    assert found["eve"].score < 0.3
    assert [found[name].trust.weight(0.0) for name in ("ann", "bob")] == [1.0, 1.0]
    assert LEAST <= found["eve"].trust.weight(0.0) < 0.6
    one_round(house, corpus, *names)
    with house.c.database.read() as connection:
        weights = connection.execute(
            select(reports.c.worker, reports.c.weight).order_by(reports.c.seq.desc())
        )
        newest = dict(weights.fetchmany(3))
    assert newest == {name: found[name].trust.weight(0.0) for name in names}
    page = worker_page(house.c, "eve")
    assert (page.machine.scored, page.machine.score) == (FEWEST, found["eve"].score)
    assert "its updates lower the loss on its own examples hardly more" in page.machine.standing_why
    assert page.machine.way_out == "updates that are trained on the examples of its tasks"
    told = {worker.name: worker for worker in progress(house.c).workers}
    assert (told["eve"].scored, told["eve"].weight) == (FEWEST, newest["eve"])
    assert told["eve"].why == page.machine.standing_why
    assert (told["ann"].score, told["ann"].why) == (found["ann"].score, "")


def test_a_score_is_shown_with_its_report_and_changes_no_receipt(
    scored_run: Callable[..., House], corpus: Path
) -> None:
    house = scored_run()
    task = house.claim("ann")
    data = house.frame(task, update=trained(house, corpus, task))
    receipt = house.send("ann", task, data)
    wait_for_all(house)
    before = house.theta()
    done = score_next(house.c)
    assert done is not None
    assert done.found is not None
    assert done.found.value > 0.5
    assert done.found.own > 0.1 > done.found.other
    (row,) = rows(house)
    assert (row["own"], row["other"], row["score"]) == (done.found.own, done.found.other, done.found.value)
    assert (row["worker"], row["made_at"]) == ("ann", house.clock.time)
    assert house.send("ann", task, data) == receipt
    assert np.array_equal(house.theta(), before)
    for page in (worker_page(house.c, "ann").reports, task_page(house.c, task.task).reports):
        assert [report.score for report in page] == [done.found.value]
    assert row_of(house, "ann").trust.weight(0.0) == 0.5, "probation, and nothing from one score"
    assert waiting(house) == []
    assert score_next(house.c) is None


def test_only_what_was_used_is_own(scored_run: Callable[..., House], corpus: Path) -> None:
    """Catches a sample of the whole slice, the rest of which somebody else trains: 4 of 128 are too few."""
    house = scored_run()
    task = house.claim("ann")
    house.report("ann", task, examples=4, update=trained(house, corpus, task))
    wait_for_all(house)
    done = score_next(house.c)
    assert done is not None
    assert done.found is None
    assert (rows(house), waiting(house)) == ([], [])


@pytest.mark.parametrize("weights", ["bf16", "int8-delta"])
def test_the_update_starts_from_what_was_published(
    scored_run: Callable[..., House], corpus: Path, weights: str
) -> None:
    """Catches a base that is theta, which workers never had and which is kept for two versions only."""
    house = scored_run(weights=weights, settings={"retention_keep": 2})
    one_round(house, corpus)
    wait_for_all(house)
    house.train(4)
    with house.c.database.write() as connection:
        connection.execute(update(reports).where(reports.c.base_version > 1).values(to_score=False))
    retain(house.c)
    with house.c.database.read() as connection:
        base = versions.find_version(connection, house.run.id, 1)
    assert base is not None
    assert base.theta_sha256 is None
    assert base.retired_at is None, "it is kept for what waits"
    for _ in range(2):
        done = score_next(house.c)
        assert done is not None
        assert done.found is not None
        assert done.found.value > 0.5
    retain(house.c)
    with house.c.database.read() as connection:
        base = versions.find_version(connection, house.run.id, 1)
    assert base is not None
    assert base.retired_at is not None, "and no longer"


def test_only_the_newest_few_are_kept_to_be_scored(scored_run: Callable[..., House]) -> None:
    """Catches a disk that fills up because scoring is slow."""
    house = scored_run(settings={"retention_keep": 2, "payload_keep_versions": 0})
    house.train(WAITING)
    wait_for_all(house)
    every = waiting(house)
    assert len(every) == 2 * WAITING
    retain(house.c)
    assert waiting(house) == every[-WAITING:]
    with house.c.database.read() as connection:
        flagged = list(connection.execute(select(reports.c.seq).where(reports.c.to_score)).scalars())
        kept = connection.execute(select(reports.c.seq).where(reports.c.blob_sha256.is_not(None))).scalars()
        assert set(flagged) == set(every[-WAITING:]) <= set(kept)


def test_what_is_gone_is_left_out_without_an_error(scored_run: Callable[..., House], corpus: Path) -> None:
    """Catches a service that fails for ever because of one file."""
    house = scored_run()
    one_round(house, corpus)
    wait_for_all(house)
    with house.c.database.read() as connection:
        first, second = scores.waiting(connection, house.run.id)
    house.c.blobs.get(str(first.blob_sha256)).path.unlink()
    path = house.c.blobs.get(str(second.blob_sha256)).path
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-5])
    house.clock.time += 1.0
    assert score_waiting(house.c) == f"report {first.seq} of ann could not be scored"
    assert score_waiting(house.c) == f"report {second.seq} of bob could not be scored"
    assert score_waiting(house.c) == "nothing waits for a score"
    assert rows(house) == []
    assert row_of(house, "ann").scored == 0


def test_what_a_rollback_gave_up_is_not_scored(scored_run: Callable[..., House], corpus: Path) -> None:
    house = scored_run()
    one_round(house, corpus)
    one_round(house, corpus)
    wait_for_all(house)
    assert len(waiting(house)) == 4
    roll_back(house.c, 2)
    assert len(waiting(house)) == 2
    retain(house.c)
    with house.c.database.read() as connection:
        flagged = connection.execute(select(reports.c.seq).where(reports.c.to_score)).scalars().all()
    assert sorted(flagged) == waiting(house)


@pytest.mark.parametrize("point", POINTS)
def test_a_crash_loses_at_most_the_work_on_one(
    scored_run: Callable[..., House], corpus: Path, point: str
) -> None:
    """Catches a score that counts twice or half: a row without its average, an average without its row."""
    house = scored_run()
    one_round(house, corpus)
    wait_for_all(house)
    house.crash_at, house.crash_count = point, 1
    with pytest.raises(BaseException, match=f"^{point}$"):
        score_next(house.c)
    house.crash_at = None
    house.reopen()
    check_run(house.c)
    done = len(rows(house))
    assert done == (1 if point == "score.committed" else 0)
    assert row_of(house, "ann").scored == done
    while score_next(house.c) is not None:
        pass
    assert [row_of(house, name).scored for name in ("ann", "bob")] == [1, 1]
    assert len(rows(house)) == 2
    assert set(POINTS) <= set(house.seen)


def test_a_long_score_is_followed_by_a_long_rest(scored_run: Callable[..., House], corpus: Path) -> None:
    """Catches a coordinator that scores all the time: one of 6 seconds in two minutes is enough."""
    house = scored_run()
    one_round(house, corpus)
    wait_for_all(house)
    assert score_waiting(house.c).startswith(f"report {waiting(house)[0] - 1} of ann scored ")
    with house.c.database.write() as connection:
        connection.execute(update(score_rows).values(seconds=6.0))
    house.clock.time += 113.0
    assert score_waiting(house.c) == "rests after a score that took 6.0 s"
    house.clock.time -= 1000.0
    assert "scored" in score_waiting(house.c), "a clock that was set back is no reason to rest for long"


def test_nobody_is_looked_at_without_the_gate(scored_run: Callable[..., House], corpus: Path) -> None:
    house = scored_run(gates=["norm"])
    for _ in range(4):
        one_round(house, corpus)
    assert waiting(house) == []
    assert score_waiting(house.c) == "the gate score is off"


def test_about_half_of_a_newcomers_reports_are_drawn(scored_run: Callable[..., House]) -> None:
    """Catches a draw that is never or always true, and one for a worker whose weight no score can change."""
    house = scored_run("ann", "bob")
    pin_worker(house.c, "bob")
    house.train(30)
    with house.c.database.read() as connection:
        drawn = connection.execute(select(reports.c.worker).where(reports.c.to_score)).scalars().all()
    assert set(drawn) == {"ann"}
    assert 7 < len(drawn) < 23


def test_the_operator_begins_anew(scored_run: Callable[..., House]) -> None:
    """Catches a restored worker that weighs little for what was before, and a pin that is written again."""
    house = scored_run()
    with house.c.database.write() as connection:
        fleet.update_worker(connection, "ann", score=-0.5, scored=40)
        fleet.update_worker(connection, "bob", score=-0.5, scored=40)
    assert row_of(house, "ann").trust.weight(0.0) == 0.5 * LEAST
    restore_worker(house.c, "ann")
    assert (row_of(house, "ann").score, row_of(house, "ann").scored) == (0.0, 0)
    first = pin_worker(house.c, "bob")
    assert (first.trust.weight(0.0), first.scored) == (1.0, 0)
    assert pin_worker(house.c, "bob") == first


def test_a_small_corpus_is_refused_in_words(make_house: Callable[..., House]) -> None:
    """Catches a gate that is on and never looks at anything."""
    house = make_house()
    with pytest.raises(InvalidConfig, match=r"needs 8192 training tokens or more; the corpus .* has 3500"):
        house.create(gates=["score"])


@pytest.mark.parametrize("wanted", [{"codec": "topk-2bit-v1"}, {"codec": None, "merge_rule": "sparse_ef"}])
def test_a_sparse_codec_is_refused_in_words(make_house: Callable[..., House], wanted: Any) -> None:
    """Catches honest workers that weigh little, where updates say little about their own task."""
    house = make_house()
    with pytest.raises(InvalidConfig, match="topk-2bit-v1 sends few values at a time"):
        house.create(gates=["score"], **wanted)


def test_a_report_has_one_score(scored_run: Callable[..., House], corpus: Path) -> None:
    """The database itself refuses a second one."""
    house = scored_run()
    one_round(house, corpus)
    wait_for_all(house)
    score_next(house.c)
    (row,) = rows(house)
    with pytest.raises(Exception, match=r"(?i)unique"), house.c.database.write() as connection:
        connection.execute(insert(score_rows).values(**row))
    with house.c.database.read() as connection:
        assert runs.find_run(connection) is not None

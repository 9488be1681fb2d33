"""The trainer: what it learns, what it leaves alone, and that it can be repeated to the bit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bithaul.errors import InvalidInput
from bithaul.model import scratch as memory
from bithaul.model.config import ModelConfig
from bithaul.model.init import initial_vector
from bithaul.model.products import FORWARD, refusal
from bithaul.training.calibrate import calibrate
from bithaul.training.recipe import TrainingRecipe
from bithaul.training.trainer import StepReport, Trainer, random_examples

CONFIG = ModelConfig(
    vocab_size=97, hidden_size=64, intermediate_size=128, num_layers=2, num_heads=4, context_length=32
)
RECIPE = TrainingRecipe(peak_lr=3e-3, batch_examples=4, optimizer_warmup_steps=2)
PATH = "fp32+fp32"


def trainer(config: ModelConfig = CONFIG, recipe: TrainingRecipe = RECIPE, **options: object) -> Trainer:
    made = Trainer(config, recipe, label_token=None, threads=1, path=PATH, **options)  # type: ignore[arg-type]
    made.load(initial_vector(config, seed=11))
    return made


def examples(count: int, *, seed: int = 0) -> list[np.ndarray]:
    return random_examples(CONFIG, count=count, tokens=12, seed=seed)


def train(subject: Trainer, items: list[np.ndarray], start: float = 0.1, end: float = 0.2) -> None:
    subject.train(items, progress_start=start, progress_end=end, seed=1)


@pytest.mark.parametrize("ternary", [True, False])
def test_eight_examples_can_be_learned_by_heart(ternary: bool) -> None:
    """A broken gradient anywhere keeps the loss up; ternary and fp32 twin run through the same modules."""
    config = CONFIG.model_copy(update={"ternary": ternary})
    recipe = RECIPE.model_copy(update={"batch_examples": 8, "weight_decay": 0.0})
    subject = trainer(config, recipe)
    items = random_examples(config, count=8, tokens=12, seed=3)
    for item in items:  # the first token tells the examples apart, so that a loss of zero is possible
        item[0] = int(item[0]) % 8
    for i, item in enumerate(items):
        item[0] = i
    assert subject.evaluate(items).loss == pytest.approx(math.log(97), abs=0.15)
    subject.train(items * 150, progress_start=0.1, progress_end=1.0, seed=0)
    assert subject.evaluate(items).loss < 0.05


def test_memory_that_is_used_again_brings_nothing_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a block keeps stands where an earlier step had something else, here only NaN."""
    items = [item[: 5 + i] for i, item in enumerate(examples(4))]  # segments of different lengths
    path = Trainer(CONFIG, RECIPE, label_token=None, threads=1).path
    monkeypatch.setattr(memory, "_LEAST", 1)
    memory.release()
    vectors, dropped = [], 0
    for _ in range(2):
        subject = Trainer(CONFIG, RECIPE, label_token=None, threads=1, path=path)
        subject.load(initial_vector(CONFIG, seed=11))
        result = subject.train(items * 2, progress_start=0.1, progress_end=0.2, seed=1)
        dropped += result.dropped_steps
        vectors.append(subject.vector())
        del subject
        memory._buffers.flat.clear()
        memory._buffers.views.clear()
        assert memory._pool.blocks, "the step took none of it"
        for block in memory._pool.blocks:
            assert block.references() == memory._FREE, "something is still held after the step"
            block.memory[:] = 0xFF
    assert not dropped
    np.testing.assert_array_equal(*vectors)


def test_fast_path_overfits_like_the_reference() -> None:
    subject = Trainer(CONFIG, RECIPE.model_copy(update={"batch_examples": 8}), label_token=None, threads=1)
    subject.load(initial_vector(CONFIG, seed=11))
    items = examples(8)
    for i, item in enumerate(items):
        item[0] = i
    subject.train(items * 150, progress_start=0.1, progress_end=1.0, seed=0)
    assert subject.evaluate(items).loss < 0.05


def test_no_step_means_no_change() -> None:
    """Weights that are re-rounded on load or unload would show as an update (pitfall T3)."""
    subject, vector = trainer(), initial_vector(CONFIG, seed=5)
    subject.load(vector)
    result = subject.train([], progress_start=0.0, progress_end=0.0, seed=0)
    assert (result.steps, result.tokens, result.examples) == (0, 0, 0)
    assert math.isnan(result.loss_mean)
    assert subject.vector().tobytes() == vector.tobytes()


def test_weights_below_half_a_code_still_move() -> None:
    """Latent weights accumulate: a small rate changes fp32 values although no ternary code flips."""
    subject = trainer(recipe=RECIPE.model_copy(update={"peak_lr": 1e-6}))
    before = subject.vector()
    train(subject, examples(8))
    assert 0 < np.abs(subject.vector() - before).max() < 1e-4


def test_the_update_moves_the_loss_down_and_not_up() -> None:
    """Pins the sign: theta_end has a lower loss, so subtracting (start - end) is progress (T2)."""
    subject, items = trainer(), examples(16)
    start, before = subject.vector(), subject.evaluate(items).loss
    train(subject, items)
    update = start - subject.vector()
    subject.load(start - update)
    assert subject.evaluate(items).loss < before
    subject.load(start + update)
    assert subject.evaluate(items).loss > before


def test_same_input_gives_the_same_bits() -> None:
    results = []
    for _ in range(2):
        subject = trainer(recipe=RECIPE.model_copy(update={"dropout": 0.1}))
        train(subject, examples(22))
        results.append(subject.vector().tobytes())
    assert results[0] == results[1]


def with_threads(threads: int, items: list[np.ndarray], *, path: str | None = PATH) -> tuple[Trainer, float]:
    subject = Trainer(CONFIG, RECIPE, label_token=None, threads=threads, path=path)
    subject.load(initial_vector(CONFIG, seed=11))
    result = subject.train(items, progress_start=0.1, progress_end=0.2, seed=1)
    assert (result.examples, result.tokens) == (len(items), sum(len(i) - 1 for i in items))
    return subject, result.loss_mean


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_share_a_batch_and_change_nothing_but_rounding(threads: int) -> None:
    """Catches a share that is lost, counted twice or weighed by its own size, and gradients that race.

    Three steps with the batch not divisible by the threads; the last batch has fewer examples than threads.
    """
    items = [item[: 4 + n] for n, item in enumerate(examples(9))]
    try:
        one, loss = with_threads(1, items)
        many, shared = with_threads(threads, items)
        again, _ = with_threads(threads, items)
    finally:
        torch.set_num_threads(1)
    assert shared == pytest.approx(loss, rel=1e-4)
    assert many.vector().tobytes() == again.vector().tobytes()
    moved = one.vector() - initial_vector(CONFIG, seed=11)
    distance = np.linalg.norm(many.vector() - one.vector()) / np.linalg.norm(moved)
    assert distance < 0.02
    assert many.evaluate(items).loss == pytest.approx(one.evaluate(items).loss, rel=1e-3)


@pytest.mark.parametrize("forward", FORWARD)
def test_the_precision_of_products_is_restored_by_threads(forward: str) -> None:
    """It is one switch for the whole process: two threads that set it in turn could leave it on."""
    if (reason := refusal(forward)) is not None:
        pytest.skip(f"{forward} is {reason} here")
    backend = torch.backends.mkldnn.matmul
    before = backend.fp32_precision
    try:
        for _ in range(5):
            with_threads(2, examples(8), path=f"{forward}+bf16")
    finally:
        torch.set_num_threads(1)
    assert backend.fp32_precision == before


@pytest.mark.parametrize("bad", [97, 100_000_000, -1])
def test_a_token_outside_the_vocabulary_is_refused(bad: int) -> None:
    """The compiled passes do not check: such a target would write outside its array or end the process."""
    subject = trainer()
    items = examples(4)
    items[2][-1] = bad  # only ever a target
    before = subject.vector()
    with pytest.raises(InvalidInput, match=str(bad)):
        train(subject, items)
    with pytest.raises(InvalidInput, match="vocabulary of 97"):
        subject.evaluate(items)
    assert subject.vector().tobytes() == before.tobytes()


def test_a_batch_without_counted_targets_is_passed_over() -> None:
    recipe = RECIPE.model_copy(update={"text_loss_weight": 0.0})
    subject = Trainer(CONFIG, recipe, label_token=5, threads=1, path=PATH)
    items = [np.array([1, 2, 5], np.int32)] * 4  # the label token comes last: nothing after it counts
    result = subject.train(items, progress_start=0.1, progress_end=0.2, seed=1)
    assert (result.steps, result.examples, result.dropped_steps) == (0, 4, 0)


def test_dropout_follows_the_seed() -> None:
    vectors = []
    for seed in (1, 2):
        subject = trainer(recipe=RECIPE.model_copy(update={"dropout": 0.3}))
        subject.train(examples(8), progress_start=0.1, progress_end=0.1, seed=seed)
        vectors.append(subject.vector())
    assert not np.array_equal(*vectors)


def test_two_tasks_with_a_reload_equal_one_run() -> None:
    """Moments stay across tasks; loading the very same weights changes nothing."""
    items = examples(16)
    whole, halves = trainer(), trainer()
    train(whole, items, 0.1, 0.1)
    train(halves, items[:8], 0.1, 0.1)
    halves.load(halves.vector())
    train(halves, items[8:], 0.1, 0.1)
    assert halves.vector().tobytes() == whole.vector().tobytes()


def test_stop_save_resume_equals_no_stop() -> None:
    items = examples(16)
    whole, first, second = trainer(), trainer(), trainer()
    train(whole, items, 0.1, 0.1)
    train(first, items[:8], 0.1, 0.1)
    second.load(first.vector())
    second.load_state_dict(first.state_dict())
    train(second, items[8:], 0.1, 0.1)
    assert second.vector().tobytes() == whole.vector().tobytes()


def test_dropping_the_moments_is_a_fresh_start() -> None:
    subject, fresh = trainer(), trainer()
    train(subject, examples(16))
    subject.reset_moments()
    subject.load(fresh.vector())
    train(subject, examples(8, seed=4))
    train(fresh, examples(8, seed=4))
    assert subject.vector().tobytes() == fresh.vector().tobytes()


def test_a_fresh_optimizer_warms_up() -> None:
    """Without it the first AdamW step has full size whatever the gradient."""
    moved = []
    for steps in (0, 20):
        subject = trainer(recipe=RECIPE.model_copy(update={"optimizer_warmup_steps": steps}))
        before = subject.vector()
        train(subject, examples(4))
        moved.append(np.abs(subject.vector() - before).max())
    assert moved[1] == pytest.approx(moved[0] / 20, rel=0.05)


def test_weight_decay_spares_gains_and_embedding() -> None:
    """One step with a huge decay and almost no rate of change otherwise: only matrices shrink."""
    recipe = RECIPE.model_copy(update={"weight_decay": 10.0, "optimizer_warmup_steps": 0})
    decayed, plain = trainer(recipe=recipe), trainer(recipe=recipe.model_copy(update={"weight_decay": 0.0}))
    for subject in (decayed, plain):
        train(subject, examples(4), 0.1, 0.1)
    others = dict(plain.model.named_parameters())
    for name, parameter in decayed.model.named_parameters():
        same = torch.equal(parameter, others[name])
        assert same == ("norm" in name or "embed" in name), name


def test_the_embedding_has_a_rate_of_its_own() -> None:
    """One step of AdamW moves every value by the rate, so a tenth of the rate is a tenth of the way."""
    moved = {}
    for share in (1.0, 0.1):
        recipe = RECIPE.model_copy(
            update={"embedding_lr_share": share, "weight_decay": 0.0, "batch_examples": 8}
        )
        subject = trainer(recipe=recipe)
        before = {name: p.detach().clone() for name, p in subject.model.named_parameters()}
        train(subject, examples(8))
        after = dict(subject.model.named_parameters())
        moved[share] = {name: float((after[name].detach() - before[name]).abs().sum()) for name in before}
    for name, way in moved[1.0].items():
        expected = 0.1 if "embed" in name else 1.0
        assert moved[0.1][name] / way == pytest.approx(expected, rel=1e-3), name


def test_a_step_advances_the_version_counters() -> None:
    """The fused optimizer does not; without the trainer's bump the forward pass would keep old codes."""
    subject, items = trainer(recipe=RECIPE.model_copy(update={"peak_lr": 0.05})), examples(8)
    train(subject, items)
    cached = subject.evaluate(items).loss
    fresh = trainer()
    fresh.load(subject.vector())
    assert fresh.evaluate(items).loss == cached


def test_a_step_that_is_not_finite_is_dropped_and_counted() -> None:
    subject = trainer()
    poisoned = subject.vector()
    poisoned[0] = np.nan  # in the embedding of token 0
    subject.load(poisoned)
    clean = [np.clip(e, 1, None) for e in examples(4)]
    bad = [np.zeros(6, np.int32)] * 4
    before = subject.vector()
    result = subject.train(bad, progress_start=0.1, progress_end=0.1, seed=0)
    assert (result.dropped_steps, result.steps, result.tokens, result.examples) == (1, 0, 0, 4)
    assert subject.vector().tobytes() == before.tobytes()
    assert clean  # every loss runs over the poisoned vocabulary entry, so there is no clean batch to train


def test_stopping_early_reports_what_was_trained() -> None:
    """Catches reporting the slice that was asked for (T11)."""
    subject = trainer()
    seen: list[StepReport] = []

    def stop_after_two(report: StepReport) -> bool:
        seen.append(report)
        return len(seen) < 2

    result = subject.train(examples(22), progress_start=0, progress_end=1, seed=0, on_step=stop_after_two)
    assert (result.steps, result.examples, result.tokens) == (2, 8, 8 * 11)
    assert [r.examples for r in seen] == [4, 8]
    assert result.loss_last == seen[-1].loss
    assert result.loss_first == seen[0].loss
    assert result.loss_mean == pytest.approx((seen[0].loss + seen[1].loss) / 2)


def test_the_soft_stop_ends_after_the_running_step() -> None:
    ticks = iter(range(1000))
    subject = trainer(clock=lambda: float(next(ticks)))
    result = subject.train(examples(40), progress_start=0, progress_end=1, seed=0, soft_stop_seconds=3.0)
    assert (result.steps, result.examples) == (3, 12)


def test_the_last_partial_batch_is_used() -> None:
    result = trainer().train(examples(6), progress_start=0, progress_end=0, seed=0)
    assert (result.steps, result.examples, result.tokens) == (2, 6, 66)


def test_evaluation_weighs_like_training_and_changes_nothing() -> None:
    subject = Trainer(CONFIG, RECIPE, label_token=5, threads=1, path=PATH)
    items = [np.array([2, 9, 8, 5, 7, 3], np.int32)] * 4
    before = subject.vector()
    found = subject.evaluate(items)
    result = subject.train(items, progress_start=0.0, progress_end=0.0, seed=0)
    assert result.loss_first == pytest.approx(found.loss, rel=1e-6)
    assert found.loss != found.plain_loss
    assert found.tokens == 20
    assert subject.vector().tobytes() == before.tobytes()  # the schedule starts at a rate of zero
    with pytest.raises(InvalidInput):
        subject.evaluate([])


def test_clipping_bounds_the_gradient_and_not_the_direction() -> None:
    """AdamW is scale free, so clip shows in the second moment: one huge batch must not swamp it."""
    subject = trainer(recipe=RECIPE.model_copy(update={"clip": 1e-3}))
    train(subject, examples(4))
    state = subject.state_dict()["moments"]
    total = sum(float(s["exp_avg"].pow(2).sum()) for s in state.values())
    assert math.sqrt(total) == pytest.approx(0.1 * 1e-3, rel=1e-3)


def test_a_trainer_needs_a_thread() -> None:
    with pytest.raises(InvalidInput, match="thread"):
        Trainer(CONFIG, RECIPE, label_token=None, threads=0)


def test_calibration_measures_the_real_step() -> None:
    found = calibrate(CONFIG, RECIPE, threads=1, seconds=0.2, path=PATH)
    assert found.tokens_per_second > 0
    assert found.path == PATH
    assert found.memory_bytes > 0
    assert found.spread >= 0


@pytest.mark.parametrize("fast", ["int_mm+bf16", "tiles+int16"])
def test_short_training_agrees_between_fast_path_and_reference(fast: str) -> None:
    """Sixty steps on learnable data: the fast path must not be worse than the definition."""
    if (reason := refusal(fast.partition("+")[0])) is not None:
        pytest.skip(f"{fast} is {reason} here")
    random = np.random.default_rng(0)
    starts = random.integers(0, 97, 240)
    items = [((start + np.arange(14) * 3) % 97).astype(np.int32) for start in starts]
    losses = {}
    for name, path, plain in (("fast", fast, False), ("plain", PATH, True)):
        subject = Trainer(CONFIG, RECIPE, label_token=None, threads=1, path=path, plain=plain)
        subject.load(initial_vector(CONFIG, seed=2))
        train(subject, items)
        losses[name] = subject.evaluate(items[:32]).loss
    assert losses["plain"] < 3.5
    assert losses["fast"] == pytest.approx(losses["plain"], rel=0.1)


def gradients(path: str, granule: int, monkeypatch: pytest.MonkeyPatch, *, plain: bool) -> torch.Tensor:
    """All gradients after one step on 730 targets: several row blocks of every kind, the last one partial."""
    monkeypatch.setattr("bithaul.training.batches.GRANULE", granule)
    recipe = RECIPE.model_copy(update={"batch_examples": 64, "clip": 1e9})
    subject = Trainer(CONFIG, recipe, label_token=5, threads=1, path=path, plain=plain)
    subject.load(initial_vector(CONFIG, seed=11))
    random = np.random.default_rng(1)
    items = [random.integers(0, 97, n, dtype=np.int32) for n in random.integers(4, 22, 64)]
    subject.train(items, progress_start=0.1, progress_end=0.1, seed=0)
    return torch.cat([p.grad.flatten() for p in subject.model.parameters() if p.grad is not None])


@pytest.mark.parametrize(
    ("path", "granule"), [("fp32+fp32", 1), ("fp32+fp32", 32), ("int_mm+bf16", 32), ("tiles+int16", 32)]
)
def test_many_rows_and_padding_change_no_gradient(
    path: str, granule: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a row block that is dropped or used twice, and padding that is learned from."""
    if (reason := refusal(path.partition("+")[0])) is not None:
        pytest.skip(f"{path} is {reason} here")
    expected = gradients("fp32+fp32", 1, monkeypatch, plain=True)
    found = gradients(path, granule, monkeypatch, plain=False)
    assert torch.cosine_similarity(found, expected, dim=0).item() > 0.999
    assert (found.norm() / expected.norm()).item() == pytest.approx(1.0, abs=3e-3)

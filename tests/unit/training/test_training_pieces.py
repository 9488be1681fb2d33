"""Schedule, recipe, batches and the loss: pure parts of a training step."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from bithaul.errors import InvalidConfig
from bithaul.model.scratch import release, scratch
from bithaul.training.batches import GRANULE, inner_batches, pack
from bithaul.training.loss import head_loss
from bithaul.training.recipe import TrainingRecipe, read_recipe_changes
from bithaul.training.schedule import rates

LABEL = 5


@pytest.mark.parametrize(
    ("progress", "lr", "decay"),
    [
        (-1.0, 0.0, 0.1),
        (0.0, 0.0, 0.1),
        (0.01, 0.5, 0.1),
        (0.02, 1.0, 0.1),
        (0.49, 1.0, 0.1),
        (0.5, 2 / 3, 0.0),
        (0.67, 2 / 3, 0.0),
        (0.835, (2 / 3 + 0.05) / 2, 0.0),
        (1.0, 0.05, 0.0),
        (1.3, 0.05, 0.0),
    ],
)
def test_schedule_at_its_corners(progress: float, lr: float, decay: float) -> None:
    """Catches a schedule on local steps, decay that outlives stage 1, and a negative rate past the budget."""
    recipe = TrainingRecipe(peak_lr=1e-3)
    found = rates(progress, recipe)
    assert found[0] == pytest.approx(lr * 1e-3, abs=1e-9)
    assert found[1] == decay


def test_a_recipe_file_replaces_single_fields(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("dropout = 0.1\nbetas = [0.8, 0.9]\n")
    changed = TrainingRecipe.for_preset("medium", "intents").changed(read_recipe_changes(file))
    assert changed.dropout == 0.1
    assert changed.betas == (0.8, 0.9)
    assert changed.peak_lr == 7e-4


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("dropuot = 0.1", "'dropuot'.*may set peak_lr"),
        ("dropout = 1.5", "'dropout'.*less than 1"),
        ("dropout = ", "not valid TOML"),
        (None, "cannot be read"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(tmp_path: Path, content: str | None, said: str) -> None:
    """A misspelt field that is ignored would train something else than what was asked."""
    file = tmp_path / "mine.toml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InvalidConfig, match=said):
        read_recipe_changes(file)


def test_schedule_without_warmup() -> None:
    assert rates(0.0, TrainingRecipe(warmup_share=0.0, peak_lr=1e-3))[0] == 1e-3


def test_recipe_travels_as_json_and_refuses_nonsense() -> None:
    recipe = TrainingRecipe.for_preset("small", "intents")
    assert TrainingRecipe.model_validate(recipe.model_dump(mode="json")) == recipe
    with pytest.raises(ValidationError):
        TrainingRecipe(peak_lr=math.nan)
    with pytest.raises(ValidationError):
        TrainingRecipe.model_validate({"learning_rate": 1.0})


def test_workers_share_the_batch_and_keep_the_length_of_a_merged_step() -> None:
    """Catches a batch that grows with every worker, and one that shrinks to nothing."""
    alone = TrainingRecipe.for_preset("small", "intents")
    for workers, share in ((1, 1), (2, 2), (4, 4), (64, 4)):
        found = TrainingRecipe.for_preset("small", "intents", workers=workers)
        assert found.batch_examples == alone.batch_examples // share
        assert found.peak_lr == pytest.approx(alone.peak_lr * math.sqrt(share))
        assert found.embedding_lr_share == pytest.approx(math.sqrt(share))
        assert found.betas[0] == alone.betas[0]
        lookback = found.batch_examples / (1 - found.betas[1])  # examples in the second moment
        assert lookback == pytest.approx(alone.batch_examples / (1 - alone.betas[1]))


def test_pack_shifts_by_one_and_weighs_label_tokens() -> None:
    """Catches targets shifted twice, weights off by one at the label token, and tokens that count inputs."""
    examples = [
        np.array([2, 4, 9, LABEL, 7, 3], np.int32),
        np.array([2, 8], np.int32),
        np.array([2], np.int32),
    ]
    batch = pack(examples, label_token=LABEL, text_loss_weight=0.25)
    assert batch is not None
    assert batch.tokens == 6
    assert batch.input_ids[:6].tolist() == [2, 2, 4, 9, LABEL, 7]
    assert batch.targets[:6].tolist() == [8, 4, 9, LABEL, 7, 3]
    assert batch.weights[:6].tolist() == [1.0, 0.25, 0.25, 0.25, 1.0, 1.0]
    assert batch.segments.positions[:6].tolist() == [0, 0, 1, 2, 3, 4]
    assert batch.examples == 3
    assert pack([np.array([2], np.int32)], label_token=None, text_loss_weight=1.0) is None


def test_without_label_token_every_target_counts_fully() -> None:
    batch = pack([np.array([2, 4, LABEL, 7], np.int32)], label_token=None, text_loss_weight=0.25)
    assert batch is not None
    assert batch.weights[:3].tolist() == [1.0, 1.0, 1.0]


def test_padding_has_no_weight_and_does_not_widen_attention() -> None:
    """Catches padding that is trained on, counted as tokens, or one long segment that blows attention up."""
    examples = [np.arange(1, 11, dtype=np.int32) for _ in range(20)]
    batch = pack(examples, label_token=None, text_loss_weight=1.0)
    assert batch is not None
    assert (batch.tokens, len(batch.input_ids)) == (180, 180 + GRANULE - 180 % GRANULE)
    assert batch.weights.sum().item() == 180
    assert not batch.weights[180:].any()
    assert batch.segments.longest == 9


def test_inner_batches_keep_order_and_lose_nothing() -> None:
    examples = [np.array([i, i], np.int32) for i in range(7)]
    groups = list(inner_batches(examples, 3))
    assert [len(g) for g in groups] == [3, 3, 1]
    assert [int(e[0]) for g in groups for e in g] == list(range(7))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_head_loss_and_gradients_equal_torch(smoothing: float) -> None:
    """More rows than one block, so a block boundary that drops or repeats rows shows."""
    torch.manual_seed(0)
    hidden, embedding = torch.randn(150, 16, requires_grad=True), torch.randn(40, 16, requires_grad=True)
    targets, weights = torch.randint(0, 40, (150,)), torch.rand(150)
    weights[::7] = 0.0
    loss, sums = head_loss(hidden, embedding, targets, weights, smoothing=smoothing)
    (2.0 * loss).backward()
    found = (hidden.grad, embedding.grad)
    hidden.grad = embedding.grad = None
    logits = hidden @ embedding.t()
    each = F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
    expected = (each * weights).sum() / weights.sum()
    (2.0 * expected).backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for a, b in zip(found, (hidden.grad, embedding.grad), strict=True):
        assert a is not None
        assert b is not None
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    plain = F.cross_entropy(logits, targets, reduction="none")
    assert sums.mean == pytest.approx(((plain * weights).sum() / weights.sum()).item(), rel=1e-5)
    assert sums.plain_mean == pytest.approx(plain[weights > 0].mean().item(), rel=1e-5)
    assert sums.tokens == int((weights > 0).sum())


def test_head_loss_in_bf16_stays_close() -> None:
    torch.manual_seed(0)
    hidden, embedding = torch.randn(64, 32, requires_grad=True), (0.1 * torch.randn(50, 32)).requires_grad_()
    targets, weights = torch.randint(0, 50, (64,)), torch.ones(64)
    exact, _ = head_loss(hidden, embedding, targets, weights)
    (expected,) = torch.autograd.grad(exact, hidden)
    rounded, _ = head_loss(hidden, embedding, targets, weights, dtype=torch.bfloat16)
    (found,) = torch.autograd.grad(rounded, hidden)
    assert rounded.item() == pytest.approx(exact.item(), abs=5e-3)
    assert (found - expected).norm() <= 1e-2 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [97, 100, 5174])
def test_what_lies_in_memory_is_not_learned_from(vocabulary: int, dtype: torch.dtype) -> None:
    """Catches: a CPU with AMX multiplies whole tiles, and 0 times a NaN beside the logits drops a step."""
    release()
    scratch("d_logits", (64, -(-vocabulary // 32) * 32), dtype).fill_(math.nan)
    hidden, embedding = torch.randn(64, 32, requires_grad=True), torch.randn(vocabulary, 32)
    loss, _ = head_loss(hidden, embedding, torch.randint(0, vocabulary, (64,)), torch.ones(64), dtype=dtype)
    assert torch.autograd.grad(loss, hidden)[0].isfinite().all()


def test_a_hopeless_target_has_a_finite_loss() -> None:
    """Softmax underflow must not turn into an infinite loss."""
    hidden = torch.tensor([[200.0, 0.0]])
    loss, _ = head_loss(hidden, torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([1]), torch.ones(1))
    assert loss.item() == pytest.approx(400.0)

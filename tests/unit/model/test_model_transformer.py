"""The decoder: names and order, the twin, packing, positions, and decoding with a cache."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bithaul.errors import InvalidInput, LayoutMismatch
from bithaul.model.cache import KVCache
from bithaul.model.config import PRESETS, ModelConfig, load_config
from bithaul.model.init import initial_vector
from bithaul.model.layout import layout_of
from bithaul.model.products import EXACT_FP32, FORWARD, StepPath, refusal
from bithaul.model.segments import Segments
from bithaul.model.transformer import BitNetForCausalLM
from bithaul.model.vector import flatten, load_vector

CONFIG = ModelConfig(
    vocab_size=61, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4, context_length=24
)


@pytest.fixture
def model() -> BitNetForCausalLM:
    model = BitNetForCausalLM(CONFIG, path=EXACT_FP32)
    model.reset_parameters(seed=7)
    return model.requires_grad_(False)


def ids(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, CONFIG.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("preset", PRESETS)
def test_layout_equals_the_modules_parameters(preset: str) -> None:
    """Catches parameters that are trained but do not travel (pitfall T8), and a changed order."""
    config = load_config(preset, vocab_size=5174)
    with torch.device("meta"):
        model = BitNetForCausalLM(config, path=EXACT_FP32)
    found = [(name, tuple(p.shape)) for name, p in model.named_parameters()]
    assert found == [(t.name, t.shape) for t in layout_of(config).tensors]


@pytest.mark.parametrize(("preset", "millions"), [("small", 6.6), ("medium", 57.2), ("large", 117.3)])
def test_preset_sizes(preset: str, millions: float) -> None:
    assert layout_of(load_config(preset, vocab_size=5174)).size / 1e6 == pytest.approx(millions, abs=0.1)


def test_initial_loss_is_near_ln_v() -> None:
    """Catches logits that start peaked: at step 0 every token is about equally likely."""
    config = load_config("small", vocab_size=5174)
    model = BitNetForCausalLM(config).requires_grad_(False)
    model.reset_parameters(seed=0)
    tokens = torch.randint(0, 5174, (4, 33), generator=torch.Generator().manual_seed(0))
    logits = model.logits(model(tokens[:, :-1]))
    assert F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).item() == pytest.approx(
        8.55, abs=0.1
    )


def test_fast_and_plain_steps_see_the_same_model(model: BitNetForCausalLM) -> None:
    plain = BitNetForCausalLM(CONFIG, plain=True).requires_grad_(False)
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(ids(3, 20)), plain(ids(3, 20)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("forward", FORWARD)
def test_forward_is_bit_identical_on_every_path_and_thread_count(
    forward: str, model: BitNetForCausalLM
) -> None:
    if (reason := refusal(forward)) is not None:
        pytest.skip(f"{forward} is {reason} here")
    other = BitNetForCausalLM(CONFIG, path=StepPath(forward, "bf16", "test")).requires_grad_(False)
    other.load_state_dict(model.state_dict())
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = model(ids(4, 24))
        torch.set_num_threads(2)
        assert torch.equal(other(ids(4, 24)), one)
    finally:
        torch.set_num_threads(before)


def test_twin_without_quantisers_is_a_plain_transformer() -> None:
    """The fp32 twin uses the same modules; its projections must be exactly `x W^t`."""
    twin = BitNetForCausalLM(CONFIG.model_copy(update={"ternary": False})).requires_grad_(False)
    twin.reset_parameters(seed=7)
    attention = twin.get_submodule("model.layers.0.self_attn")
    x = torch.randn(5, 32)
    for name in ("q_proj", "o_proj"):
        layer = attention.get_submodule(name)
        assert torch.equal(layer(x), F.linear(x, layer.get_parameter("weight")))
    ternary = BitNetForCausalLM(CONFIG).requires_grad_(False)
    ternary.load_state_dict(twin.state_dict())
    assert not torch.allclose(twin(ids(2, 8)), ternary(ids(2, 8)), atol=1e-3)


def test_examples_in_one_pack_do_not_see_each_other(model: BitNetForCausalLM) -> None:
    """Catches attention or positions that leak across examples laid end to end."""
    parts = [ids(n, seed=n) for n in (7, 1, 12, 4)]
    packed = model.packed(torch.cat(parts), Segments.of_lengths(torch.tensor([len(p) for p in parts])))
    for part, found in zip(parts, packed.split([len(p) for p in parts]), strict=True):
        torch.testing.assert_close(found, model(part[None])[0], rtol=1e-4, atol=1e-4)


def test_segment_ids_of_rows_equal_separate_rows(model: BitNetForCausalLM) -> None:
    tokens = ids(2, 10)
    segment_ids = torch.tensor([[0] * 4 + [1] * 6, [0] * 3 + [2] * 5 + [-1] * 2])
    hidden = model(tokens, segment_ids=segment_ids)
    for row, start, end in ((0, 0, 4), (0, 4, 10), (1, 0, 3), (1, 3, 8)):
        alone = model(tokens[row : row + 1, start:end])[0]
        torch.testing.assert_close(hidden[row, start:end], alone, rtol=1e-4, atol=1e-4)
    assert not hidden[1, 8:].any()


def test_padding_separates_runs_of_equal_segment_ids(model: BitNetForCausalLM) -> None:
    tokens = ids(1, 5)
    joined = model(tokens, segment_ids=torch.tensor([[0, 0, -1, 0, 0]]))
    apart = model(tokens, segment_ids=torch.tensor([[0, 0, -1, 1, 1]]))
    assert torch.equal(joined, apart)
    with pytest.raises(InvalidInput, match="padding"):
        model(tokens, segment_ids=torch.full((1, 5), -1))


def test_future_tokens_do_not_change_the_past(model: BitNetForCausalLM) -> None:
    tokens = ids(1, 12)
    changed = tokens.clone()
    changed[0, 8:] = (changed[0, 8:] + 1) % CONFIG.vocab_size
    assert torch.equal(model(tokens)[0, :8], model(changed)[0, :8])


def test_rotary_positions_are_relative_and_half_split(model: BitNetForCausalLM) -> None:
    """Shifting all positions of a sequence changes nothing but rounding; order within it does matter."""
    tokens = ids(1, 10)
    shifted = model(tokens, positions=torch.arange(5, 15)[None])
    torch.testing.assert_close(model(tokens), shifted, rtol=1e-2, atol=2e-2)
    unordered = model(tokens, positions=torch.zeros(1, 10, dtype=torch.int64))
    assert (model(tokens) - unordered).abs().max() > 0.02


def test_decoding_with_a_cache_equals_the_whole_sequence(model: BitNetForCausalLM) -> None:
    """Rows of different lengths, padded on the right, then one token at a time."""
    lengths = torch.tensor([5, 9, 2])
    tokens = ids(3, 16)
    cache = KVCache(CONFIG, batch=3, capacity=16)
    hidden = model(tokens[:, :9], cache=cache, lengths=lengths)
    found = [[h[: int(n)]] for h, n in zip(hidden, lengths, strict=True)]
    for _ in range(6):
        nxt = torch.stack([tokens[b, int(cache.lengths[b])] for b in range(3)])[:, None]
        step = model(nxt, cache=cache)
        for b in range(3):
            found[b].append(step[b])
    for b in range(3):
        total = int(lengths[b]) + 6
        assert int(cache.lengths[b]) == total
        whole = model(tokens[b : b + 1, :total])[0]
        torch.testing.assert_close(torch.cat(found[b]), whole, rtol=1e-3, atol=1e-3)


def test_cache_rows_can_be_chosen_and_rewound(model: BitNetForCausalLM) -> None:
    tokens = ids(2, 6)
    cache = KVCache(CONFIG, batch=2, capacity=12)
    model(tokens, cache=cache)
    chosen = cache.select(torch.tensor([1, 1, 0]))
    nxt = ids(3, 1, seed=4)
    found = model(nxt, cache=chosen)
    for row, source in enumerate((1, 1, 0)):
        whole = model(torch.cat([tokens[source], nxt[row]])[None])
        torch.testing.assert_close(found[row, 0], whole[0, -1], rtol=1e-3, atol=1e-3)
    assert cache.lengths.tolist() == [6, 6]
    chosen.lengths = chosen.lengths - 1
    torch.testing.assert_close(model(nxt, cache=chosen), found, rtol=1e-3, atol=1e-3)


def test_too_long_sequences_are_refused(model: BitNetForCausalLM) -> None:
    with pytest.raises(InvalidInput, match="25 tokens"):
        model(ids(1, 25))
    with pytest.raises(InvalidInput, match="does not fit"):
        model(ids(1, 9), cache=KVCache(CONFIG, batch=1, capacity=8))
    with pytest.raises(InvalidInput, match="1 to 24"):
        KVCache(CONFIG, batch=1, capacity=25)
    with pytest.raises(InvalidInput, match="rows"):
        model(ids(1, 3), cache=KVCache(CONFIG, batch=2))


def test_vector_round_trip_is_bit_exact_and_drops_cached_codes(model: BitNetForCausalLM) -> None:
    """Catches stale ternary codes after new weights arrive, and weights that are re-rounded on load (T3)."""
    first = model(ids(1, 8))
    vector = flatten(model)
    other = initial_vector(CONFIG, seed=8)
    load_vector(model, other)
    assert np.array_equal(flatten(model), other)
    assert not torch.equal(model(ids(1, 8)), first)
    load_vector(model, vector)
    assert torch.equal(model(ids(1, 8)), first)


def test_a_vector_of_another_length_is_refused(model: BitNetForCausalLM) -> None:
    with pytest.raises(LayoutMismatch):
        load_vector(model, np.zeros(10, dtype=np.float32))


def test_squared_relu_is_an_option() -> None:
    model = BitNetForCausalLM(CONFIG.model_copy(update={"hidden_act": "relu2"}))
    model.reset_parameters(seed=1)
    hidden = model(ids(2, 5))
    hidden.sum().backward()
    assert torch.isfinite(hidden).all()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())

"""Gradients of every block against float64 finite differences of the straight-through function.

Rounding has no useful derivative, so the function differentiated here has the codes of the starting point
frozen: a quantised operand is `operand + constant`. Its derivative is what "straight-through" means.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bithaul.model.config import ModelConfig
from bithaul.model.products import StepPath, refusal
from bithaul.model.quantize import quantize_activation, quantize_weight
from bithaul.model.segments import Segments
from bithaul.model.transformer import BitNetForCausalLM

CONFIG = ModelConfig(
    vocab_size=12, hidden_size=8, intermediate_size=10, num_layers=2, num_heads=2, context_length=8
)
LENGTHS = torch.tensor([4, 2])
STEP = 1e-6


class Reference:
    """The model in float64 with frozen quantisation offsets, written from the formulas, token by token."""

    def __init__(self, parameters: dict[str, Tensor]) -> None:
        self._offsets: dict[str, Tensor] = {}
        self._parameters = parameters

    def _bit_linear(self, name: str, x: Tensor) -> Tensor:
        weight = self._parameters[name + ".weight"]
        if name not in self._offsets:
            codes, scale = quantize_activation(x.float())
            ternary, gain = quantize_weight(weight.float())
            self._offsets[name] = codes.double() / scale.double() - x
            self._offsets[name + ".weight"] = ternary.double() * gain.double() - weight
        return (x + self._offsets[name]) @ (weight + self._offsets[name + ".weight"]).t()

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return (
            x
            / (x.pow(2).mean(-1, keepdim=True) + CONFIG.rms_norm_eps).sqrt()
            * self._parameters[name + ".weight"]
        )

    def __call__(self, ids: Tensor) -> Tensor:
        x = self._parameters["model.embed_tokens.weight"][ids]
        for i in range(CONFIG.num_layers):
            p = f"model.layers.{i}."
            n = self._norm(p + "input_layernorm", x)
            q, k, v = (self._bit_linear(p + f"self_attn.{c}_proj", n) for c in "qkv")
            n = self._norm(p + "self_attn.attn_sub_norm", attention(q, k, v))
            x = x + self._bit_linear(p + "self_attn.o_proj", n)
            n = self._norm(p + "post_attention_layernorm", x)
            gate, up = self._bit_linear(p + "mlp.gate_proj", n), self._bit_linear(p + "mlp.up_proj", n)
            h = self._norm(p + "mlp.ffn_sub_norm", gate * torch.sigmoid(gate) * up)
            x = x + self._bit_linear(p + "mlp.down_proj", h)
        return self._norm("model.norm", x)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out, start, d = torch.empty_like(q), 0, CONFIG.head_dim
    for length in LENGTHS.tolist():
        rows = slice(start, start + length)
        for head in range(CONFIG.num_heads):
            columns = slice(head * d, (head + 1) * d)
            qh, kh = rotated(q[rows, columns]), rotated(k[rows, columns])
            scores = qh @ kh.t() / math.sqrt(d)
            hidden = torch.ones(length, length).triu(1).bool()
            out[rows, columns] = scores.masked_fill(hidden, -math.inf).softmax(-1) @ v[rows, columns]
        start += length
    return out


def rotated(x: Tensor) -> Tensor:
    half = x.shape[1] // 2
    angle = torch.arange(len(x)).double()[:, None] * 10_000.0 ** (-torch.arange(half).double() / half)
    a, b = x[:, :half], x[:, half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=1)


def finite_differences(function: Callable[[], Tensor], parameter: Tensor) -> Tensor:
    gradient, flat = torch.empty_like(parameter), parameter.view(-1)
    for i in range(flat.numel()):
        value = flat[i].item()
        flat[i] = value + STEP
        above = function()
        flat[i] = value - STEP
        gradient.view(-1)[i] = (above - function()) / (2 * STEP)
        flat[i] = value
    return gradient


@pytest.fixture(scope="module")
def problem() -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Weights, ids, the direction that makes a scalar of the output, the output, and the true gradients."""
    generator = torch.Generator().manual_seed(5)
    model = BitNetForCausalLM(CONFIG)
    model.reset_parameters(seed=3)
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    for value in weights.values():  # gains away from 1, and activations with a radial part (pitfall T6)
        if value.dim() == 1:
            value.mul_(1 + 0.3 * torch.randn(value.shape, generator=generator))
        else:
            value.mul_(10)
    ids = torch.randint(0, CONFIG.vocab_size, (int(LENGTHS.sum()),), generator=generator)
    direction = torch.randn(len(ids), CONFIG.hidden_size, generator=generator).double()
    parameters = {n: p.double() for n, p in weights.items()}
    reference = Reference(parameters)
    with torch.no_grad():
        output = reference(ids)
        truth = {
            n: finite_differences(lambda: (reference(ids) * direction).sum(), p)
            for n, p in parameters.items()
            if "layers.1" not in n or "down_proj" in n
        }
    return weights, ids, direction, output, truth


@pytest.mark.parametrize("path", ["plain", "fp32+fp32", "int_mm+fp32", "int_mm+bf16", "tiles+int16"])
def test_gradients_of_every_block(
    problem: tuple[dict[str, Tensor], Tensor, Tensor, Tensor, dict[str, Tensor]], path: str
) -> None:
    """Catches norm and block differentiated in the wrong order, a missing scale, a lost mask or rotation."""
    weights, ids, direction, output, truth = problem
    forward, _, backward = path.partition("+")
    if path != "plain" and (reason := refusal(forward)) is not None:
        pytest.skip(f"{forward} is {reason} here")
    step = StepPath("fp32" if path == "plain" else forward, backward or "fp32", "test")
    model = BitNetForCausalLM(CONFIG, path=step, plain=path == "plain")
    model.load_state_dict(weights)
    hidden = model.packed(ids, Segments.of_lengths(LENGTHS))
    torch.testing.assert_close(hidden.detach().double(), output, rtol=1e-4, atol=1e-4)
    (hidden * direction.float()).sum().backward()
    for name, expected in truth.items():
        found = model.get_parameter(name).grad
        assert found is not None, name
        cosine = torch.cosine_similarity(found.double().flatten(), expected.flatten(), dim=0).item()
        ratio = (found.double().norm() / expected.norm()).item()
        assert cosine > 0.999, (name, cosine)
        assert ratio == pytest.approx(1.0, abs=1e-2 if backward == "bf16" else 1e-4), (name, ratio)

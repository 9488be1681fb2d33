"""The decoder: BitNet b1.58, lineage C (`bitnet` in transformers), with SiLU and tied embeddings.

    n = rms(x; input_layernorm)             q, k, v = BitLinear(n)      rotate q and k
    x = x + BitLinear_o(rms(attention(q, k, v); attn_sub_norm))
    n = rms(x; post_attention_layernorm)
    x = x + BitLinear_down(rms(silu(BitLinear_gate(n)) * BitLinear_up(n); ffn_sub_norm))
    logits = rms(x; norm) E^t               E is the token embedding

Inside, tokens are a flat list [N, H]; attention alone sees examples (`segments`). Parameters carry the
Hugging Face names in the order of `layout_of`. `plain=True` computes the same from the definitions in
`bitlinear`, in fp32 and unfused: the reference that the fast step is measured and tested against. CPU only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bithaul.errors import InvalidInput
from bithaul.model.bitlinear import BitLinear, CodeCache
from bithaul.model.cache import KVCache
from bithaul.model.config import ModelConfig
from bithaul.model.fused import norm_linear, rms_norm, rotary, silu_gate
from bithaul.model.init import initial_vector
from bithaul.model.layout import layout_of
from bithaul.model.products import StepPath, default_path
from bithaul.model.segments import Segments


class RMSNorm(nn.Module):
    def __init__(self, size: int, *, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


@dataclass
class Compute:
    """How all blocks of one model compute; shared, so that it can be changed in one place."""

    path: StepPath
    plain: bool


@dataclass(frozen=True)
class Sight:
    """Which tokens see which: rotary angles of all N tokens, and either segments or a cache."""

    cos: Tensor  # [N, 1, head_dim / 2]
    sin: Tensor
    segments: Segments
    cache: KVCache | None
    cache_positions: Tensor | None  # int64 [B, T]


class NormedProjection:
    """A norm and the BitLinears that read its output, computed together. Owns the cached codes."""

    def __init__(self, norm: RMSNorm, layers: tuple[BitLinear, ...], compute: Compute) -> None:
        self._norm, self._layers, self._compute = norm, layers, compute
        self._cache = CodeCache(*(layer.weight for layer in layers))

    def __call__(self, x: Tensor) -> Tensor:
        """x [N, K] to the outputs of all layers side by side, [N, sum of outputs]."""
        if self._compute.plain or not self._layers[0].ternary:
            normed = self._norm(x)
            return torch.cat([layer(normed) for layer in self._layers], dim=-1)
        weights = tuple(layer.weight for layer in self._layers)
        return norm_linear(
            x,
            self._norm.weight,
            weights,
            eps=self._norm.eps,
            path=self._compute.path,
            ternary=self._cache.codes(self._compute.path),
        )


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        h, ternary = config.hidden_size, config.ternary
        self.heads, self.head_dim, self.layer = config.num_heads, config.head_dim, layer
        self.q_proj = BitLinear(h, h, ternary=ternary)
        self.k_proj = BitLinear(h, h, ternary=ternary)
        self.v_proj = BitLinear(h, h, ternary=ternary)
        self.attn_sub_norm = RMSNorm(h, eps=config.rms_norm_eps)
        self.o_proj = BitLinear(h, h, ternary=ternary)

    def forward(self, qkv: Tensor, sight: Sight) -> Tensor:
        """[N, 3H] to the mixed values [N, H], before `attn_sub_norm`."""
        hidden = self.heads * self.head_dim
        qk, value = torch.split_with_sizes(qkv, [2 * hidden, hidden], dim=-1)
        qk = rotary(qk.reshape(-1, 2 * self.heads, self.head_dim), sight.cos, sight.sin)
        segments = sight.segments
        rectangle = segments.spread(qk).reshape(
            segments.count, segments.longest, 2, self.heads, self.head_dim
        )
        q, k = (part.transpose(1, 2) for part in rectangle.unbind(2))
        v = segments.spread(value).reshape(segments.count, segments.longest, self.heads, self.head_dim)
        v = v.transpose(1, 2)
        if sight.cache is None or sight.cache_positions is None:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            keys, values = sight.cache.write(self.layer, sight.cache_positions, k, v)
            visible = torch.arange(keys.shape[2]) <= sight.cache_positions[:, None, :, None]
            mixed = F.scaled_dot_product_attention(q, keys, values, attn_mask=visible)
        return segments.collect(mixed.transpose(1, 2)).reshape(-1, hidden)


class FeedForward(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        h, f, ternary = config.hidden_size, config.intermediate_size, config.ternary
        self.squared_relu = config.hidden_act == "relu2"
        self.gate_proj = BitLinear(h, f, ternary=ternary)
        self.up_proj = BitLinear(h, f, ternary=ternary)
        self.ffn_sub_norm = RMSNorm(f, eps=config.rms_norm_eps)
        self.down_proj = BitLinear(f, h, ternary=ternary)

    def forward(self, gate_up: Tensor) -> Tensor:
        """[N, 2F] to the gated values [N, F], before `ffn_sub_norm`."""
        if self.squared_relu:
            gate, up = gate_up.chunk(2, dim=-1)
            return F.relu(gate).square() * up
        return silu_gate(gate_up)


class Block(nn.Module):
    def __init__(self, config: ModelConfig, layer: int, compute: Compute) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = FeedForward(config)
        attn, mlp = self.self_attn, self.mlp
        self._qkv = NormedProjection(self.input_layernorm, (attn.q_proj, attn.k_proj, attn.v_proj), compute)
        self._out = NormedProjection(attn.attn_sub_norm, (attn.o_proj,), compute)
        self._gate_up = NormedProjection(self.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj), compute)
        self._down = NormedProjection(mlp.ffn_sub_norm, (mlp.down_proj,), compute)

    def forward(self, x: Tensor, sight: Sight) -> Tensor:
        x = x + self._out(self.self_attn(self._qkv(x), sight))
        return x + self._down(self.mlp(self._gate_up(x)))


class Decoder(nn.Module):
    def __init__(self, config: ModelConfig, compute: Compute) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(
            config.vocab_size, config.hidden_size, _weight=_empty_embedding(config)
        )
        self.layers = nn.ModuleList(Block(config, i, compute) for i in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)


class BitNetForCausalLM(nn.Module):
    """`path` chooses the products (None: the first exact one of this machine), `plain` the reference step.

    Parameters are uninitialised until `reset_parameters` or `vector.load_vector`.
    """

    def __init__(self, config: ModelConfig, *, path: StepPath | None = None, plain: bool = False) -> None:
        super().__init__()
        self.config = config
        self.compute = Compute(default_path() if path is None else path, plain)
        self.model = Decoder(config, self.compute)
        self._cos, self._sin = _rotary_tables(config)

    def reset_parameters(self, *, seed: int) -> None:
        """The weights of `init.initial_vector`."""
        parameters = dict(self.named_parameters())
        with torch.no_grad():
            for tensor, view in layout_of(self.config).views(initial_vector(self.config, seed=seed)):
                parameters[tensor.name].copy_(torch.from_numpy(view))

    def forward(
        self,
        input_ids: Tensor,
        *,
        segment_ids: Tensor | None = None,
        positions: Tensor | None = None,
        cache: KVCache | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """Hidden states after the final norm, [B, T, H], for token ids int64 [B, T].

        `segment_ids` [B, T] keeps attention inside runs of equal ids of a row; -1 marks padding, whose hidden
        states are 0. Without it each row is one sequence; padding on the right then needs no mask, because
        attention is causal. `positions` [B, T] replaces the rotary positions, which count from 0 in each
        segment.

        With `cache`, row b continues at `cache.lengths[b]`, and the cache is extended: by T tokens, or by
        `lengths[b]` (int64 [B], at most T) where rows are padded on the right. Prefill is one call with
        the prompts padded on the right and their `lengths`; the next logits of row b are those of
        `hidden[b, lengths[b] - 1]`. Each further call takes [B, 1].

        Raises `InvalidInput` for a sequence longer than the context or the cache.
        """
        batch, width = input_ids.shape
        if cache is not None:
            return self._continue(input_ids, cache, lengths)
        if segment_ids is None:
            segments = Segments.of_lengths(torch.full((batch,), width))
            chosen = segments.positions if positions is None else positions.reshape(-1)
            return self.packed(input_ids.reshape(-1), segments, positions=chosen).reshape(batch, width, -1)
        real = (segment_ids >= 0).reshape(-1)
        row_segments = segment_ids + torch.arange(batch)[:, None] * (segment_ids.max() + 1)
        counts = torch.unique_consecutive(row_segments.reshape(-1)[real], return_counts=True)[1]
        segments = Segments.of_lengths(counts)
        chosen = segments.positions if positions is None else positions.reshape(-1)[real]
        packed = self.packed(input_ids.reshape(-1)[real], segments, positions=chosen)
        hidden = packed.new_zeros((batch * width, packed.shape[1]))
        hidden[real] = packed
        return hidden.reshape(batch, width, -1)

    def packed(
        self,
        input_ids: Tensor,
        segments: Segments,
        *,
        positions: Tensor | None = None,
        dropout: Dropout | None = None,
    ) -> Tensor:
        """Hidden states [N, H] of sequences laid end to end (the training step's form): ids int64 [N]."""
        return self._run(input_ids, self._sight(segments, positions, None, None), dropout)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., H] to [..., V] in fp32: the head is the tied token embedding."""
        return F.linear(hidden, self.model.embed_tokens.weight)

    def _continue(self, input_ids: Tensor, cache: KVCache, lengths: Tensor | None) -> Tensor:
        batch, width = input_ids.shape
        added = torch.full((batch,), width) if lengths is None else lengths
        if batch != cache.batch:
            raise InvalidInput(f"The cache has {cache.batch} rows, the input {batch}.")
        if int((cache.lengths + added).max()) > cache.capacity:
            raise InvalidInput(f"The sequence does not fit: the cache holds {cache.capacity} tokens a row.")
        positions = cache.positions(width).clamp_max(cache.capacity - 1)
        segments = Segments.of_lengths(torch.full((batch,), width))
        hidden = self._run(
            input_ids.reshape(-1), self._sight(segments, positions.reshape(-1), cache, positions), None
        )
        cache.lengths = cache.lengths + added
        return hidden.reshape(batch, width, -1)

    def _sight(
        self,
        segments: Segments,
        positions: Tensor | None,
        cache: KVCache | None,
        cache_positions: Tensor | None,
    ) -> Sight:
        if segments.longest > self.config.context_length:
            raise InvalidInput(
                f"A sequence of {segments.longest} tokens is longer than the context of "
                f"{self.config.context_length}; split or shorten it."
            )
        chosen = segments.positions if positions is None else positions
        return Sight(self._cos[chosen][:, None], self._sin[chosen][:, None], segments, cache, cache_positions)

    def _run(self, input_ids: Tensor, sight: Sight, dropout: Dropout | None) -> Tensor:
        x = self.model.embed_tokens(input_ids)
        if dropout is not None:
            x = dropout(x)
        for layer in self.model.layers:
            x = layer(x, sight)
        hidden: Tensor = self.model.norm(x)
        return hidden if dropout is None else dropout(hidden)


class Dropout:
    """Inverted dropout with its own seed, on the embedding and the last hidden state (training only)."""

    def __init__(self, rate: float, *, seed: int) -> None:
        self._rate = rate
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, x: Tensor) -> Tensor:
        keep = torch.empty_like(x).bernoulli_(1.0 - self._rate, generator=self._generator)
        return x * keep.mul_(1.0 / (1.0 - self._rate))


def _empty_embedding(config: ModelConfig) -> Tensor:
    return torch.empty(config.vocab_size, config.hidden_size)


def _rotary_tables(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """cos and sin, float32 [context, head_dim / 2], computed in float64."""
    half = config.head_dim // 2
    frequencies = config.rope_theta ** (-np.arange(half, dtype=np.float64) / half)
    angles = np.arange(config.context_length, dtype=np.float64)[:, None] * frequencies
    return torch.tensor(np.cos(angles), dtype=torch.float32), torch.tensor(
        np.sin(angles), dtype=torch.float32
    )

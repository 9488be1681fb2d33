"""The decoder: BitNet b1.58, lineage C (`bitnet` in transformers), with SiLU and tied embeddings.

    n = rms(x; input_layernorm)             q, k, v = BitLinear(n)      rotate q and k
    x = x + BitLinear_o(rms(attention(q, k, v); attn_sub_norm))
    n = rms(x; post_attention_layernorm)
    x = x + BitLinear_down(rms(silu(BitLinear_gate(n)) * BitLinear_up(n); ffn_sub_norm))
    logits = rms(x; norm) E^t               E is the token embedding

Inside, tokens are a flat list [N, H]; attention alone sees examples (`segments`). Parameters carry the
Hugging Face names in the order of `layout_of`. `plain=True` computes the same from the definitions in
`bitlinear`, in fp32 and unfused: the reference that the fast step is measured and tested against. On the path
of a device the definition is kept, except that layers with one input are one product (`devicelinear`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bithaul.errors import InvalidInput
from bithaul.model import fused
from bithaul.model.bitlinear import BitLinear, CodeCache
from bithaul.model.cache import KVCache
from bithaul.model.config import ModelConfig
from bithaul.model.device import DevicePath
from bithaul.model.devicelinear import DeviceCodeCache, device_linear
from bithaul.model.fused import Places, rms_norm
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
    ternary: bool

    @property
    def fused(self) -> bool:
        """Whether blocks run in the passes of `fused`, which are the CPU's."""
        return self.ternary and not self.plain and not isinstance(self.path, DevicePath)


class Stacked:
    """Layers that share an input: each by its definition, or all as one product on a device."""

    def __init__(self, compute: Compute, *layers: BitLinear) -> None:
        self._compute, self._layers = compute, layers
        self._cache = DeviceCodeCache()

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        compute = self._compute
        if compute.plain or not compute.ternary or not isinstance(compute.path, DevicePath):
            return tuple(layer(x) for layer in self._layers)
        weights = tuple(layer.weight for layer in self._layers)
        return device_linear(x, weights, path=compute.path, ternary=self._cache.codes(weights))


@dataclass(frozen=True)
class Sight:
    """Which tokens see which: segments and rotary angles of all N tokens, and a cache while decoding."""

    segments: Segments
    cos: Tensor  # [N, head_dim / 2]
    sin: Tensor
    places: Places | None  # for the fused passes
    cache: KVCache | None
    cache_positions: Tensor | None  # int64 [B, T]


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int, compute: Compute) -> None:
        super().__init__()
        h, ternary = config.hidden_size, config.ternary
        self.layer, self.heads = layer, config.num_heads
        self.q_proj = BitLinear(h, h, ternary=ternary)
        self.k_proj = BitLinear(h, h, ternary=ternary)
        self.v_proj = BitLinear(h, h, ternary=ternary)
        self.attn_sub_norm = RMSNorm(h, eps=config.rms_norm_eps)
        self.o_proj = BitLinear(h, h, ternary=ternary)
        self._qkv = Stacked(compute, self.q_proj, self.k_proj, self.v_proj)
        self._out = Stacked(compute, self.o_proj)

    def forward(self, x: Tensor, sight: Sight) -> Tensor:
        """The definition: normed rows [N, H] to the output of `o_proj`."""
        q, k, v = (part.view(len(x), self.heads, -1) for part in self._qkv(x))
        q, k = (rotate(part, sight.cos[:, None], sight.sin[:, None]) for part in (q, k))
        q, k, v = (sight.segments.spread(part).transpose(1, 2) for part in (q, k, v))
        mixed = sight.segments.collect(self.mix(q, k, v, sight).transpose(1, 2)).flatten(1)
        return self._out(self.attn_sub_norm(mixed))[0]

    def mix(self, q: Tensor, k: Tensor, v: Tensor, sight: Sight) -> Tensor:
        """Causal attention of [B, heads, T, head_dim], over the cache too where there is one."""
        if sight.cache is None or sight.cache_positions is None:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        keys, values = sight.cache.write(self.layer, sight.cache_positions, k, v)
        visible = torch.arange(keys.shape[2], device=keys.device) <= sight.cache_positions[:, None, :, None]
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=visible)


class FeedForward(nn.Module):
    def __init__(self, config: ModelConfig, compute: Compute) -> None:
        super().__init__()
        h, f, ternary = config.hidden_size, config.intermediate_size, config.ternary
        self.squared_relu = config.hidden_act == "relu2"
        self.gate_proj = BitLinear(h, f, ternary=ternary)
        self.up_proj = BitLinear(h, f, ternary=ternary)
        self.ffn_sub_norm = RMSNorm(f, eps=config.rms_norm_eps)
        self.down_proj = BitLinear(f, h, ternary=ternary)
        self._gate_up = Stacked(compute, self.gate_proj, self.up_proj)
        self._down = Stacked(compute, self.down_proj)

    def forward(self, x: Tensor) -> Tensor:
        """The definition: normed rows [N, H] to the output of `down_proj`."""
        gate, up = self._gate_up(x)
        gate = F.relu(gate).square() if self.squared_relu else F.silu(gate)
        return self._down(self.ffn_sub_norm(gate * up))[0]


class Block(nn.Module):
    """One layer. `forward` is the definition; `_fast` computes the same in the fused passes of `fused`."""

    def __init__(self, config: ModelConfig, layer: int, compute: Compute) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = Attention(config, layer, compute)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = FeedForward(config, compute)
        self._compute = compute
        attn, mlp = self.self_attn, self.mlp
        self._qkv = CodeCache(attn.q_proj.weight, attn.k_proj.weight, attn.v_proj.weight)
        self._out = CodeCache(attn.o_proj.weight)
        self._gate_up = CodeCache(mlp.gate_proj.weight, mlp.up_proj.weight)
        self._down = CodeCache(mlp.down_proj.weight)

    def forward(self, x: Tensor, sight: Sight) -> Tensor:
        if sight.places is not None:
            return self._fast(x, sight, sight.places)
        x = x + self.self_attn(self.input_layernorm(x), sight)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out

    def prepare(self) -> None:
        """Quantise what changed since the last step; the definition has nothing to prepare."""
        if self._compute.fused:
            for cache in (self._qkv, self._out, self._gate_up, self._down):
                cache.codes(self._compute.path)

    def _fast(self, x: Tensor, sight: Sight, places: Places) -> Tensor:
        attn, mlp, path = self.self_attn, self.mlp, self._compute.path
        eps, gain, qkv = self.input_layernorm.eps, self.input_layernorm.weight, self._qkv.codes(path)
        sub_gain, out = attn.attn_sub_norm.weight, self._out.codes(path)
        if sight.cache is None:
            x = fused.attention(
                x,
                (gain, sub_gain),
                (*self._qkv.weights, attn.o_proj.weight),
                eps=eps,
                qkv=qkv,
                out=out,
                places=places,
            )
        else:
            heads = fused.heads_for_cache(x, gain, eps=eps, ternary=qkv, places=places)
            mixed = attn.mix(*heads, sight).transpose(1, 2).flatten(2).flatten(0, 1)
            x = fused.join(x, mixed, sub_gain, eps=eps, ternary=out)
        return fused.feed_forward(
            x,
            (self.post_attention_layernorm.weight, mlp.ffn_sub_norm.weight),
            (mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight),
            eps=eps,
            squared=mlp.squared_relu,
            gate_up=self._gate_up.codes(path),
            down=self._down.codes(path),
        )


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Half-split rotary positions: the first half of the last dimension against the second."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class Decoder(nn.Module):
    def __init__(self, config: ModelConfig, compute: Compute) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(
            config.vocab_size, config.hidden_size, _weight=_empty_embedding(config)
        )
        self.layers = nn.ModuleList(Block(config, i, compute) for i in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)


class BitNetForCausalLM(nn.Module):
    """`path` chooses the products (None: the CPU's default one), `plain` the reference step.

    Parameters are on the path's device, and so must be the tensors of every call. They are uninitialised
    until `reset_parameters` or `vector.load_vector`.
    """

    _cos: Tensor
    _sin: Tensor

    def __init__(self, config: ModelConfig, *, path: StepPath | None = None, plain: bool = False) -> None:
        super().__init__()
        self.config = config
        self.compute = Compute(default_path() if path is None else path, plain, config.ternary)
        self.model = Decoder(config, self.compute)
        cos, sin = _rotary_tables(config)
        self.register_buffer("_cos", cos, persistent=False)
        self.register_buffer("_sin", sin, persistent=False)
        if isinstance(path, DevicePath):
            self.to(path.device)

    @property
    def device(self) -> torch.device:
        return self.model.embed_tokens.weight.device

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
            segments = Segments.of_lengths(torch.full((batch,), width)).to(self.device)
            chosen = segments.positions if positions is None else positions.reshape(-1)
            return self.packed(input_ids.reshape(-1), segments, positions=chosen).reshape(batch, width, -1)
        real = (segment_ids >= 0).reshape(-1)
        if not real.any():
            raise InvalidInput("There is only padding; give at least one token.")
        numbers = torch.arange(batch, device=segment_ids.device)[:, None]
        row_segments = segment_ids + numbers * (segment_ids.max() + 1)
        runs = row_segments.reshape(-1).masked_fill(~real, -1)
        values, counts = torch.unique_consecutive(runs, return_counts=True)
        segments = Segments.of_lengths(counts[values >= 0].cpu()).to(self.device)
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

    def preparations(self) -> list[Callable[[], None]]:
        """One for each layer, in any order or at once: they quantise whatever changed since the last step."""
        return [cast(Block, layer).prepare for layer in self.model.layers]

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., H] to [..., V] in fp32: the head is the tied token embedding."""
        return F.linear(hidden, self.model.embed_tokens.weight)

    def _continue(self, input_ids: Tensor, cache: KVCache, lengths: Tensor | None) -> Tensor:
        batch, width = input_ids.shape
        added = torch.full_like(cache.lengths, width) if lengths is None else lengths
        if batch != cache.batch:
            raise InvalidInput(f"The cache has {cache.batch} rows, the input {batch}.")
        if int((cache.lengths + added).max()) > cache.capacity:
            raise InvalidInput(f"The sequence does not fit: the cache holds {cache.capacity} tokens a row.")
        positions = cache.positions(width).clamp_max(cache.capacity - 1)
        segments = Segments.of_lengths(torch.full((batch,), width)).to(self.device)
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
        config, cos, sin = self.config, self._cos[chosen], self._sin[chosen]
        fused = self.compute.fused
        places = Places(segments, config.num_heads, config.head_dim, cos, sin) if fused else None
        return Sight(segments, cos, sin, places, cache, cache_positions)

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

    def __init__(self, rate: float, *, seed: int, device: torch.device | None = None) -> None:
        self._rate = rate
        self._generator = torch.Generator(device or "cpu").manual_seed(seed)

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

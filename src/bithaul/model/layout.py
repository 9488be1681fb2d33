"""The flat parameter vector: which tensor lies where, under the Hugging Face tensor names.

Derived from the config alone, so the coordinator needs no torch to know it. A test holds it equal to the
module's own named parameters. Coordinator and worker compare `hash`, never only the length.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from bithaul.errors import LayoutMismatch
from bithaul.model.config import ModelConfig

FloatVector = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TensorSpec:
    """One tensor in the flat vector; `offset` and `size` count values, not bytes."""

    name: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """Ordered, gap-free list of tensors."""

    tensors: tuple[TensorSpec, ...]

    @cached_property
    def size(self) -> int:
        """Number of float32 values in the vector."""
        return sum(t.size for t in self.tensors)

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) over names, shapes and offsets."""
        text = json.dumps([[t.name, list(t.shape), t.offset] for t in self.tensors], separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def views(self, vector: FloatVector) -> Iterator[tuple[TensorSpec, FloatVector]]:
        """Each tensor as a shaped view into `vector` (float32, shape [size]); no copy."""
        if vector.shape != (self.size,):
            raise LayoutMismatch(f"The vector has {vector.shape} values, the layout {self.size}.")
        for tensor in self.tensors:
            yield tensor, vector[tensor.offset : tensor.offset + tensor.size].reshape(tensor.shape)


PROJECTIONS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


@lru_cache(maxsize=16)  # a coordinator asks at every claim
def layout_of(config: ModelConfig) -> Layout:
    """The layout of `config`, in the order in which the transformer registers its parameters."""
    h, f = config.hidden_size, config.intermediate_size
    names: list[tuple[str, tuple[int, ...]]] = [("model.embed_tokens.weight", (config.vocab_size, h))]
    for i in range(config.num_layers):
        p = f"model.layers.{i}."
        names += [
            (p + "input_layernorm.weight", (h,)),
            (p + "self_attn.q_proj.weight", (h, h)),
            (p + "self_attn.k_proj.weight", (h, h)),
            (p + "self_attn.v_proj.weight", (h, h)),
            (p + "self_attn.attn_sub_norm.weight", (h,)),
            (p + "self_attn.o_proj.weight", (h, h)),
            (p + "post_attention_layernorm.weight", (h,)),
            (p + "mlp.gate_proj.weight", (f, h)),
            (p + "mlp.up_proj.weight", (f, h)),
            (p + "mlp.ffn_sub_norm.weight", (f,)),
            (p + "mlp.down_proj.weight", (h, f)),
        ]
    names.append(("model.norm.weight", (h,)))
    tensors, offset = [], 0
    for name, shape in names:
        tensors.append(TensorSpec(name, shape, offset))
        offset += math.prod(shape)
    return Layout(tuple(tensors))

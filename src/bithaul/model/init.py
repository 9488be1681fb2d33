"""The first weights of a run: a pure numpy function of config and seed.

Latent matrices and the embedding are normal with std 0.02, output projections (`o_proj`, `down_proj`) with
0.02 / sqrt(2 * layers), gains are 1. No torch, so the coordinator can write version 1 without it.
"""

from __future__ import annotations

import math

import numpy as np

from bithaul.model.config import ModelConfig
from bithaul.model.layout import FloatVector, layout_of

STD = 0.02
_OUTPUT_PROJECTIONS = (".o_proj.weight", ".down_proj.weight")


def initial_vector(config: ModelConfig, *, seed: int) -> FloatVector:
    """float32 [P]; the same bytes for the same config and seed on every machine."""
    layout = layout_of(config)
    vector = np.ones(layout.size, dtype=np.float32)
    random = np.random.default_rng(seed)
    for tensor, view in layout.views(vector):
        if len(tensor.shape) == 1:
            continue
        narrow = tensor.name.endswith(_OUTPUT_PROJECTIONS)
        std = STD / math.sqrt(2 * config.num_layers) if narrow else STD
        view[...] = random.standard_normal(tensor.shape, dtype=np.float32) * np.float32(std)
    return vector

"""Between a model and its flat vector: what travels, is merged and is saved.

Both directions are bit-exact, follow `layout_of(config)` and cross to the device of the parameters. Loading
copies into the parameters, which advances their version counters, so cached ternary codes are dropped.
"""

from __future__ import annotations

import numpy as np
import torch

from bithaul.model.layout import FloatVector, layout_of
from bithaul.model.transformer import BitNetForCausalLM


def flatten(model: BitNetForCausalLM) -> FloatVector:
    """A copy of all latent weights, float32 [P]."""
    layout = layout_of(model.config)
    vector = np.empty(layout.size, dtype=np.float32)
    parameters = dict(model.named_parameters())
    for tensor, view in layout.views(vector):
        view[...] = parameters[tensor.name].detach().cpu().numpy()
    return vector


@torch.no_grad()
def load_vector(model: BitNetForCausalLM, vector: FloatVector) -> None:
    """Set all latent weights. Raises `LayoutMismatch` for a vector of another length."""
    parameters = dict(model.named_parameters())
    for tensor, view in layout_of(model.config).views(vector):
        source = view if view.flags.writeable else view.copy()  # torch warns about read-only memory
        parameters[tensor.name].copy_(torch.from_numpy(source))

"""Keys and values of tokens already seen, for decoding one token at a time.

Rows of a batch may have different lengths and need no padding on the left: each row writes at its own length
and sees only its own past. A prompt batch is padded on the right; the padding's entries are overwritten by
the tokens that come next, before anything can attend to them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bithaul.errors import InvalidInput
from bithaul.model.config import ModelConfig


class KVCache:
    """Room for `capacity` tokens in each of `batch` rows.

    `lengths` (int64 [batch]) counts the tokens each row holds; assign smaller values to rewind. `device` is
    that of the model (None: the CPU).
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        batch: int,
        capacity: int | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.capacity = config.context_length if capacity is None else capacity
        if not 1 <= self.capacity <= config.context_length:
            raise InvalidInput(
                f"A cache holds 1 to {config.context_length} tokens (the context), not {self.capacity}."
            )
        shape = (batch, config.num_heads, self.capacity, config.head_dim)
        self.keys = [torch.zeros(shape, device=device) for _ in range(config.num_layers)]
        self.values = [torch.zeros(shape, device=device) for _ in range(config.num_layers)]
        self.lengths = torch.zeros(batch, dtype=torch.int64, device=device)

    @property
    def batch(self) -> int:
        return int(self.lengths.shape[0])

    def positions(self, count: int) -> Tensor:
        """int64 [batch, count]: where the next `count` tokens of each row go."""
        return self.lengths[:, None] + torch.arange(count, device=self.lengths.device)

    def write(self, layer: int, positions: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store [batch, heads, T, head_dim] at `positions` [batch, T]; returns keys and values so far.

        Positions beyond the capacity are an error, except padding, which the caller clamps.
        """
        rows = torch.arange(self.batch, device=positions.device)[:, None]
        self.keys[layer][rows, :, positions] = key.transpose(1, 2)
        self.values[layer][rows, :, positions] = value.transpose(1, 2)
        seen = int(positions.max()) + 1
        return self.keys[layer][:, :, :seen], self.values[layer][:, :, :seen]

    def select(self, rows: Tensor) -> KVCache:
        """A new cache of the chosen rows (int64), in that order; a row may be chosen more than once."""
        chosen = object.__new__(KVCache)
        chosen.capacity = self.capacity
        chosen.keys = [keys.index_select(0, rows) for keys in self.keys]
        chosen.values = [values.index_select(0, rows) for values in self.values]
        chosen.lengths = self.lengths.index_select(0, rows)
        return chosen

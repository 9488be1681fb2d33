"""What a model is: its dimensions, checked on load, and the three presets.

Pure data, no torch. A preset needs the vocabulary size of the run's tokenizer; everything else is fixed.
Any other model is a TOML file with the same keys. An unknown name is an error, never a fallback.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bithaul.errors import InvalidConfig, UnknownName

GGUF_BLOCK = 256


class ModelConfig(BaseModel):
    """Dimensions of one BitNet b1.58 decoder (lineage C, see docs/explanation/model.md).

    `ternary=False` makes the fp32 twin: the same modules with both quantisers off.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(default="custom", pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    vocab_size: int = Field(ge=8, le=1_000_000)
    hidden_size: int = Field(ge=8, le=16_384)
    intermediate_size: int = Field(ge=8, le=65_536)
    num_layers: int = Field(ge=1, le=128)
    num_heads: int = Field(ge=1, le=256)
    context_length: int = Field(ge=8, le=8_192)
    hidden_act: Literal["silu", "relu2"] = "silu"
    rope_theta: float = Field(default=10_000.0, gt=0)
    rms_norm_eps: float = Field(default=1e-5, gt=0)
    ternary: bool = True

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @model_validator(mode="after")
    def _divisible(self) -> ModelConfig:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} must be divisible by num_heads {self.num_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head dimension {self.head_dim} must be even for rotary positions")
        return self

    def warnings(self) -> list[str]:
        """Sentences about dimensions that work here but not in every export format."""
        return [
            f"{name} {size} is not a multiple of {GGUF_BLOCK}: GGUF ternary types will not be available"
            for name, size in (
                ("hidden_size", self.hidden_size),
                ("intermediate_size", self.intermediate_size),
            )
            if size % GGUF_BLOCK
        ]


def _preset(hidden: int, ffn: int, heads: int, layers: int, context: int) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_heads": heads,
        "num_layers": layers,
        "context_length": context,
    }


PRESETS: dict[str, dict[str, int]] = {
    "small": _preset(256, 1024, 8, 5, 128),
    "medium": _preset(512, 2048, 16, 13, 128),
    "large": _preset(768, 3072, 12, 12, 256),
}


def load_config(name_or_path: str, *, vocab_size: int, ternary: bool = True) -> ModelConfig:
    """The config of a preset (`small`) or of a TOML file (`my.toml`, may set its own `vocab_size`).

    Raises `UnknownName` for a name that is neither, `InvalidConfig` for a file that does not validate.
    """
    values: dict[str, Any]
    if name_or_path in PRESETS:
        values = {"name": name_or_path, **PRESETS[name_or_path]}
    elif name_or_path.endswith(".toml"):
        path = Path(name_or_path)
        if not path.is_file():
            raise InvalidConfig(
                f"There is no model file {path}; name an existing TOML file or one of {_known()}."
            )
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InvalidConfig(f"{path} is not valid TOML: {error}.") from error
    else:
        raise UnknownName(
            f"There is no preset {name_or_path!r}; the presets are {_known()}, or name a .toml file."
        )
    try:
        return ModelConfig(**{"vocab_size": vocab_size, "ternary": ternary, **values})
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'model'}: {e['msg']}" for e in error.errors())
        raise InvalidConfig(f"{name_or_path} does not describe a valid model: {problems}.") from error


def _known() -> str:
    return ", ".join(PRESETS)

"""`bithaul model show P [--vocab N] [--json]`: what a preset, a TOML file, a run or a checkpoint is.

Presets and TOML files are shown without loading torch or any weights. `app` is mounted as the verb `model`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from bithaul.errors import UnknownName
from bithaul.model.config import PRESETS, ModelConfig, load_config
from bithaul.model.layout import PROJECTIONS, layout_of

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)

_WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Shown:
    """A model's config and, for weights on disk, what their file says about itself."""

    config: ModelConfig
    metadata: dict[str, str] = field(default_factory=dict)


@app.callback()
def _family() -> None:
    """Show presets and model files."""


@app.command()
def show(
    model: Annotated[
        str,
        typer.Argument(metavar="P", help="A preset, a .toml file, a run's folder or a .safetensors file."),
    ],
    vocab: Annotated[
        int, typer.Option("--vocab", min=8, help="Vocabulary of a preset or of a file without one.")
    ] = 5174,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Dimensions, parameter counts and layout hash of a model."""
    record = describe(_find(model, vocab))
    if as_json:
        print(json.dumps(record), flush=True)
        return
    for key, value in record.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v}" for k, v in value.items())
        elif isinstance(value, list):
            value = "; ".join(value)
        print(f"{key:22} {f'{value:,}' if isinstance(value, int) and not isinstance(value, bool) else value}")


def describe(shown: Shown) -> dict[str, object]:
    """The stable keys of `model show --json`. Counts are values, not bytes."""
    config = shown.config
    layout = layout_of(config)
    projections = tuple(f".{name}.weight" for name in PROJECTIONS)
    ternary = sum(t.size for t in layout.tensors if t.name.endswith(projections)) if config.ternary else 0
    record: dict[str, object] = {
        "name": config.name,
        "parameters": layout.size,
        "ternary_parameters": ternary,
        "ternary_share": round(ternary / layout.size, 4),
        "embedding_parameters": config.vocab_size * config.hidden_size,
        "layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "heads": config.num_heads,
        "head_dim": config.head_dim,
        "hidden_act": config.hidden_act,
        "context_length": config.context_length,
        "vocab_size": config.vocab_size,
        "ternary": config.ternary,
        "layout_hash": layout.hash,
        "warnings": config.warnings(),
    }
    return record | ({"metadata": shown.metadata} if shown.metadata else {})


def _find(name: str, vocab: int) -> Shown:
    if name in PRESETS or name.endswith(".toml"):
        return Shown(load_config(name, vocab_size=vocab))
    path = Path(name)
    if not (path.exists() or path.suffix == ".safetensors"):
        raise UnknownName(
            f"There is no model {name!r}; the presets are {', '.join(PRESETS)}, "
            "or name a .toml file, the folder of a run or a .safetensors file."
        )
    from bithaul.model.checkpoint import load_checkpoint

    if path.is_dir():
        path = next(
            (f / _WEIGHTS for f in (path / "model", path) if (f / _WEIGHTS).is_file()), path / _WEIGHTS
        )
    checkpoint = load_checkpoint(path)
    return Shown(checkpoint.config, checkpoint.metadata)

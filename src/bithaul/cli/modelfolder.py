"""The model behind `--dir`: what the run has published, or its newest version when that is nothing yet."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from bithaul.inference.loader import LoadedModel, load_model


def open_model(directory: Path, *, threads: int | None) -> LoadedModel:
    """Load the model of a run folder, publishing it first for a run that was stopped before it could.

    `threads` caps the threads of this process. Raises what `load_model` raises.
    """
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    folders = (directory, directory / "model")
    if any((directory / name).is_file() for name in ("coordinator.db", "run.json")) and not any(
        (f / "model.safetensors").is_file() for f in folders
    ):
        _publish(directory)
    return load_model(directory)


def _publish(directory: Path) -> None:
    from bithaul.coordinator.commands.publish_model import publish_model
    from bithaul.coordinator.context import open_coordinator
    from bithaul.coordinator.settings import load_settings

    with closing(open_coordinator(load_settings(directory))) as coordinator:
        publish_model(coordinator, corpus=directory / "corpus", folder=directory / "model")

"""Write the newest weights as a model folder that `classify`, `evaluate` and export can load.

The folder holds a safetensors checkpoint and copies of the run's tokenizer and labels. It is replaced as a
whole by two renames, so a reader sees the old model, for an instant none, then the new one, never a mixture.
A crash between them leaves both beside the name; the next call publishes again.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.queries.blobs import current_version, weights_blob
from bithaul.coordinator.queries.run import current_run
from bithaul.exchange.weights import verify_weights
from bithaul.model.checkpoint import save_checkpoint
from bithaul.model.config import ModelConfig
from bithaul.model.layout import layout_of

MODEL_FILE = "model.safetensors"
COMPANIONS = ("tokenizer.json", "labels.json")


@dataclass(frozen=True)
class PublishedModel:
    folder: Path
    version: int


def publish_model(c: Coordinator, *, corpus: Path, folder: Path) -> PublishedModel:
    """Publish the newest announced version into `folder`. Raises `NotFound` without a run, `CorruptFile`."""
    run = current_run(c)
    current = current_version(c)
    config = ModelConfig.model_validate(run.model)
    layout = layout_of(config)
    blob = weights_blob(c, current.version)
    weights = verify_weights(blob.path, expected_count=layout.size, sha256=blob.sha256)
    aside = folder.with_name(folder.name + ".new")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    save_checkpoint(
        aside / MODEL_FILE,
        weights.vector,
        config,
        metadata={"run": run.run, "version": str(weights.version), "tokenizer_sha256": run.tokenizer_sha256},
    )
    for name in COMPANIONS:
        if (corpus / name).is_file():
            shutil.copyfile(corpus / name, aside / name)
    _replace(aside, folder)
    return PublishedModel(folder, weights.version)


def _replace(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`; what was there is removed once the new one has the name, or comes back."""
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if not folder.exists():
        new.rename(folder)
        return
    folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)

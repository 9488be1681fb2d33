"""A trained model from its folder: weights, tokenizer and labels, checked against each other.

Reads what a run publishes (`RUN/model/`) or any folder with the same three files. It changes nothing on disk
and does not know coordinators or databases.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from bithaul.corpus.labels import LabelSet
from bithaul.corpus.tokenizer import Tokenizer
from bithaul.errors import CorruptFile, LayoutMismatch, NotFound
from bithaul.inference.grammar import LabelGrammar
from bithaul.model.checkpoint import Checkpoint, load_checkpoint
from bithaul.model.config import ModelConfig
from bithaul.model.transformer import BitNetForCausalLM
from bithaul.model.vector import load_vector

WEIGHTS, TOKENIZER, LABELS = "model.safetensors", "tokenizer.json", "labels.json"


@dataclass(frozen=True)
class LoadedModel:
    """A network ready to answer, with the words and labels it speaks."""

    network: BitNetForCausalLM
    tokenizer: Tokenizer
    labels: LabelSet

    @property
    def config(self) -> ModelConfig:
        return self.network.config

    @cached_property
    def grammar(self) -> LabelGrammar:
        """What the model may say. Raises `InvalidInput` for a model of plain text."""
        return LabelGrammar.of(self.tokenizer, self.labels)


def model_folder(directory: Path) -> Path:
    """The folder that holds the weights: `directory/model` of a run, or `directory` itself."""
    for folder in (directory / "model", directory):
        if (folder / WEIGHTS).is_file():
            return folder
    if not directory.is_dir():
        raise NotFound(f"There is no folder {directory}; name the folder of a run.")
    raise NotFound(
        f"{directory} holds no {WEIGHTS}; train first, for example with `bithaul up --dir {directory}`."
    )


def load_model(directory: Path) -> LoadedModel:
    """Load a run's newest published model.

    Raises `NotFound` when a file is missing, `CorruptFile` when one is damaged, `LayoutMismatch` when the
    tokenizer is not the one the weights were trained with.
    """
    folder = model_folder(directory)
    checkpoint = load_checkpoint(folder / WEIGHTS)
    if not (folder / TOKENIZER).is_file():
        raise NotFound(f"{folder} holds no {TOKENIZER}; copy it from the run that trained these weights.")
    tokenizer = Tokenizer.load(folder / TOKENIZER)
    labels_file = folder / LABELS
    labels = (
        LabelSet.load(labels_file) if labels_file.is_file() else LabelSet(intents=[], slots={}, canonical={})
    )
    _require_same_vocabulary(folder, checkpoint, tokenizer)
    return LoadedModel(network_of(checkpoint, folder / WEIGHTS), tokenizer, labels)


def network_of(checkpoint: Checkpoint, origin: Path) -> BitNetForCausalLM:
    """The network of a checkpoint; `origin` is named when its values are not finite."""
    if not np.isfinite(checkpoint.vector).all():
        raise CorruptFile(f"{origin} holds values that are not finite; go back to an earlier version.")
    network = BitNetForCausalLM(checkpoint.config)
    load_vector(network, checkpoint.vector)
    return network.eval().requires_grad_(False)


def _require_same_vocabulary(folder: Path, checkpoint: Checkpoint, tokenizer: Tokenizer) -> None:
    expected = checkpoint.metadata.get("tokenizer_sha256")
    if expected is not None and expected != tokenizer.sha256:
        raise LayoutMismatch(
            f"{folder / TOKENIZER} is not the tokenizer of these weights; copy the run's own one."
        )
    if tokenizer.vocab_size > checkpoint.config.vocab_size:
        raise LayoutMismatch(
            f"{folder / TOKENIZER} has {tokenizer.vocab_size} words, the weights only "
            f"{checkpoint.config.vocab_size}; copy the run's own tokenizer."
        )

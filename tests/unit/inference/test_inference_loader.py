"""Loading a model folder: the right files, and one clear sentence for each wrong one."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from bithaul.corpus.tokenizer import Tokenizer
from bithaul.errors import CorruptFile, InvalidInput, LayoutMismatch, NotFound
from bithaul.inference.loader import load_model
from bithaul.model.checkpoint import load_checkpoint, save_checkpoint
from bithaul.model.vector import flatten


@pytest.fixture
def run(tmp_path: Path, random_dir: Path) -> Path:
    """A copy of a run folder to spoil."""
    shutil.copytree(random_dir, tmp_path / "run")
    return tmp_path / "run"


def test_run_folder_and_model_folder_give_the_same_weights(random_dir: Path) -> None:
    saved = load_checkpoint(random_dir / "model" / "model.safetensors").vector
    for folder in (random_dir, random_dir / "model"):
        assert flatten(load_model(folder).network).tobytes() == saved.tobytes()


def test_missing_things_are_named(run: Path) -> None:
    with pytest.raises(NotFound, match="no folder"):
        load_model(run / "elsewhere")
    (run / "empty").mkdir()
    with pytest.raises(NotFound, match="train first"):
        load_model(run / "empty")
    (run / "model" / "tokenizer.json").unlink()
    with pytest.raises(NotFound, match=r"tokenizer\.json"):
        load_model(run)


def test_a_truncated_weight_file_is_corrupt(run: Path) -> None:
    weights = run / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CorruptFile, match="damaged"):
        load_model(run)


def test_weights_that_are_not_finite_are_refused(run: Path) -> None:
    """A model of NaN would answer every request with the first intent."""
    weights = run / "model" / "model.safetensors"
    checkpoint = load_checkpoint(weights)
    vector = checkpoint.vector.copy()
    vector[17] = np.nan
    save_checkpoint(weights, vector, checkpoint.config, metadata=checkpoint.metadata)
    with pytest.raises(CorruptFile, match="not finite"):
        load_model(run)


def test_a_foreign_tokenizer_is_refused(run: Path) -> None:
    """Another vocabulary of the same size would answer nonsense without any error."""
    file = run / "model" / "tokenizer.json"
    file.write_text(file.read_text(encoding="utf-8").replace("dallas", "dollar"), encoding="utf-8")
    Tokenizer.load(file)
    with pytest.raises(LayoutMismatch, match="not the tokenizer of these weights"):
        load_model(run)


def test_a_vocabulary_larger_than_the_model_is_refused(run: Path) -> None:
    weights = run / "model" / "model.safetensors"
    checkpoint = load_checkpoint(weights)
    smaller = checkpoint.config.model_copy(update={"vocab_size": checkpoint.config.vocab_size - 1})
    vector = checkpoint.vector[smaller.hidden_size :]
    save_checkpoint(weights, vector, smaller, metadata={})
    with pytest.raises(LayoutMismatch, match="words"):
        load_model(run)


def test_a_text_model_loads_and_says_that_it_has_no_intents(run: Path) -> None:
    (run / "model" / "labels.json").unlink()
    model = load_model(run)
    with pytest.raises(InvalidInput, match="plain text"):
        _ = model.grammar

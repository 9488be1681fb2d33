"""Initial weights and checkpoints: equal bytes for equal input, and nothing lost on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bithaul.errors import CorruptFile, LayoutMismatch, NotFound
from bithaul.model.checkpoint import load_checkpoint, save_checkpoint
from bithaul.model.config import ModelConfig
from bithaul.model.init import initial_vector
from bithaul.model.layout import layout_of

CONFIG = ModelConfig(
    vocab_size=40, hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2, context_length=16
)


def test_initial_weights_have_the_documented_spread() -> None:
    config = ModelConfig(
        vocab_size=500, hidden_size=128, intermediate_size=256, num_layers=8, num_heads=4, context_length=16
    )
    vector = initial_vector(config, seed=1)
    for tensor, view in layout_of(config).views(vector):
        if "norm" in tensor.name:
            assert (view == 1).all(), tensor.name
        else:
            expected = 0.02 / 4 if "o_proj" in tensor.name or "down_proj" in tensor.name else 0.02
            assert view.std() == pytest.approx(expected, rel=0.05), tensor.name
    assert np.array_equal(vector, initial_vector(config, seed=1))
    assert not np.array_equal(vector, initial_vector(config, seed=2))


def test_saving_and_loading_twice_changes_no_bit(tmp_path: Path) -> None:
    """Catches a scale recomputed on save (pitfall T4): each round trip would shrink the weights."""
    path = tmp_path / "model.safetensors"
    vector = initial_vector(CONFIG, seed=3)
    vector[:3] = [np.float32(1e-40), -0.0, np.float32(3e38)]
    metadata = {"version": "17"}
    save_checkpoint(path, vector, CONFIG, metadata=metadata)
    first = path.read_bytes()
    for _ in range(2):
        loaded = load_checkpoint(path)
        assert loaded.config == CONFIG
        assert loaded.metadata == metadata
        assert loaded.vector.tobytes() == vector.tobytes()
        save_checkpoint(path, loaded.vector, loaded.config, metadata=loaded.metadata)
        assert load_checkpoint(path).vector.tobytes() == vector.tobytes()
        assert len(path.read_bytes()) == len(first)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_names_are_those_of_hugging_face(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, initial_vector(CONFIG, seed=0), CONFIG, metadata={})
    tensors = load_file(path)
    assert tensors["model.layers.1.mlp.down_proj.weight"].shape == (16, 32)
    assert "lm_head.weight" not in tensors


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(NotFound):
        load_checkpoint(path)
    save_checkpoint(path, initial_vector(CONFIG, seed=0), CONFIG, metadata={})
    whole = path.read_bytes()
    path.write_bytes(whole[:-7] + bytes([whole[-7] ^ 1]) + whole[-6:])
    with pytest.raises(CorruptFile, match="not those that were saved"):
        load_checkpoint(path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptFile, match="damaged"):
        load_checkpoint(path)
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(CorruptFile):
        load_checkpoint(path)
    save_file({"a": np.zeros(3, dtype=np.float32)}, path)
    with pytest.raises(CorruptFile, match="no bithaul config"):
        load_checkpoint(path)
    save_file(
        {"a": np.zeros(3, dtype=np.float32)}, path, metadata={"bithaul.config": CONFIG.model_dump_json()}
    )
    with pytest.raises(LayoutMismatch):
        load_checkpoint(path)
    with pytest.raises(LayoutMismatch):
        save_checkpoint(path, np.zeros(5, dtype=np.float32), CONFIG, metadata={})

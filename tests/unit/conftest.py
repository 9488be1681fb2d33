"""Tiny models for the unit tests: one with random weights, one that has learnt twenty requests by heart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bithaul.corpus.example import Example
from bithaul.corpus.labels import LabelSet
from bithaul.corpus.tokenizer import Tokenizer
from bithaul.inference.loader import LoadedModel, load_model
from bithaul.model.checkpoint import load_checkpoint, save_checkpoint
from bithaul.model.config import ModelConfig
from bithaul.model.init import initial_vector
from bithaul.training.recipe import TrainingRecipe
from bithaul.training.trainer import Trainer

REQUESTS = [
    Example("take me to the flying j in dallas", "navigate", (("chain", "Flying J"), ("city", "Dallas"))),
    Example("take me to the flying j in memphis", "navigate", (("chain", "Flying J"), ("city", "Memphis"))),
    Example("take me to the petro in dallas", "navigate", (("chain", "Petro"), ("city", "Dallas"))),
    Example("take me to the petro in memphis", "navigate", (("chain", "Petro"), ("city", "Memphis"))),
    Example("take me to dallas", "navigate", (("city", "Dallas"),)),
    Example("take me to memphis", "navigate", (("city", "Memphis"),)),
    # RARE words are unknown to the tokenizer, so these teach copying.
    Example("take me to boise", "navigate", (("city", "boise"),)),
    Example("take me to fargo", "navigate", (("city", "fargo"),)),
    Example("take me to the petro in tulsa", "navigate", (("chain", "Petro"), ("city", "tulsa"))),
    Example("take me to the flying j in waco", "navigate", (("chain", "Flying J"), ("city", "waco"))),
    Example("stop in dallas then memphis", "trip", (("stops", ("Dallas", "Memphis")),)),
    Example("stop in memphis then dallas", "trip", (("stops", ("Memphis", "Dallas")),)),
    Example("stop in gary then dallas then memphis", "trip", (("stops", ("gary", "Dallas", "Memphis")),)),
    Example("load number 42 is late", "load", (("load_id", "42"), ("reason", "late"))),
    Example("load number 7 is late", "load", (("load_id", "7"), ("reason", "late"))),
    Example("how many hours do i have left", "hos_status"),
    Example("how many hours are left", "hos_status"),
    Example("do i have hours left", "hos_status"),
    Example("tell me a joke", "out_of_scope"),
    Example("who is the president", "out_of_scope"),
]
RARE = ("boise", "fargo", "tulsa", "waco", "gary")
CONFIG = {"hidden_size": 64, "intermediate_size": 128, "num_layers": 2, "num_heads": 4, "context_length": 64}


def save_model(folder: Path, vector: np.ndarray, config: ModelConfig, tokenizer: Tokenizer) -> Path:
    """A model folder as a run publishes it, knowing the labels of `REQUESTS`."""
    folder.mkdir(parents=True)
    tokenizer.save(folder / "tokenizer.json")
    LabelSet.from_examples(REQUESTS, tokenizer).save(folder / "labels.json")
    metadata = {"tokenizer_sha256": tokenizer.sha256, "version": "3"}
    save_checkpoint(folder / "model.safetensors", vector, config, metadata=metadata)
    return folder


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def requests() -> list[Example]:
    return REQUESTS


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Knows every word of `REQUESTS` but `RARE`."""
    common = [request for request in REQUESTS if not set(RARE) & set(request.text.split())]
    return Tokenizer.train([*common, *common, *common], min_frequency=3)


@pytest.fixture(scope="session")
def config(tokenizer: Tokenizer) -> ModelConfig:
    return ModelConfig(name="tiny", vocab_size=tokenizer.vocab_size, **CONFIG)


@pytest.fixture(scope="session")
def random_dir(tmp_path_factory: pytest.TempPathFactory, config: ModelConfig, tokenizer: Tokenizer) -> Path:
    """A run folder whose model has never learnt anything. This seed opens many slots and lists."""
    run = tmp_path_factory.mktemp("random")
    save_model(run / "model", initial_vector(config, seed=29) * np.float32(20), config, tokenizer)
    return run


@pytest.fixture(scope="session")
def fitted_dir(tmp_path_factory: pytest.TempPathFactory, config: ModelConfig, tokenizer: Tokenizer) -> Path:
    """A run folder whose model knows `REQUESTS` by heart. Its recipe is its own: a preset's may change."""
    recipe = TrainingRecipe(batch_examples=20, betas=(0.9, 0.95))
    trainer = Trainer(config, recipe, label_token=tokenizer.intent, threads=1, path="fp32+fp32")
    trainer.load(initial_vector(config, seed=1))
    rows = [np.array(ids, dtype=np.int32) for ids in tokenizer.encode_many(REQUESTS)]
    trainer.train(rows * 200, progress_start=0.0, progress_end=1.0, seed=0)
    run = tmp_path_factory.mktemp("fitted")
    save_model(run / "model", trainer.vector(), config, tokenizer)
    return run


@pytest.fixture(scope="session")
def random_model(random_dir: Path) -> LoadedModel:
    return load_model(random_dir)


@pytest.fixture(scope="session")
def fitted_model(fitted_dir: Path) -> LoadedModel:
    return load_model(fitted_dir)


@pytest.fixture(scope="session")
def unrounded_model(fitted_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """The weights of the fitted model without quantisers: close sums stay close all the way through."""
    fitted = load_checkpoint(fitted_dir / "model" / "model.safetensors")
    twin = fitted.config.model_copy(update={"ternary": False})
    run = tmp_path_factory.mktemp("unrounded")
    save_model(run / "model", fitted.vector, twin, Tokenizer.load(fitted_dir / "model" / "tokenizer.json"))
    return load_model(run)

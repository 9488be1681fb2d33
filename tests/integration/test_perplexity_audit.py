"""From a text file to an audited model: corpus, training, model folder, and the command itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bithaul.corpus.build import build_corpus
from bithaul.corpus.importers import read_text
from bithaul.corpus.labels import LabelSet
from bithaul.corpus.tokenizer import Tokenizer
from bithaul.model.checkpoint import save_checkpoint
from bithaul.model.config import ModelConfig
from bithaul.model.init import initial_vector
from bithaul.training.recipe import TrainingRecipe
from bithaul.training.trainer import Trainer

CONTEXT = 16


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences of a small grammar with long memory: the last word repeats the first."""
    rng = np.random.default_rng(0)
    names, verbs = ("ann", "bob", "cat", "dan"), ("sees", "hears", "likes")
    lines = []
    for _ in range(400):
        who, verb, whom = rng.choice(names), rng.choice(verbs), rng.choice(names)
        lines.append(f"{who} {verb} {whom} and then that very same {who}")
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def trained(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder as a run publishes it."""
    run = tmp_path_factory.mktemp("run")
    lines = read_text(text)
    build_corpus(run / "corpus", lines, [], max_tokens=CONTEXT + 1, seed=0)
    tokenizer = Tokenizer.load(run / "corpus" / "tokenizer.json")
    stream = np.concatenate(tokenizer.encode_many(lines)).astype(np.int32)
    rows = [stream[i : i + CONTEXT + 1] for i in range(0, len(stream) - CONTEXT, CONTEXT)]
    config = ModelConfig(
        name="tiny",
        vocab_size=tokenizer.vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_layers=2,
        num_heads=4,
        context_length=CONTEXT,
    )
    recipe = TrainingRecipe(batch_examples=16)
    trainer = Trainer(config, recipe, label_token=tokenizer.intent, threads=1, path="fp32+fp32")
    trainer.load(initial_vector(config, seed=1))
    trainer.train(rows * 20, progress_start=0.0, progress_end=1.0, seed=0)
    folder = run / "model"
    folder.mkdir()
    tokenizer.save(folder / "tokenizer.json")
    LabelSet(intents=[], slots={}, canonical={}).save(folder / "labels.json")
    metadata = {"tokenizer_sha256": tokenizer.sha256, "version": "1"}
    save_checkpoint(folder / "model.safetensors", trainer.vector(), config, metadata=metadata)
    return run


def audit(run: Path, text: Path, *more: str) -> dict[str, object]:
    command = [sys.executable, "-m", "bithaul", "evaluate", "perplexity", "--json", "--threads", "1"]
    done = subprocess.run(
        [*command, "--dir", str(run), "--data", str(text), *more],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.process
def test_a_trained_model_against_n_grams(trained: Path, text: Path) -> None:
    """The grammar's entropy is 2 ln 4 + ln 3 nats over 10 tokens, 1.472 a token. N-grams cannot remember the
    first word and stay above; targets off by one, or a line end left out, miss it by far."""
    record = audit(trained, text, "--train", str(text))
    lowest = float(np.exp((2 * np.log(4) + np.log(3)) / 10))
    assert (record["documents"], record["tokens"], record["words"]) == (400, 4000, 3600)
    assert record["unknown_tokens"] == 0
    assert lowest * 0.97 < record["perplexity"] < lowest * 1.12  # type: ignore[operator]
    assert record["kneser_ney"]["perplexity"] > lowest * 1.08  # type: ignore[index]
    assert record["ratio"] < 1  # type: ignore[operator]


@pytest.mark.process
def test_more_context_helps(trained: Path, text: Path) -> None:
    """Cut into pieces, many last words have lost the first word of their line."""
    sliding, cut = audit(trained, text), audit(trained, text, "--stride", str(CONTEXT))
    assert sliding["perplexity"] < cut["perplexity"]  # type: ignore[operator]
    assert sliding["tokens"] == cut["tokens"]

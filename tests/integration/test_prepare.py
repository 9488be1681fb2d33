"""A run folder from wishes: what was asked for reaches the corpus and the run that workers are given."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from bithaul.cli.local.folder import RunFolder, RunSpec
from bithaul.cli.local.prepare import data_digest, prepare
from bithaul.coordinator.context import open_coordinator
from bithaul.coordinator.database.runs import get_run
from bithaul.coordinator.queries.blobs import current_version
from bithaul.coordinator.queries.runs import run_view
from bithaul.coordinator.settings import load_settings
from bithaul.corpus.augment import AS_IT_IS, Augmentation
from bithaul.corpus.build import CorpusManifest
from bithaul.corpus.tokenizer import Tokenizer
from bithaul.errors import InvalidConfig, UnknownName
from bithaul.exchange.weights import BF16, weights_size
from bithaul.training.recipe import TrainingRecipe

SONGS = "".join(
    f'{{"text": "play song{n} by band{n}", "intent": "play", "slots": {{"artist": "band{n}"}}}}\n'
    for n in range(9)
)
WORDS = "".join(f"say word{chr(97 + n)} now\tsay\nstop it{n}\tstop\n" for n in range(9))


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    root = tmp_path / "run"
    root.mkdir()
    return RunFolder(root)


def prepared(folder: RunFolder, data: Path, **wishes: object) -> tuple[CorpusManifest, dict[str, object]]:
    """The manifest and the stored recipe of a run on `data`."""
    spec = RunSpec(
        preset="small", train=str(data), valid=str(data), data_sha256=data_digest(data, data), **wishes
    )
    prepare(folder, spec, budget_tokens=1000, budget_seconds=None, say=lambda _: None)
    assert folder.read_spec() == spec
    with (
        closing(open_coordinator(load_settings(folder.root))) as coordinator,
        coordinator.database.read() as connection,
    ):
        recipe = dict(get_run(connection).recipe)
    return CorpusManifest.load(folder.corpus), recipe


def test_small_labelled_data_is_varied_and_regularised(folder: RunFolder, tmp_path: Path) -> None:
    data = tmp_path / "words.tsv"
    data.write_text(WORDS)
    manifest, recipe = prepared(folder, data, workers=1)
    assert manifest.augmentation == Augmentation(copies=8, swap=0.5, spell=0.1, drop=0.05)
    assert manifest.train_examples == 8 * 18
    assert (recipe["dropout"], recipe["embedding_lr_share"]) == (0.1, 0.3)


def test_the_recipe_is_that_of_the_runs_workers(folder: RunFolder, tmp_path: Path) -> None:
    data = tmp_path / "words.tsv"
    data.write_text(WORDS)
    _, recipe = prepared(folder, data, workers=2)
    wanted = TrainingRecipe.for_preset("small", "intents", workers=2, few=True)
    assert recipe == wanted.model_dump(mode="json")


def test_data_with_slots_keeps_the_rate_of_its_embedding(folder: RunFolder, tmp_path: Path) -> None:
    data = tmp_path / "songs.jsonl"
    data.write_text(SONGS)
    manifest, recipe = prepared(folder, data, workers=1)
    assert manifest.augmentation.copies == 8
    assert (recipe["dropout"], recipe["embedding_lr_share"]) == (0.0, 1.0)


def test_wishes_win_over_what_is_suggested(folder: RunFolder, tmp_path: Path) -> None:
    data = tmp_path / "words.tsv"
    data.write_text(WORDS)
    wishes = {"augmentation": AS_IT_IS, "word_pieces": 0, "recipe": {"dropout": 0.25, "peak_lr": 5e-4}}
    manifest, recipe = prepared(folder, data, **wishes)
    assert manifest.augmentation == AS_IT_IS
    assert manifest.train_examples == 18
    assert (recipe["dropout"], recipe["peak_lr"]) == (0.25, 5e-4)
    tokenizer = Tokenizer.load(folder.corpus / "tokenizer.json")
    assert tokenizer.encode_words("sayings")[0][0] == tokenizer.unk


def test_the_choice_of_weights_reaches_the_run(folder: RunFolder, tmp_path: Path) -> None:
    """Catches an option that is stored in the folder and nowhere else, and a wrong one said too late."""
    data = tmp_path / "words.tsv"
    data.write_text(WORDS)
    with pytest.raises(UnknownName, match="fp32 or bf16"):
        prepared(folder, data, weights="half")
    assert not folder.corpus.exists(), "said before anything was built"
    prepared(folder, data, weights="bf16")
    with closing(open_coordinator(load_settings(folder.root))) as c:
        with c.database.read() as connection:
            count = get_run(connection).layout.size
        assert run_view(c).weights == "bf16"
        assert current_version(c).size == weights_size(count, BF16)


def test_a_recipe_that_cannot_be_leaves_no_run(folder: RunFolder, tmp_path: Path) -> None:
    data = tmp_path / "words.tsv"
    data.write_text(WORDS)
    with pytest.raises(InvalidConfig, match="dropout"):
        prepared(folder, data, recipe={"dropout": 7})
    assert folder.read_spec() is None
    assert not folder.corpus.exists(), "said before anything was built"

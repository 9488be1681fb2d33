"""benchmarks/truckmate.py: the figures are those of the folder, and what was wrong is told."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

from bithaul.corpus.example import Example

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("truckmate")


@pytest.fixture
def run(tmp_path: Path, fitted_dir: Path, requests: list[Example]) -> Path:
    shutil.copytree(fitted_dir, tmp_path / "run")
    (tmp_path / "run" / "corpus").mkdir()
    lines = "".join(json.dumps(example.as_record()) + "\n" for example in requests)
    (tmp_path / "run" / "corpus" / "heldout.jsonl").write_text(lines, encoding="utf-8")
    return tmp_path / "run"


def test_figures_of_a_run(
    script: ModuleType,
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A model that knows its held-out requests by heart has 1.0 there, and little else."""
    monkeypatch.setattr(sys, "argv", ["truckmate.py", "--dir", str(run), "--json"])
    script.main()
    *wrong, last = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert last["heldout_intent"] == last["heldout_slot_f1"] == last["heldout_exact"] == 1.0
    assert last["rows"][0]["heldout_examples"] == 20
    assert last["heavy_noise_intent"] < 1.0
    assert len(wrong) == 100 - round(100 * last["handwritten_exact"])
    assert all(set(row["wrong"]["answer"]) == {"intent", "slots"} for row in wrong)


def test_a_folder_without_a_run_is_refused(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training for twenty minutes because of a mistyped folder would be worse."""
    monkeypatch.setattr(sys, "argv", ["truckmate.py", "--dir", str(tmp_path)])
    with pytest.raises(SystemExit):
        script.main()


def test_seeds_have_a_mean_and_a_spread(script: ModuleType) -> None:
    rows = [{"seed": 0, "heldout_intent": 0.9}, {"seed": 1, "heldout_intent": 1.0}]
    assert script.summary(rows) == {"heldout_intent": 0.95, "heldout_intent_spread": 0.1}

"""The README's picture and figures: made from what was measured, from nothing else."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from bithaul.coordinator.queries.progress import ProgressView, SeriesPoint, WorkerProgress
from bithaul.exchange.messages import RunState

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
RESULT = {
    "intent_accuracy": 0.9765,
    "slot_f1": 0.9612,
    "heldout_examples": 2000,
    "asked": {"text": "take me to <dallas>", "intent": "navigate", "slots": {"city": "Dallas"}},
}


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def view() -> ProgressView:
    """A finished run of three versions."""
    series = [
        SeriesPoint(
            version=i, tokens=i * 1000, time=float(i), train_loss=3.0 / i, heldout_loss=None, contributors=2
        )
        for i in (1, 2, 3)
    ]
    worker = WorkerProgress(
        name="worker-1",
        state="active",
        activity="idle",
        tokens_per_second=4321.0,
        accepted=7,
        tokens=3000,
        share=1.0,
        credited=3000,
        last_seen=0.0,
        standing="steady",
        weight=1.0,
        why="",
        way_out="",
        scored=0,
        score=None,
    )
    return ProgressView(
        run="demo",
        state=RunState.FINISHED,
        progress=1.0,
        budget_tokens=3000,
        budget_seconds=None,
        tokens=3000,
        seconds=3.0,
        version=3,
        versions=3,
        tokens_per_second=1000.0,
        eta_seconds=0.0,
        tasks={},
        open_leases=0,
        receipts={},
        rejected={},
        workers=[worker],
        series=series,
    )


def test_the_picture_shows_the_run_and_fetches_nothing(view) -> None:
    """Catches: a picture without the answer, with a web font, or different from the last drawing."""
    demo = script("demo_picture")
    svg = demo.draw(view, RESULT, command="make demo")
    text = svg.replace("&#160;", " ")
    for words in ("make demo", "worker-1", "4,321", "97.7%", "96.1%", "take me to &lt;dallas&gt;", "Dallas"):
        assert words in text
    assert "@font-face" not in svg
    assert "url(http" not in svg
    assert [line for line in svg.splitlines() if "http" in line] == [
        svg.splitlines()[0]
    ]  # the name of SVG itself
    assert demo.draw(view, RESULT, command="make demo") == svg


def test_a_run_without_intents_has_a_picture_too(view) -> None:
    """Catches: a picture that needs figures which plain text does not have."""
    assert "worker-1" in script("demo_picture").draw(view, {"intent_accuracy": None}, command="bithaul up")


def test_the_readme_keeps_all_but_its_figures(tmp_path, monkeypatch) -> None:
    """Catches: a figure nobody measured, prose that is lost, a table that grows at each run."""
    run_all = script("run_all")
    readme, results = tmp_path / "README.md", tmp_path / "results"
    results.mkdir()
    monkeypatch.setattr(run_all, "README", readme)
    monkeypatch.setattr(run_all, "PAGE", tmp_path / "benchmarks.md")
    monkeypatch.setattr(run_all, "RESULTS", results)
    readme.write_text(f"before\n{run_all.BEGIN}\nold\n{run_all.END}\nafter\n", encoding="utf-8")
    run_all.rewrite()
    assert "Nothing measured yet" in readme.read_text(encoding="utf-8")
    entry = {
        "benchmark": "demo",
        "date": "2026-11-22",
        "machine": {"cpu": "a CPU", "cores": 2, "python": "3.11"},
        "result": {"intent_accuracy": 0.9765, "slot_f1": None},
    }
    (results / "demo.json").write_text(json.dumps(entry), encoding="utf-8")
    run_all.rewrite()
    once = readme.read_text(encoding="utf-8")
    run_all.rewrite()
    assert readme.read_text(encoding="utf-8") == once
    assert once.startswith("before\n")
    assert once.endswith("after\n")
    assert "| demo: held-out intent accuracy | 0.9765 |" in once
    assert "a CPU, 2 cores, 2026-11-22" in once
    assert "slot F1" not in once


def test_the_readme_links_to_what_exists(pages) -> None:
    """Catches: a page that was moved or renamed. (`make docs` checks the pages among themselves.)"""
    links = re.findall(r"[^!]\[[^\]]+\]\(([^)#]+)\)", pages.text("README.md"))
    assert len(links) > 10
    assert [link for link in links if not (pages.root / link).exists()] == []


def test_the_readme_has_the_marks_and_the_picture(pages) -> None:
    """Catches: a README whose table is no longer rewritten, or that shows no picture."""
    readme, run_all = pages.text("README.md"), script("run_all")
    assert readme.count(run_all.BEGIN) == readme.count(run_all.END) == 1
    assert "](docs/images/demo.svg)" in readme
    assert len(readme.splitlines()) < 100


def test_a_figure_of_another_machine_says_which() -> None:
    """Catches a GPU's figures under the name of the machine that stored them."""
    run_all = script("run_all")
    here = {"cpu": "this one", "cores": 2, "python": "3.11"}
    there = {"cpu": "that one", "cores": 16, "python": "3.12", "gpu": "A card", "torch": "9.9"}
    printed = json.dumps({"machine": there, "rows": [{"preset": "large", "tokens_per_second": 5}]})
    entry = run_all.entry_of("gpu", f"progress\n{printed}\n", here)
    assert entry["machine"] == there
    assert "machine" not in entry["result"]
    assert "A card, torch 9.9; that one, 16 cores" in run_all.table(entry)
    own = run_all.entry_of("step", json.dumps({"speedup": 2.0}), here)
    assert own["machine"] == here
    assert "\nthis one, 2 cores" in run_all.table(own)

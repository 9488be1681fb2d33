"""`bithaul simulate` and its picture."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bithaul.cli.main import run
from bithaul.simulation.picture import Segment, Timeline, draw
from bithaul.simulation.scenario import Outcome, Rehearsal

TIMELINE = Timeline(
    title="a <test>",
    seconds=7200.0,
    machines=2,
    segments=[Segment(0, 0.0, 600.0, "merged"), Segment(1, 10.0, 1800.0, "expired")],
    crashes=[(900.0, "flush.committed")],
    losses=[(0.0, 3.0), (600.0, 2.0)],
    contributors=[(0.0, 0), (600.0, 1)],
)


def simulate(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as done:
        run(["simulate", *arguments])
    return int(done.value.code or 0), capsys.readouterr().out


def test_json_has_the_promises_and_the_picture_is_drawn(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Catches: a key that scripts read and is gone, a picture that is no SVG."""
    picture = tmp_path / "storm.svg"
    code, out = simulate(
        capsys, "--scenario", "storm", "--workers", "3", "--hours", "0.7", "--json", "--picture", str(picture)
    )
    result = json.loads(out)
    assert code == 0
    assert (result["double_applied"], result["acknowledged_lost"], result["slices_uncovered"]) == (0, 0, 0)
    assert result["replay_identical"] is True
    assert {"events", "faults", "simulated_hours", "wall_seconds", "coordinator_crashes"} <= result.keys()
    root = ElementTree.fromstring(picture.read_text(encoding="utf-8"))
    assert root.tag.endswith("svg")
    assert "3 machines" in picture.read_text(encoding="utf-8")


def test_a_broken_promise_is_exit_code_1_and_says_how_to_repeat_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a failed rehearsal that a script takes for a success."""
    original = Rehearsal.run

    def broken(self: Rehearsal) -> Outcome:
        self.scenario = replace(self.scenario, hours=0.1)
        return replace(original(self), broken="it broke", double_applied=1)

    monkeypatch.setattr(Rehearsal, "run", broken)
    code, out = simulate(capsys, "--scenario", "calm", "--workers", "1", "--seed", "7")
    assert code == 1
    assert "it broke" in out
    assert "--workers 1" in out
    assert "--seed 7" in out


def test_wrong_names_are_said_before_anything_is_built(capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate(capsys, "--scenario", "hurricane")[0] == 2
    assert simulate(capsys, "--rule", "average")[0] == 2
    assert simulate(capsys, "--aggregator", "vote")[0] == 2


def test_the_picture_is_the_same_each_time_and_shows_what_happened() -> None:
    """Catches: a lease or a crash that is not drawn, text that breaks the file."""
    svg = draw(TIMELINE)
    assert draw(TIMELINE) == svg
    ElementTree.fromstring(svg)
    assert "a &lt;test&gt;" in svg
    assert "<title>flush.committed</title>" in svg
    assert svg.count('stroke="#2f7d4f"') == 1
    assert svg.count('stroke="#c43b3b"') == 1
    assert ">2 h<" in svg
    assert draw(replace(TIMELINE, segments=[], losses=[], contributors=[], crashes=[]))

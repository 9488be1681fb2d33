"""`bithaul run seed`, `unseed`, `seedings`, `stuck` and `kick` on a folder that a coordinator has open."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bithaul.cli.main import run

House = Any
ENGINES = "both"


@pytest.fixture
def bithaul(house: House, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command on the house's folder: (exit code, what it printed, parsed if it is JSON)."""

    def call(*words: str, as_json: bool = True) -> tuple[int, Any]:
        with pytest.raises(SystemExit) as ended:
            run([*words, "--dir", str(house.directory), *(["--json"] if as_json else [])])
        out = capsys.readouterr().out
        return int(ended.value.code or 0), json.loads(out) if as_json else out

    return call


def test_preview_seed_and_undo(house: House, bithaul: Any) -> None:
    """Catches a preview that seeds, a mark that binds nothing, an undo that says another number."""
    code, shown = bithaul("run", "seed", "3", "20", "--preview")
    assert (code, shown["first"], shown["last"], shown["problems"]) == (0, 0, 59, [])
    assert bithaul("run", "seedings") == (0, [])
    text = bithaul("run", "seed", "3", "20", "--preview", as_json=False)[1]
    assert "0.12 over the corpus, pass 1 to 1" in text
    assert shown["mark"] in text
    code, made = bithaul("run", "seed", "3", "20", "--mark", shown["mark"])
    assert (code, made) == (0, {"seeding": 1, "tasks": 3, "examples": 20, "first": 0, "last": 59})
    code, refused = bithaul("run", "seed", "3", "20", "--mark", shown["mark"])
    assert (code, refused["error"]) == (5, "queue_moved")
    assert house.claim("ann").examples == 20
    [row] = bithaul("run", "seedings")[1]
    assert (row["tasks"], row["waiting"], row["taken"], row["made_by"]) == (3, 2, 1, "cli")
    code, done = bithaul("run", "unseed", "1")
    assert (code, done) == (0, {"seeding": 1, "withdrawn": 2, "taken": 1, "examples": 40})
    assert "nothing was withdrawn" in bithaul("run", "unseed", "1", as_json=False)[1]
    assert bithaul("run", "unseed", "4")[0] == 4


def test_what_cannot_be_is_one_line_and_a_code(house: House, bithaul: Any) -> None:
    code, answer = bithaul("run", "seed", "3", "21")
    assert (code, answer["error"]) == (2, "cannot_seed")
    assert "take 20 or 24" in answer["detail"]
    text = bithaul("run", "seed", "20000", "21", "--preview", as_json=False)[1].splitlines()
    assert text[0] == "This cannot be seeded."
    assert len(text) == 3


def test_stuck_tasks_are_listed_and_kicked(house: House, bithaul: Any) -> None:
    """The commands go by the machine's clock, and by that the leases of this house are decades old."""
    assert bithaul("run", "stuck", as_json=False) == (0, "No task is stuck.\n")
    assert bithaul("run", "kick", "--all")[1]["error"] == "nothing_stuck"
    first, second = house.claim("ann"), house.claim("bob")
    rows = bithaul("run", "stuck")[1]
    assert [(r["task"], r["worker"]) for r in rows] == [(first.task, "ann"), (second.task, "bob")]
    assert "It has not got further for" in bithaul("run", "stuck", as_json=False)[1]
    code, kicked = bithaul("run", "kick", str(first.task))
    assert (code, [k["worker"] for k in kicked["tasks"]]) == (0, ["ann"])
    assert bithaul("run", "kick", str(first.task))[1]["error"] == "task_not_held"
    assert f"Task {second.task} was kicked" in bithaul("run", "kick", "--all", as_json=False)[1]


@pytest.mark.parametrize("words", [[], ["1", "--all"]])
def test_kick_wants_one_or_all(bithaul: Any, words: list[str]) -> None:
    code, answer = bithaul("run", "kick", *words)
    assert code == 2
    assert "Name one task" in answer["detail"]

"""`bithaul run` and `bithaul workers` on a folder that a coordinator has open at the same time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bithaul.cli.local.folder import RunFolder
from bithaul.cli.main import run
from bithaul.errors import Conflict

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


def two_versions(house: House) -> None:
    for _ in range(2):
        for name in ("ann", "bob"):
            house.report(name, house.claim(name))
        house.clock.time += 10.0
        assert house.merge() is not None


def test_show_pause_resume_and_rollback(house: House, bithaul: Any) -> None:
    """Catches a verb that changes nothing, and JSON keys that scripts read and are gone."""
    two_versions(house)
    assert bithaul("run", "pause") == (0, {"state": "paused"})
    assert house.try_claim("ann").task is None
    assert bithaul("run", "resume") == (0, {"state": "running"})
    code, back = bithaul("run", "rollback", "2")
    assert code == 0
    assert back == {
        "restored": 2,
        "version": 4,
        "lineage": 2,
        "tokens_total": 1400,
        "discarded_tasks": 2,
        "paused": False,
    }
    assert house.newest.version == 4
    code, shown = bithaul("run", "show")
    assert (shown["version"], shown["lineage"], shown["merge_rule"], shown["gates"]) == (4, 2, "sync", [])
    assert [(v["version"], v["in_force"], v["restores"]) for v in shown["versions"]] == [
        (1, True, None),
        (2, True, None),
        (3, False, None),
        (4, True, 2),
    ]
    code, text = bithaul("run", "show", as_json=False)
    assert "rollback to 2" in text
    assert "given up" in text


def test_a_rollback_that_cannot_be_is_one_line_and_a_code(house: House, bithaul: Any) -> None:
    assert bithaul("run", "rollback", "7")[0] == 4
    code, answer = bithaul("run", "rollback", "1")
    assert (code, answer["error"]) == (5, "conflict")
    assert "newest" in answer["detail"]


def test_runs_are_listed_and_a_broken_one_says_so(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    broken = house.directory.parent / "broken"
    broken.mkdir()
    (broken / "coordinator.db").write_bytes(bytes(range(256)) * 20)
    (house.directory.parent / "no run").mkdir()
    with pytest.raises(SystemExit):
        run(["run", "list", "--in", str(house.directory.parent), "--json"])
    rows = {row["dir"].rsplit("/", 1)[-1]: row for row in json.loads(capsys.readouterr().out)}
    assert rows.keys() == {"broken", house.directory.name}
    assert (rows["run0"]["run"], rows["run0"]["state"], rows["run0"]["version"]) == ("test", "ready", 1)
    assert rows["broken"]["error"] == "corrupt_file"


def test_workers_are_set_aside_restored_pinned_and_drained(house: House, bithaul: Any) -> None:
    code, answer = bithaul("workers", "set-aside", "ann", "--reason", "a broken fan")
    assert (code, answer["standing"], answer["weight"], answer["why"]) == (
        0,
        "set aside",
        0.0,
        "a broken fan",
    )
    assert house.try_claim("ann").task is None
    rows = {row["name"]: row for row in bithaul("workers", "list")[1]}
    assert (rows["ann"]["standing"], rows["ann"]["way_out"]) == ("set aside", "the operator")
    assert (rows["bob"]["standing"], rows["bob"]["weight"]) == ("probation", 0.5)
    assert bithaul("workers", "restore", "ann")[1]["weight"] == 0.5
    assert bithaul("workers", "pin", "ann")[1]["weight"] == 1.0
    assert bithaul("workers", "drain", "bob") == (0, {"worker": "bob", "drained": True})
    assert house.try_claim("bob").task is None
    assert bithaul("workers", "drain", "bob", "--off")[1] == {"worker": "bob", "drained": False}
    assert bithaul("workers", "pin", "nobody")[0] == 4
    assert "a broken fan" not in bithaul("workers", "list", as_json=False)[1]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--gate", "nrom"], "norm, speed, copy, audit, score, agreement, rollback"),
        (["--merge-option", "mu"], "NAME=VALUE"),
        (["--merge-option", "nu=1"], "eta, mu, max_staleness, aggregator"),
        (["--merge-option", "aggregator=best"], "trimmed_mean"),
        (["--merge-rule", "staleness_sgd", "--merge-option", "lr=9"], "between 0 and 4"),
    ],
)
def test_a_wrong_option_of_up_lists_the_known_ones(
    tmp_path: Any, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    """Catches a name that is ignored, or refused after minutes of preparation."""
    with pytest.raises(SystemExit) as ended:
        run(["up", "--dir", str(tmp_path / "run"), *words, "--json"])
    assert ended.value.code == 2
    assert says in json.loads(capsys.readouterr().out)["detail"]
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_new_folder_may_hold_its_settings(tmp_path: Path) -> None:
    """Catches `bithaul up` that refuses the folder in which its database was just named."""
    (tmp_path / "bithaul.toml").write_text("port = 0\n")
    RunFolder(tmp_path).begin_preparation()
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(Conflict, match="notes"):
        RunFolder(other).begin_preparation()


def test_a_backup_says_whose_business_it_is(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches "There is no run here" of a run whose rows are in PostgreSQL, and pg_dump for one in SQLite."""
    out = house.directory / "x"
    with pytest.raises(SystemExit) as stop:
        run(["backup", "create", "--dir", str(house.directory), "--out", str(out)])
    elsewhere = bool(house.c.settings.database_url)
    assert (stop.value.code, out.exists()) == ((2, False) if elsewhere else (0, True))
    assert ("pg_dump" in capsys.readouterr().err) == elsewhere

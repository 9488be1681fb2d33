"""`bithaul simulate`: rehearse a run with a fleet, faults and crashes on virtual time."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from bithaul.errors import writing
from bithaul.rounds.aggregate import aggregator_named
from bithaul.rounds.gates import gates_named
from bithaul.rounds.rules import rule_named
from bithaul.simulation.picture import draw
from bithaul.simulation.scenario import Outcome, Rehearsal, scenario_named

app = typer.Typer(add_completion=False, rich_markup_mode=None)
_MEMORY = Path("/dev/shm")  # noqa: S108 - nothing secret; a sync costs nothing there


@app.command()
def simulate(
    scenario: Annotated[str, typer.Option(help="storm (faults and crashes) or calm (none).")] = "storm",
    workers: Annotated[int | None, typer.Option(min=1, max=2000, help="Simulated machines (200).")] = None,
    hours: Annotated[float | None, typer.Option(min=0.1, help="Simulated hours of it (10).")] = None,
    seed: Annotated[int, typer.Option(help="Everything is drawn from it.")] = 0,
    rule: Annotated[str | None, typer.Option(help="Merge rule of the run (sync).")] = None,
    aggregator: Annotated[str | None, typer.Option(help="Aggregator of the rule (its own).")] = None,
    gates: Annotated[
        list[str] | None, typer.Option("--gate", help="Switch a gate on: norm, speed, copy; repeatable.")
    ] = None,
    poisoned: Annotated[
        int, typer.Option(min=0, help="Machines whose updates go ten times the wrong way.")
    ] = 0,
    picture: Annotated[Path | None, typer.Option(help="Write what happened to this SVG file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Run the real coordinator and workers through a storm; exit code 1 when a promise is broken."""
    wanted = scenario_named(scenario)
    wanted = replace(
        wanted,
        workers=workers or wanted.workers,
        hours=hours or wanted.hours,
        seed=seed,
        rule=rule or wanted.rule,
        aggregator=aggregator,
        gates=gates_named(gates or ()),
        poisoned=poisoned,
    )
    if aggregator is not None:
        aggregator_named(aggregator)
    rule_named(wanted.rule, {"aggregator": aggregator} if aggregator is not None else {})
    place = _MEMORY if _MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="bithaul-simulate-", dir=place) as folder:
        rehearsal = Rehearsal(wanted, Path(folder))
        outcome = rehearsal.run()
    if picture is not None:
        with writing(picture):
            assert rehearsal.timeline is not None
            picture.write_text(draw(rehearsal.timeline), encoding="utf-8", newline="\n")
    print(json.dumps(asdict(outcome)) if as_json else _told(outcome))
    if not outcome.kept:
        raise typer.Exit(1)


def _told(o: Outcome) -> str:
    faults = ", ".join(f"{kind} {count}" for kind, count in o.faults.items()) or "none"
    lines = [
        f"{o.scenario}, seed {o.seed}: {o.workers} machines, {o.simulated_hours:g} h in {o.wall_seconds:g} s",
        f"{o.events:,} events, {o.audits} audits",
        f"faults: {faults}; machines died {o.worker_deaths} times; "
        f"coordinator crashed at {', '.join(o.coordinator_crashes) or 'no point'}; {o.rollbacks} rollbacks",
        f"{o.versions} versions from {o.accepted} updates; loss {o.loss_first:g} -> {o.loss_last:g}; longest "
        f"pause {o.longest_gap_rounds:g} rounds",
        f"applied twice {o.double_applied}, acknowledged and lost {o.acknowledged_lost}, positions uncovered "
        f"{o.slices_uncovered}, replay {'identical' if o.replay_identical else 'DIFFERS'}",
        *(
            f"{who}: {n['reports']} reports, {n['clipped']} clipped, {n['refused']} refused for their size"
            for who, n in o.judged.items()
            if n["reports"]
        ),
    ]
    if o.broken:
        lines.append(
            f"BROKEN: {o.broken}\nagain: bithaul simulate --scenario {o.scenario} --workers {o.workers} "
            f"--hours {o.hours:g} --rule {o.rule} --seed {o.seed}"
            + "".join(f" --gate {gate}" for gate in o.gates)
            + (f" --poisoned {o.poisoned}" if o.poisoned else "")
        )
    return "\n".join(lines)

"""`bithaul simulate`: rehearse a run with a fleet, faults and crashes on virtual time."""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from bithaul.cli.values import merge_option, tokens
from bithaul.errors import writing
from bithaul.exchange.codecs import codec_named
from bithaul.exchange.weights import weights_named
from bithaul.rounds.gates import gates_named
from bithaul.rounds.rules import rule_named
from bithaul.simulation.picture import draw
from bithaul.simulation.scenario import Outcome, Rehearsal, Scenario, poison_named, scenario_named

app = typer.Typer(add_completion=False, rich_markup_mode=None)
_MEMORY = Path("/dev/shm")  # noqa: S108 - nothing secret; a sync costs nothing there


@app.command()
def simulate(
    scenario: Annotated[str, typer.Option(help="storm (faults and crashes) or calm (none).")] = "storm",
    workers: Annotated[int | None, typer.Option(min=1, max=2000, help="Simulated machines (200).")] = None,
    hours: Annotated[float | None, typer.Option(min=0.1, help="Simulated hours of it (10).")] = None,
    spread: Annotated[
        float | None, typer.Option(min=1.0, help="How many times as fast the fastest machine is (3).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Everything is drawn from it.")] = 0,
    rule: Annotated[str | None, typer.Option(help="Merge rule of the run (sync).")] = None,
    rule_options: Annotated[
        list[str] | None,
        typer.Option("--merge-option", metavar="NAME=VALUE", help="An option of the merge rule; repeatable."),
    ] = None,
    codec: Annotated[str | None, typer.Option(help="How updates travel (as the rule says).")] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="How versions are published: fp32, bf16, int8-delta, int4-delta."),
    ] = None,
    aggregator: Annotated[str | None, typer.Option(help="Aggregator of the rule (its own).")] = None,
    gates: Annotated[
        list[str] | None, typer.Option("--gate", help="Switch a gate on, as in `bithaul up`; repeatable.")
    ] = None,
    poisoned: Annotated[int, typer.Option(min=0, help="Machines that send nothing but poison.")] = 0,
    poison: Annotated[
        str,
        typer.Option(
            help="sign_flip (ten times the wrong way), nan (no numbers), noise, half (of the steps) or copy."
        ),
    ] = "sign_flip",
    corpus: Annotated[
        Path | None, typer.Option(help="Train a real model on this corpus folder; time stays virtual.")
    ] = None,
    preset: Annotated[str, typer.Option(help="The real model.")] = "small",
    budget: Annotated[
        int | None,
        typer.Option("--budget-tokens", parser=tokens, metavar="N", help="What the real model trains (1e6)."),
    ] = None,
    steps: Annotated[
        int, typer.Option(min=1, help="Inner steps of the real model in a task of a middling machine.")
    ] = 5,
    picture: Annotated[Path | None, typer.Option(help="Write what happened to this SVG file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Run the real coordinator and workers through a storm; exit code 1 when a promise is broken."""
    wanted = scenario_named(scenario)
    wanted = replace(
        wanted,
        workers=workers or wanted.workers,
        hours=hours or wanted.hours,
        spread=spread or wanted.spread,
        seed=seed,
        rule=rule or wanted.rule,
        options=dict(merge_option(text) for text in rule_options or ()),
        aggregator=aggregator,
        gates=gates_named(gates or ()),
        codec=codec or wanted.codec,
        weights=weights or wanted.weights,
        poisoned=poisoned,
        poison=poison_named(poison),
    )
    if wanted.codec is not None:
        codec_named(wanted.codec)
    weights_named(wanted.weights)
    rule_named(wanted.rule, wanted.rule_options)
    place = _MEMORY if _MEMORY.is_dir() and corpus is None else None
    with tempfile.TemporaryDirectory(prefix="bithaul-simulate-", dir=place) as folder:
        if corpus is None:
            rehearsal = Rehearsal(wanted, Path(folder))
        else:
            rehearsal = _real(
                wanted, corpus, Path(folder), preset=preset, budget=budget or 1_000_000, steps=steps
            )
        outcome = rehearsal.run()
    if picture is not None:
        with writing(picture):
            assert rehearsal.timeline is not None
            picture.write_text(draw(rehearsal.timeline), encoding="utf-8", newline="\n")
    print(json.dumps(asdict(outcome)) if as_json else _told(outcome))
    if not outcome.kept:
        raise typer.Exit(1)


def _real(wanted: Scenario, corpus: Path, folder: Path, *, preset: str, budget: int, steps: int) -> Rehearsal:
    """A rehearsal that computes; it says on standard error how far it is."""
    from bithaul.simulation.real import Real

    real = Real(corpus, preset=preset, workers=wanted.workers)

    def made(version: int, tokens: float, loss: float) -> None:
        done = f"{tokens:,.0f} of {budget:,} tokens"
        print(f"version {version}: {done}, loss {loss:.4f}", file=sys.stderr, flush=True)

    return Rehearsal(real.planned(wanted, tokens=budget, steps=steps), folder, subject=real, on_version=made)


def _told(o: Outcome) -> str:
    faults = ", ".join(f"{kind} {count}" for kind, count in o.faults.items()) or "none"
    lines = [
        f"{o.scenario}, seed {o.seed}: {o.workers} machines, {o.simulated_hours:g} h in {o.wall_seconds:g} s",
        f"{o.events:,} events, {o.audits} audits",
        f"faults: {faults}; machines died {o.worker_deaths} times; "
        f"coordinator crashed at {', '.join(o.coordinator_crashes) or 'no point'}; {o.rollbacks} rollbacks",
        f"{o.versions} versions from {o.accepted} updates; loss {o.loss_first:g} -> {o.loss_last:g}"
        + ("" if o.heldout_loss is None else f", held out {o.heldout_loss:g}")
        + "; longest "
        f"pause {o.longest_gap_rounds:g} rounds",
        f"applied twice {o.double_applied}, acknowledged and lost {o.acknowledged_lost}, positions uncovered "
        f"{o.slices_uncovered}, replay {'identical' if o.replay_identical else 'DIFFERS'}",
        *(
            f"{who}: {n['reports']} reports, {n['clipped']} clipped, {n['refused']} refused for their size"
            + (f", {n['repeated']} repeated, {n['differed']} differed" if n["repeated"] else "")
            + (f", {n['strikes']} strikes" if n["strikes"] else "")
            + (f", {n['scored']} scored, {n['doubted']} machines weigh less for it" if n["scored"] else "")
            for who, n in o.judged.items()
            if n["reports"]
        ),
    ]
    if o.broken:
        lines.append(
            f"BROKEN: {o.broken}\nagain: bithaul simulate --scenario {o.scenario} --workers {o.workers} "
            f"--hours {o.hours:g} --rule {o.rule} --seed {o.seed}"
            + "".join(f" --gate {gate}" for gate in o.gates)
            + (f" --poisoned {o.poisoned} --poison {o.poison}" if o.poisoned else "")
        )
    return "\n".join(lines)

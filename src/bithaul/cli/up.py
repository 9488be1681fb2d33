"""`bithaul up`: train on this machine with a coordinator and N workers, then evaluate and print one result.

Four steps, each a module of `cli.local`: prepare the folder, start the processes, watch until the budget is
spent, finish (publish the model, evaluate, write the result). Running it again on the same folder goes on
where it stopped.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from bithaul.cli.values import merge_option, tokens
from bithaul.errors import InvalidInput


def up(
    directory: Annotated[
        Path, typer.Option("--dir", help="The run's folder; made when missing, resumed when there.")
    ] = Path("runs/run"),
    preset: Annotated[str | None, typer.Option(help="small, medium, large, or a TOML file.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=256, help="Worker processes on this machine.")
    ] = None,
    train: Annotated[
        Path | None, typer.Option(help="Your training data (TSV, CSV, JSONL, text, or a folder).")
    ] = None,
    valid: Annotated[Path | None, typer.Option(help="Your held-out data, same formats.")] = None,
    examples: Annotated[
        int | None, typer.Option(min=100, help="Truck Mate requests to generate (50,000).")
    ] = None,
    budget_tokens: Annotated[
        int | None, typer.Option(parser=tokens, metavar="N", help="Stop after so many trained tokens (3e6).")
    ] = None,
    budget_minutes: Annotated[
        float | None, typer.Option(min=0.05, help="Stop after so many minutes of training.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads per worker (cores / workers).")] = None,
    merge_rule: Annotated[
        str | None, typer.Option(help="How updates are merged: sync, staleness_sgd, buffered_nesterov, ...")
    ] = None,
    merge_options: Annotated[
        list[str] | None,
        typer.Option("--merge-option", metavar="NAME=VALUE", help="An option of the merge rule; repeatable."),
    ] = None,
    gates: Annotated[
        list[str] | None,
        typer.Option(
            "--gate",
            help="Switch a gate on: norm, speed, copy, audit, score, agreement, rollback; repeatable.",
        ),
    ] = None,
    max_update_norm: Annotated[
        float | None, typer.Option(help="Refuse updates with a larger L2 norm (no ceiling).")
    ] = None,
    codec: Annotated[
        str | None, typer.Option(help="How updates travel: int8-block-v1, int4-block-v1, topk-2bit-v1, ...")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="How versions reach the workers: fp32 (default), bf16, int8-delta, int4-delta."),
    ] = None,
    task_seconds: Annotated[float | None, typer.Option(min=0.5, help="Planned length of one task.")] = None,
    vocab_size: Annotated[
        int | None, typer.Option(min=64, help="Most words in the vocabulary (5,174).")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="TOML file with fields of the training recipe to replace.")
    ] = None,
    augment: Annotated[
        str | None,
        typer.Option(
            help="How training data is varied: none, or such as copies=8,swap=0.5,spell=0.1,drop=0.05."
        ),
    ] = None,
    word_pieces: Annotated[
        int | None, typer.Option(min=0, help="Parts of words in the vocabulary (1,000; none for plain text).")
    ] = None,
    as_given: Annotated[
        bool, typer.Option("--as-given", help="Plain text: keep case, cut at blanks only, <unk> is unknown.")
    ] = False,
    twin: Annotated[
        bool, typer.Option("--twin", help="Train the full-precision twin instead of the ternary model.")
    ] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of data, weights and order (0).")] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of the coordinator; 0 takes a free one.")
    ] = 0,
    ask: Annotated[
        str | None, typer.Option(help="A request to answer with the trained model at the end.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object on the last line.")
    ] = False,
) -> None:
    """Train on this machine: a coordinator and N workers, one command."""
    from bithaul.cli.local.folder import RunFolder
    from bithaul.cli.local.session import Session, Wishes
    from bithaul.cli.local.watch import choose_display
    from bithaul.corpus.augment import parse_augmentation
    from bithaul.rounds.gates import gates_named
    from bithaul.training.recipe import read_recipe_changes

    if (train is None) != (valid is None):
        raise InvalidInput(
            "Give both --train and --valid, or neither to train on generated Truck Mate requests."
        )
    if train is None and as_given:
        raise InvalidInput("Truck Mate requests are always folded; give --as-given with your own plain text.")
    if train is not None and examples is not None:
        raise InvalidInput("--examples is for generated requests; leave it out with --train.")
    wishes = Wishes(
        preset=preset,
        workers=workers,
        train=train,
        valid=valid,
        examples=examples,
        budget_tokens=budget_tokens,
        budget_seconds=None if budget_minutes is None else budget_minutes * 60,
        threads=threads,
        merge_rule=merge_rule,
        merge_options=None if merge_options is None else dict(merge_option(text) for text in merge_options),
        gates=None if gates is None else [str(gate) for gate in gates_named(gates)],
        max_update_norm=max_update_norm,
        codec=codec,
        weights=weights,
        task_seconds=task_seconds,
        vocab_size=vocab_size,
        ternary=not twin,
        recipe=None if recipe is None else read_recipe_changes(recipe),
        augmentation=None if augment is None else parse_augmentation(augment),
        word_pieces=word_pieces,
        as_given=as_given or None,
        seed=seed,
        port=port,
        ask=ask,
    )
    folder = RunFolder(directory.resolve())
    with folder.locked(), choose_display() as display:
        outcome = Session(folder, wishes, display).run()
    if as_json:
        print(json.dumps(outcome.result), flush=True)
    else:
        for key, value in outcome.result.items():
            print(f"{key:20} {value}")
    sys.exit(outcome.exit_code)

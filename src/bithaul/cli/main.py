"""The `bithaul` command: mounts the verb families and turns errors into one line and an exit code.

Only the module of the verb that is used is imported, so `--help` stays quick. A module that has a function
named like its verb is a command, any other one exports `app`, a family of commands. Expected errors
(`BithaulError`) never show a traceback; with `--json` they become one JSON object.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import typer

from bithaul import __version__
from bithaul.errors import BithaulError


@dataclass(frozen=True)
class Verb:
    """A verb and its module: one help line, and the panel it is listed in."""

    name: str
    help: str
    panel: str


OPERATOR, WORKER, DATA, MODEL = "Run it", "Lend a machine", "Data", "The model"

VERBS = (
    Verb("up", "Train on this machine: a coordinator and N workers, one command.", OPERATOR),
    Verb("coordinator", "Serve one run's weights, corpus and work queue.", OPERATOR),
    Verb("keys", "Create, list, rotate and disable client secrets.", OPERATOR),
    Verb("worker", "Join a coordinator and train.", WORKER),
    Verb("corpus", "Generate, import and tokenize training data.", DATA),
    Verb("classify", "Turn a request into an intent with slots.", MODEL),
    Verb("evaluate", "Measure a trained model.", MODEL),
    Verb("model", "Show presets and model files.", MODEL),
    Verb("bench", "Measure how fast this machine trains.", MODEL),
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"bithaul {__version__}")
        raise typer.Exit


def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show the version."
    ),
) -> None:
    """Train small ternary language models on the computers you already own."""


def _not_loaded() -> None:
    raise AssertionError("a verb that was not loaded cannot be called")


def build_app(used: str | None) -> typer.Typer:
    """The command tree; only the verb in use is real, the others are lines of the help."""
    app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
    app.callback()(_root)
    for verb in VERBS:
        if verb.name != used:
            app.command(verb.name, help=verb.help, rich_help_panel=verb.panel)(_not_loaded)
            continue
        module = importlib.import_module(f"bithaul.cli.{verb.name}")
        command = getattr(module, verb.name, None)
        if command is not None:
            app.command(verb.name, help=verb.help, rich_help_panel=verb.panel)(command)
        else:
            app.add_typer(module.app, name=verb.name, help=verb.help, rich_help_panel=verb.panel)
    return app


def run(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script. Exits with the error's code (docs/reference/exit-codes.md)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    used = next((word for word in arguments if not word.startswith("-")), None)
    try:
        build_app(used)(args=arguments)
    except BithaulError as error:
        if "--json" in arguments:
            print(json.dumps({"error": error.error_code, "detail": error.message}), flush=True)
        print(f"bithaul: {error.message}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("bithaul: stopped.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)

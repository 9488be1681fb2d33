"""The `bithaul` command: mounts the verb families and turns errors into one line and an exit code.

Every family is a module of this room and is imported only when its verb is used, so `--help` stays quick.
Expected errors (`BithaulError`) never show a traceback; with `--json` they become one JSON object.
"""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import dataclass

import click
import typer
from typer.core import TyperGroup
from typer.main import get_command

from bithaul import __version__
from bithaul.errors import BithaulError


@dataclass(frozen=True)
class Verb:
    """Where a verb lives: `module` of this room, one help line, and the panel it is listed in."""

    module: str
    help: str
    panel: str


OPERATOR, WORKER, DATA, MODEL = "Run it", "Lend a machine", "Data", "The model"

VERBS: dict[str, Verb] = {
    "up": Verb("up", "Train on this machine: a coordinator and N workers, one command.", OPERATOR),
    "coordinator": Verb("coordinator", "Serve one run's weights, corpus and work queue.", OPERATOR),
    "keys": Verb("keys", "Create, list, rotate and disable client secrets.", OPERATOR),
    "worker": Verb("worker", "Join a coordinator and train.", WORKER),
    "corpus": Verb("corpus", "Generate, import and tokenize training data.", DATA),
    "classify": Verb("classify", "Turn a request into an intent with slots.", MODEL),
    "evaluate": Verb("evaluate", "Measure a trained model.", MODEL),
    "model": Verb("model", "Show presets and model files.", MODEL),
}


class LazyVerbs(TyperGroup):
    """A command group whose members are imported on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        verb = VERBS.get(cmd_name)
        if verb is None:
            return None
        module = importlib.import_module(f"bithaul.cli.{verb.module}")
        command = get_command(module.app)
        command.name = cmd_name
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        for panel in dict.fromkeys(verb.panel for verb in VERBS.values()):
            with formatter.section(panel):
                formatter.write_dl([(name, v.help) for name, v in VERBS.items() if v.panel == panel])


def _version(value: bool) -> None:
    if value:
        typer.echo(f"bithaul {__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=LazyVerbs,
    help="Train small ternary language models on the computers you already own.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    pass


def run(arguments: list[str] | None = None) -> None:
    """Entry point of the console script. Exits with the error's code (docs/reference/exit-codes.md)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        app(args=arguments)
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

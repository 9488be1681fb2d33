"""The `bithaul` command: mounts the verb families and turns errors into one line and an exit code.

Only the module of the verb that is used is imported, so `--help` stays quick. A module that has a function
named like its verb is a command, any other one exports `app`, a family of commands. Expected errors
(`BithaulError`), wrong usage and what the system refuses (`OSError`) never show a traceback; with `--json`
they become one JSON object. Ctrl-C and SIGTERM end a command that has no way of its own to stop.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn, TextIO

import typer

from bithaul import __version__
from bithaul.errors import BithaulError, InvalidInput, of_system
from bithaul.visible import visible

EXIT_STOPPED, EXIT_PIPE_CLOSED = 130, 141
_LINES = "\n"  # a message of ours may have several
_COMPLETION = "_BITHAUL_COMPLETE"  # set by the shell while it completes a line


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
    Verb("run", "Show, pause, resume, seed runs, kick stuck tasks, go back to old weights.", OPERATOR),
    Verb("workers", "List workers, drain them, set them aside, restore or pin them.", OPERATOR),
    Verb("keys", "Create, list, rotate, disable and delete client secrets.", OPERATOR),
    Verb("admin", "People who operate the coordinator: passwords, sessions, audit.", OPERATOR),
    Verb("backup", "Write a run into one file, and make a run from one.", OPERATOR),
    Verb("check", "Find unsafe settings before others can reach the coordinator.", OPERATOR),
    Verb("simulate", "Rehearse a run with faults on virtual time.", OPERATOR),
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
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        try:
            _call(build_app(used), arguments)
        finally:
            sys.stdout.flush()
    except typer.Exit as done:
        sys.exit(done.exit_code)
    except BithaulError as error:
        _refuse(error, arguments)
    except typer.TyperException as error:
        if not error.format_message():  # a family without a verb: Typer has shown its help
            sys.exit(error.exit_code)
        _refuse(_misuse(error), arguments)
    except (KeyboardInterrupt, typer.Abort):
        print("bithaul: stopped.", file=sys.stderr)
        sys.exit(EXIT_STOPPED)
    except BrokenPipeError:
        _leave_pipe()
    except SystemExit as done:
        if isinstance(done.__context__, BrokenPipeError):  # Rich has met the closed pipe
            _leave_pipe()
        raise
    except OSError as error:
        _refuse(of_system(error), arguments)
    sys.exit(0)


def _call(app: typer.Typer, arguments: list[str]) -> None:
    """Typer's own door would catch Ctrl-C and a closed pipe, and draw wrong usage as a box."""
    command = typer.main.get_command(app)
    if _COMPLETION in os.environ:
        command.main(arguments, prog_name="bithaul")
    with command.make_context("bithaul", arguments) as context:
        command.invoke(context)


def _misuse(error: typer.TyperException) -> BithaulError:
    """One line of what Typer says in several."""
    context = getattr(error, "ctx", None)
    words = " ".join(error.format_message().split()).rstrip(".")
    return InvalidInput(f"{words}; see {context.command_path if context else 'bithaul'} --help.")


def _refuse(error: BithaulError, arguments: Sequence[str]) -> NoReturn:
    try:
        if "--json" in arguments:
            print(json.dumps({"error": error.error_code, "detail": error.message}))
        sys.stdout.flush()
    except OSError:
        _leave(sys.stdout)
    print(f"bithaul: {visible(error.message, keep=_LINES)}", file=sys.stderr)
    sys.exit(error.exit_code)


def _leave_pipe() -> NoReturn:
    _leave(sys.stdout, sys.stderr)
    sys.exit(EXIT_PIPE_CLOSED)


def _leave(*streams: TextIO) -> None:
    """Nothing can be written there: what is buffered goes nowhere, also when Python flushes it at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        os.dup2(nowhere, stream.fileno())

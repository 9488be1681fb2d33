"""`bithaul admin`: people of one run, their passwords and sessions, and the audit log, on the machine itself.

Works on the run's folder, with the coordinator running or not. A password is printed once and kept nowhere.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from bithaul.cli.opened import Directory, Json, opened, shown_time
from bithaul.errors import InvalidInput
from bithaul.visible import visible

app = typer.Typer(no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The person's name: a-z, 0-9, '.', '_', '-'.")]


@app.command()
def create(name: Name, directory: Directory, as_json: Json = False) -> None:
    """Let a person sign in; prints the first password, once."""
    from bithaul.coordinator.identity.people import create_person

    with opened(directory) as c:
        password = create_person(c, name)
    _print_password(name, password, as_json=as_json)


@app.command("list")
def list_all(directory: Directory, as_json: Json = False) -> None:
    """List people."""
    from bithaul.coordinator.identity.people import list_people

    with opened(directory) as c:
        people = list_people(c)
    if as_json:
        print(json.dumps([asdict(person) for person in people]))
        return
    for person in people:
        state = "disabled" if person.disabled else "first password" if person.must_change else "active"
        print(f"{person.name:24} {state:15} password of {shown_time(person.password_changed_at)}")


@app.command("reset-password")
def reset(name: Name, directory: Directory, as_json: Json = False) -> None:
    """Make a new password, end the person's sessions, and enable the person again."""
    from bithaul.coordinator.identity.people import reset_password

    with opened(directory) as c:
        password = reset_password(c, name)
    _print_password(name, password, as_json=as_json)


@app.command()
def disable(name: Name, directory: Directory, as_json: Json = False) -> None:
    """End a person's sessions and refuse sign-in from now on; reset-password undoes it."""
    from bithaul.coordinator.identity.people import disable_person

    with opened(directory) as c:
        disable_person(c, name)
    print(json.dumps({"name": name, "disabled": True}) if as_json else f"{name} is disabled.")


@app.command()
def sessions(
    directory: Directory,
    end: Annotated[str | None, typer.Option(help="End the session with this id.")] = None,
    end_all: Annotated[str | None, typer.Option(help="End all sessions of this person.")] = None,
    as_json: Json = False,
) -> None:
    """List who is signed in, or end sessions at once."""
    from bithaul.coordinator.identity.people import require
    from bithaul.coordinator.identity.sessions import Sessions

    if end is not None and end_all is not None:
        raise InvalidInput("Give --end or --end-all, not both.")
    with opened(directory) as c:
        store = Sessions(c)
        if end is not None:
            store.end(end, actor="cli")
        if end_all is not None:
            with c.database.read() as connection:
                person = require(connection, end_all)
            store.end_all(person.id, actor="cli")
        live = store.live()
    if as_json:
        print(json.dumps([asdict(session) for session in live]))
        return
    for session in live:
        seen = shown_time(session.last_seen_at)
        print(f"{session.sid}  {session.name:16} last seen {seen} from {session.address}")


@app.command("allow-passwords")
def allow_passwords(
    directory: Directory,
    minutes: Annotated[
        float, typer.Option(min=1, max=1440, help="Passwords count again for so long.")
    ] = 30.0,
    off: Annotated[bool, typer.Option("--off", help="End it at once.")] = False,
    as_json: Json = False,
) -> None:
    """Let people sign in by password for a while, when the foreign provider that is set is gone."""
    from bithaul.coordinator.identity.emergency import close_passwords, open_passwords

    with opened(directory) as c:
        until = None if off else open_passwords(c, seconds=minutes * 60)
        if off:
            close_passwords(c)
    if as_json:
        print(json.dumps({"until": until}))
    elif until is None:
        print("Only the provider signs people in.")
    else:
        print(
            f"Passwords count until {shown_time(until)}. Who has none gets one from: "
            f"bithaul admin reset-password NAME --dir {directory}"
        )


@app.command()
def audit(
    directory: Directory,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most so many rows.")] = 50,
    action: Annotated[str | None, typer.Option(help="Only this action, or all that begin with it.")] = None,
    as_json: Json = False,
) -> None:
    """Show who did what, newest first."""
    from bithaul.coordinator.identity.audit import read_audit

    with opened(directory) as c:
        rows = read_audit(c, limit=limit, action=action)
    if as_json:
        print(json.dumps([asdict(row) for row in rows]))
        return
    for row in rows:
        line = f"{shown_time(row.time)}  {row.actor:16} {row.action:24} {row.subject} {row.detail}"
        print(visible(line))


def _print_password(name: str, password: str, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"name": name, "password": password}))
        return
    print(f"name:     {name}\npassword: {password}\nShown once; it must be changed at the first sign-in.")

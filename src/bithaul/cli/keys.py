"""`bithaul keys`: clients of one run and their secrets, on the coordinator's machine.

Works on the run's folder, with the coordinator running or not. A secret is printed once and kept nowhere.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from bithaul.cli.opened import Directory, Json, opened, shown_time
from bithaul.exchange.messages import ADMIN_SCOPE, WORKER_SCOPE

app = typer.Typer(no_args_is_help=True)


@app.command()
def create(
    client_id: Annotated[str, typer.Argument(help="a-z, 0-9, '.', '_', '-'; one per machine.")],
    directory: Directory,
    admin: Annotated[bool, typer.Option("--admin", help="For scripts that operate the coordinator.")] = False,
    as_json: Json = False,
) -> None:
    """Create a client and print its secret, once."""
    from bithaul.coordinator.identity.clients import create_client

    scope = ADMIN_SCOPE if admin else WORKER_SCOPE
    with opened(directory) as c:
        secret = create_client(c, client_id, scope=scope)
    _print_secret(client_id, secret, scope=scope, as_json=as_json)


@app.command("list")
def list_keys(directory: Directory, as_json: Json = False) -> None:
    """List clients, without secrets."""
    from bithaul.coordinator.identity.clients import list_clients

    with opened(directory) as c:
        clients = list_clients(c)
    if as_json:
        print(json.dumps([asdict(client) for client in clients]))
        return
    for client in clients:
        state = "disabled" if client.disabled else "active"
        used = "never" if client.last_used_at is None else shown_time(client.last_used_at)
        if client.last_used_from is not None:
            used += f" from {client.last_used_from}"
        print(f"{client.id:24} {client.scope:16} {state:8} {client.hint}…  last used {used}")


@app.command()
def rotate(
    client_id: Annotated[str, typer.Argument(help="The client.")],
    directory: Directory,
    grace: Annotated[
        float, typer.Option(help="Seconds in which the old secret may still fetch tokens.")
    ] = 0.0,
    as_json: Json = False,
) -> None:
    """Give a client a new secret; its tokens die at once."""
    from bithaul.coordinator.identity.clients import rotate_client

    with opened(directory) as c:
        secret = rotate_client(c, client_id, grace_seconds=grace)
    _print_secret(client_id, secret, scope=None, as_json=as_json)


@app.command()
def disable(
    client_id: Annotated[str, typer.Argument(help="The client.")], directory: Directory, as_json: Json = False
) -> None:
    """Refuse a client's secret and tokens from now on."""
    from bithaul.coordinator.identity.clients import disable_client

    with opened(directory) as c:
        disable_client(c, client_id)
    print(json.dumps({"client_id": client_id, "disabled": True}) if as_json else f"{client_id} is disabled.")


@app.command()
def enable(
    client_id: Annotated[str, typer.Argument(help="The client.")], directory: Directory, as_json: Json = False
) -> None:
    """Accept a disabled client's secret again."""
    from bithaul.coordinator.identity.clients import enable_client

    with opened(directory) as c:
        enable_client(c, client_id)
    print(json.dumps({"client_id": client_id, "disabled": False}) if as_json else f"{client_id} is enabled.")


@app.command()
def delete(
    client_id: Annotated[str, typer.Argument(help="The client.")], directory: Directory, as_json: Json = False
) -> None:
    """Forget a client; its secret and tokens are refused from now on."""
    from bithaul.coordinator.identity.clients import delete_client

    with opened(directory) as c:
        delete_client(c, client_id)
    print(json.dumps({"client_id": client_id, "deleted": True}) if as_json else f"{client_id} is deleted.")


@app.command()
def register(
    client_id: Annotated[str, typer.Argument(help="a-z, 0-9, '.', '_', '-'.")],
    directory: Directory,
    redirect_uri: Annotated[
        list[str], typer.Option("--redirect-uri", help="Where codes may be sent; may be given again.")
    ],
    logout_uri: Annotated[
        list[str] | None, typer.Option("--logout-uri", help="Where signing out may lead; may be given again.")
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="No secret: an app in a browser or phone.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Register an application that signs people in here (OpenID Connect)."""
    from bithaul.coordinator.identity.apps import register_app
    from bithaul.coordinator.identity.clients import APP_SCOPE

    with opened(directory) as c:
        secret = register_app(
            c, client_id, redirect_uris=redirect_uri, logout_uris=logout_uri or (), public=public
        )
    if secret is not None:
        _print_secret(client_id, secret, scope=APP_SCOPE, as_json=as_json)
    else:
        told = {"client_id": client_id, "secret": None, "scope": APP_SCOPE}
        print(json.dumps(told) if as_json else f"client id: {client_id}")


@app.command("rotate-signing")
def rotate_signing(
    directory: Directory,
    leaked: Annotated[
        bool, typer.Option("--leaked", help="Throw all keys away and make new ones: every token is void.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Sign with the next key; the old one stays valid until its last token has expired."""
    from bithaul.coordinator.identity.keys import SigningKeys

    with opened(directory) as c:
        keys = SigningKeys(c)
        if leaked:
            keys.replace_all()
        else:
            keys.rotate()
        states = keys.states()
    if as_json:
        print(json.dumps([asdict(state) for state in states]))
        return
    for state in states:
        print(f"{state.kid}  {state.state}")


def _print_secret(client_id: str, secret: str, *, scope: str | None, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"client_id": client_id, "secret": secret} | ({"scope": scope} if scope else {})))
        return
    print(f"client id: {client_id}\nsecret:    {secret}\nThis secret is shown once; store it now.")

"""`vitfit token create|list|revoke`: manages access tokens on the machine of the server.

Heavy packages are imported inside the functions, so that `vitfit --help` stays fast.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from vitfit.errors import Problem
from vitfit.errors import VitfitError as ClientError
from vitfit.render import add_row, say, show_table, table_of
from vitfit.verbs import print_json, verb

from models.errors import VitfitError

if TYPE_CHECKING:
    from service.api.access_tokens import Tokens


def token_verbs() -> typer.Typer:
    tokens = typer.Typer(
        help="Manage the access tokens of a server, on the machine of the server.", no_args_is_help=True
    )
    verb(tokens, "create")(create_token)
    verb(tokens, "list")(list_tokens)
    verb(tokens, "revoke")(revoke_token)
    return tokens


@contextlib.contextmanager
def our_errors() -> Iterator[None]:
    """Convert server-side errors to the client's error type, which the command line prints."""
    try:
        yield
    except VitfitError as error:
        title = error.code.replace("-", " ").capitalize()
        raise ClientError(Problem(f"/problems/{error.code}", title, None, error.detail, error.facts)) from error


DataOption = Annotated[
    Path | None, typer.Option(help="Data folder of the server. (default: VITFIT_DATA or vitfit-data)")
]


@contextlib.contextmanager
def _tokens(data: Path | None) -> "Iterator[Tokens]":
    """Open the access tokens of the server that uses this data folder. The server may be running.

    Raises: ClientError if no server has used the folder yet, because it is then probably the wrong one.
    """
    from service.api.access_tokens import Tokens
    from service.core.settings import Settings
    from service.db.migrate import upgrade
    from service.db.tables import Store

    settings = Settings(data=data) if data else Settings()
    if isinstance(settings.database, Path) and not settings.database.is_file():
        state = "has no vitfit.sqlite" if settings.data.is_dir() else "does not exist"
        raise ClientError.local(
            "no-such-folder",
            f"The data folder {settings.data} {state}, so no server has used it. Give the folder of your server with "
            f"--data or VITFIT_DATA. For a new server, first start it: vitfit serve --data {settings.data}",
            path=str(settings.data),
        )
    with our_errors(), contextlib.closing(Store(settings.database)) as store:
        upgrade(store)
        yield Tokens(store)


def create_token(
    name: Annotated[str, typer.Argument(help="Name of the person who owns the token.", show_default=False)],
    scope: Annotated[
        list[str],
        typer.Option(help="Scope: read, submit, agent or admin. Can be repeated.", show_default=False),
    ],
    data: DataOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Create an access token. Its secret is shown only now."""
    with _tokens(data) as tokens:
        token, secret = tokens.create(name, tuple(scope))
    if as_json:
        print_json({**token.to_json(), "secret": secret})
    else:
        say(secret)


def list_tokens(
    data: DataOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, one token per line.")] = False,
) -> None:
    """List all access tokens, without their secrets."""
    with _tokens(data) as tokens:
        found = tokens.all()
    if as_json:
        for token in found:
            print_json(token.to_json())
        return
    table = table_of("id", "name", "scopes", "created", "revoked")
    for token in found:
        revoked = f"{token.revoked_at:%Y-%m-%d %H:%M}" if token.revoked_at else ""
        add_row(table, token.id, token.name, ", ".join(token.scopes), f"{token.created_at:%Y-%m-%d %H:%M}", revoked)
    show_table(table)


def revoke_token(
    token: Annotated[str, typer.Argument(help="Id of the token, from `vitfit token list`.", show_default=False)],
    data: DataOption = None,
) -> None:
    """Revoke an access token. It is rejected from the next request on."""
    with _tokens(data) as tokens:
        tokens.revoke(token)

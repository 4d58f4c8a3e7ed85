"""Turn functions into commands of `vitfit`.

This file defines the options, errors and exit status of a command, and loads the commands of other packages.
"""

import functools
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Annotated, Any

import typer

from vitfit.client import DEFAULT_SERVER, Client
from vitfit.errors import VitfitError
from vitfit.flatten import flattened
from vitfit.machine import limit_hit

GROUP = "vitfit.verbs"
SERVER_VERBS = ("serve", "compress", "measure", "token")
INTERRUPTED = 130


@dataclass(frozen=True)
class ServerOptions:
    """Options for the server's address, the access token, and the output format."""

    server: Annotated[str, typer.Option(envvar="VITFIT_SERVER", help="Address of the vitfit server.")] = DEFAULT_SERVER
    token: Annotated[
        str | None,
        typer.Option(
            envvar="VITFIT_TOKEN", help="Access token from `vitfit token create`, if the server requires one."
        ),
    ] = None
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, one document per line.")] = False

    def client(self) -> Client:
        """Return a client of this server."""
        return Client(self.server, token=self.token)


def verb(app: typer.Typer, name: str | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that registers a function as a command.

    Parameters that are dataclasses become groups of options. An error is printed as one paragraph on stderr.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        app.command(name or function.__name__)(_guarded(flattened(function)))
        return function

    return decorate


def _guarded(run: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(run)
    def guarded(**values: Any) -> None:
        try:
            run(**values)
        except VitfitError as error:
            if values.get("as_json"):
                print_json(error.problem.to_json())
            fail(error.detail)
        except BrokenPipeError:  # the reader has closed the pipe, as in `vitfit trials JOB | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except (MemoryError, ImportError, RuntimeError) as error:
            reason = limit_hit(error)
            if reason is None:
                raise
            fail(reason)
        except OSError as error:
            reason = limit_hit(error)
            if reason is not None:
                fail(reason)
            place = f"{error.filename}: " if error.filename else ""
            fail(f"{place}{error.strerror or error}.")
        except KeyboardInterrupt:
            fail("Interrupted.", status=INTERRUPTED)

    return guarded


def fail(detail: str, status: int = 1) -> None:
    """Print the reason on stderr and end the command. Raises: typer.Exit."""
    typer.echo(f"error: {detail}", err=True)
    raise typer.Exit(status)


def print_json(value: Any) -> None:
    """Print one JSON document on one line of stdout, and flush it."""
    typer.echo(json.dumps(value, ensure_ascii=False))
    sys.stdout.flush()


def load_verbs(app: typer.Typer) -> None:
    """Add the commands of all installed packages in the entry point group `vitfit.verbs`.

    If a package is missing, its commands only explain how to install it.
    """
    found = sorted(entry_points(group=GROUP), key=lambda point: point.name)
    for point in found:
        try:
            point.load()(app)
        except ImportError as error:
            _explain_missing(app, f"cannot be loaded: {error}")
    if not found:
        _explain_missing(app, "is not installed here")


def _explain_missing(app: typer.Typer, state: str) -> None:
    for name in SERVER_VERBS:
        app.command(
            name,
            help="(This command needs the package vitfit-server.)",
            add_help_option=False,
            context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
        )(_missing(name, state))


def _missing(name: str, state: str) -> Callable[[typer.Context], None]:
    def explain(context: typer.Context) -> None:
        fail(
            f"`vitfit {name}` needs the package vitfit-server, which {state}. "
            "Run `make install` in a checkout of vitfit, or use the image in docker/. "
            "The other commands need only the address of a server: give it with --server or VITFIT_SERVER."
        )

    return explain

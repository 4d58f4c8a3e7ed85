"""Start the server with `serve(settings)`, or with `python -m service.serve --data DIR --port 0 --ready-file FILE`."""

import argparse
import errno
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import uvicorn
from pydantic import ValidationError

from models.atomic_write import write_whole
from models.errors import VitfitError
from service.app import create_app
from service.core import logs
from service.core.settings import Settings, wrong_settings
from service.middleware.connections import LimitedConnection, raise_descriptors

LOOPBACK = ("127.0.0.1", "::1", "localhost")
CANNOT_START = 2  # exit status
GOODBYE_S = 5  # time that running downloads have to finish at shutdown
# Longer than the usual interval between polls: if the server closes a connection at the moment that the client
# uses it again, that request fails.
KEEP_ALIVE_S = 75


class StartError(Exception):
    """The server cannot start. The message is one line that gives the reason."""


def serve(settings: Settings, ready_file: Path | None = None) -> None:
    """Serve until SIGTERM or SIGINT.

    As soon as the server answers requests, it prints its address and writes it to `ready_file`. The file is written
    atomically, so a reader never sees a part of the address.

    Raises: SystemExit with status 2, after one line on stderr, if the server cannot start; with status 0 after SIGTERM.
    """
    logs.set_up(settings.log_format)
    raise_descriptors()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # for the time before and after uvicorn's own handler
    try:
        _check_door(settings)
        with _listen(settings) as listener:
            _serve_on(listener, settings, ready_file)
    except StartError as error:
        print(f"vitfit: {error}", file=sys.stderr)
        sys.exit(CANNOT_START)
    except KeyboardInterrupt:
        pass


def _listen(settings: Settings) -> socket.socket:
    """Return a bound socket. Raises: StartError."""
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        # IPPROTO_TCP is given explicitly because asyncio disables Nagle's algorithm only for such sockets. The headers
        # and the body of a response are two writes, so Nagle's algorithm would delay the second one.
        listener = socket.socket(found[0][0], socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(found[0][4])
    except OSError as error:
        raise StartError(_why_not_listening(settings, error)) from error
    return listener


def _why_not_listening(settings: Settings, error: OSError) -> str:
    where = f"{settings.host}:{settings.port}"
    if error.errno == errno.EADDRINUSE:
        return f"Port {where} is in use. Stop the program that uses it, or choose another port (0 chooses a free one)."
    return f"Cannot listen on {where}: {error.strerror or error}. Choose another host or port."


def _serve_on(listener: socket.socket, settings: Settings, ready_file: Path | None) -> None:
    try:
        app = create_app(settings)
    except VitfitError as error:
        raise StartError(error.detail) from error
    except OSError as error:
        raise StartError(
            f"The data folder {settings.data} cannot be written: {error.strerror or error}. "
            "Choose another folder (VITFIT_DATA), or change the permissions of this folder."
        ) from error
    config = uvicorn.Config(
        app,
        http=LimitedConnection,
        log_config=None,
        timeout_graceful_shutdown=GOODBYE_S,
        timeout_keep_alive=KEEP_ALIVE_S,
        server_header=False,
    )
    _Server(config, settings, ready_file).run(sockets=[listener])


def _check_door(settings: Settings) -> None:
    """Raises: StartError if the server would accept callers without a token from other machines."""
    if settings.anonymous and settings.host not in LOOPBACK:
        raise StartError(
            f"With --anonymous, the server can listen on {', '.join(LOOPBACK)} only, not on {settings.host}. "
            "Leave out --anonymous, and give each person an access token: vitfit token create NAME --scope submit."
        )


class _Server(uvicorn.Server):
    """A uvicorn server that announces its address when it is ready."""

    def __init__(self, config: uvicorn.Config, settings: Settings, ready_file: Path | None) -> None:
        super().__init__(config)
        self._host = settings.host
        self._ready_file = ready_file

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        assert sockets
        host = f"[{self._host}]" if ":" in self._host else self._host
        url = f"http://{host}:{sockets[0].getsockname()[1]}"
        print(f"vitfit serves {url}", flush=True)
        if self._ready_file:
            write_whole(self._ready_file, f"{url}\n")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. An omitted option takes its value from the VITFIT_* variable, then from the default."""
    parser = argparse.ArgumentParser(prog="service.serve", description="The vitfit server.")
    parser.add_argument("--data", type=Path, help="folder in which the server stores all of its files")
    parser.add_argument("--host", help="address to listen on")
    parser.add_argument("--port", type=int, help="port to listen on; 0 chooses a free port")
    parser.add_argument("--engine", choices=["pipeline", "fake"], help="engine that runs the jobs; fake is for tests")
    parser.add_argument(
        "--allow",
        dest="allowed_roots",
        action="append",
        type=Path,
        help="folder below which users may name data sets by their path; can be repeated",
    )
    parser.add_argument("--ready-file", type=Path, help="file to which the server writes its address when it is ready")
    options: dict[str, Any] = vars(parser.parse_args(arguments))
    ready_file = options.pop("ready_file")
    try:
        settings = Settings(**{name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        parser.error(wrong_settings(error))
    serve(settings, ready_file)


if __name__ == "__main__":
    main()

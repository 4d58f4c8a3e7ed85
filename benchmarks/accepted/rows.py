"""Try many models one after the other: each in a process of its own, with a stored row for each."""

import json
import multiprocessing
import resource
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def stored_rows(stored: Path) -> list[Row]:
    return [json.loads(line) for line in stored.read_text().splitlines()] if stored.exists() else []


def store_row(stored: Path, row: Row) -> None:
    """Print a row, and add it to the file of rows."""
    print(json.dumps(row), flush=True)
    with stored.open("a") as handle:
        handle.write(json.dumps(row) + "\n")


def in_a_process(
    work: Callable[..., Row], *arguments: Any, preload: Sequence[str], seconds: int, memory: int
) -> Row | str:
    """Return the row that `work(*arguments)` gives in a process of its own, or the reason why the process failed.

    preload: modules that the parent of all these processes has loaded already, which saves time. memory: upper
    limit in bytes.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_tell, args=(theirs, memory, work, arguments))
    process.start()
    theirs.close()
    try:
        if ours.poll(seconds):
            row: Row = ours.recv()
            return row
    except EOFError:
        process.join()
        return f"stopped with status {process.exitcode}"
    finally:
        process.kill()
        process.join()
    return f"not done in {seconds} s"


def _tell(pipe: Connection, memory: int, work: Callable[..., Row], arguments: tuple[Any, ...]) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    pipe.send(work(*arguments))

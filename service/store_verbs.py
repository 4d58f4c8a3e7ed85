"""`vitfit sweep`, `vitfit backup` and `vitfit restore`: the files of a server, on the machine of the server.

Heavy packages are imported inside the functions, so that `vitfit --help` stays fast.
"""

import contextlib
from pathlib import Path
from typing import Annotated

import typer
from vitfit.render import say

from service.token_verbs import DataOption, our_errors


def sweep(
    data: DataOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete what is listed.")] = False,
) -> None:
    """List the stored jobs, models and data sets that the database does not know. With --yes, delete them."""
    from service.core.data_folder import DataFolder
    from service.core.settings import Settings
    from service.db.migrate import upgrade
    from service.db.tables import Store
    from service.library.sweep import delete_unknown, unknown_files
    from service.storage.open_storage import open_storage

    settings = Settings(data=data) if data else Settings()
    folder = DataFolder(settings.data)
    with our_errors(), contextlib.closing(Store(settings.database)) as store:
        folder.create()
        upgrade(store)
        storage = open_storage(settings)
        keys = unknown_files(store, folder, storage)
        for key in keys:
            say(key)
        if yes:
            delete_unknown(store, folder, storage, keys)
            say(f"{len(keys)} deleted.")
        else:
            say(f"{len(keys)} would be deleted. Nothing was changed. To delete them: vitfit sweep --yes")


def backup(
    target: Annotated[Path, typer.Argument(help="A new folder for the backup.", show_default=False)],
    data: DataOption = None,
) -> None:
    """Copy the database and the files of a server to a new folder. The server may be running."""
    from service.core.data_folder import DataFolder
    from service.core.settings import Settings
    from service.library.backup import back_up

    settings = Settings(data=data) if data else Settings()
    with our_errors():
        say(f"{back_up(DataFolder(settings.data), target)} files are in {target}.")


def restore(
    source: Annotated[Path, typer.Argument(help="The folder of a backup.", show_default=False)],
    data: DataOption = None,
) -> None:
    """Copy a backup to an empty data folder. The server must not be running."""
    from service.core.data_folder import DataFolder
    from service.core.settings import Settings
    from service.library.backup import restore as restored

    settings = Settings(data=data) if data else Settings()
    with our_errors():
        say(f"{restored(source, DataFolder(settings.data))} files are in {settings.data}.")

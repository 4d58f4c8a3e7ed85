"""Brings the database to this version's tables, once, when a server starts."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from models.errors import VitfitError
from service.store import Store

MIGRATIONS = Path(__file__).parent / "migrations"


class NewerData(VitfitError):
    """The data folder was written by a newer version."""

    code = "newer-data"


def upgrade(store: Store) -> None:
    """Run the missing migrations in one transaction; a second server waits for it and finds nothing to do.

    Raises: NewerData when the database has a revision that this version does not know.
    """
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    with store.write() as session:
        connection = session.connection()
        current = MigrationContext.configure(connection).get_current_revision()
        if current is not None and current not in known:
            raise NewerData(
                f"The data folder's database has revision {current!r}, which this version of vitfit does not know: "
                "a newer version wrote it. Start that version, or choose another data folder.",
                revision=current,
            )
        config.attributes["connection"] = connection
        command.upgrade(config, "head")

"""Migrates the database to the tables of this version. A server does this once, when it starts."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from models.errors import VitfitError
from service.core.errors import DatabaseUnusable
from service.db.engine import POSTGRESQL, first_line, one_at_a_time
from service.db.tables import Row, Store

MIGRATIONS = Path(__file__).parent / "migrations"


class NewerData(VitfitError):
    """A newer version of vitfit has written to the data folder, the database or the storage."""

    code = "newer-data"


MISSING_RIGHTS = text(
    "SELECT r || ' on ' || t FROM unnest(CAST(:tables AS text[])) t, "
    "unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) r "
    "WHERE NOT has_table_privilege(t, r) ORDER BY 1"
)


def upgrade(store: Store) -> None:
    """Run the missing migrations in one transaction.

    If two servers start at the same time, the second one waits for the first and then finds nothing to do.

    Raises: NewerData when this version does not know the revision of the database; DatabaseUnusable when the database
    is missing or its user lacks a privilege; DatabaseAway when the database does not answer.
    """
    try:
        with store.write() as session:
            one_at_a_time(session, "schema")
            _migrate(session)
            _check_rights(store, session)
    except DBAPIError as error:
        raise DatabaseUnusable(
            f"The database {store.name} cannot be used: {first_line(error)}. The database must exist, and its user "
            "must have the right to create and change tables in it (docs/growing.md)."
        ) from error


def _migrate(session: Session) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    connection = session.connection()
    current = MigrationContext.configure(connection).get_current_revision()
    if current is not None and current not in known:
        raise NewerData(
            f"The database has revision {current!r}, which this version of vitfit does not know, because "
            "a newer version wrote it. Start the newer version, or choose another data folder or database.",
            revision=current,
        )
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _check_rights(store: Store, session: Session) -> None:
    """Check at the start of the server that the database user may read and write every table.

    Otherwise a missing privilege would only show when the first job ends. Raises: DatabaseUnusable.
    """
    if store.engine.dialect.name != POSTGRESQL:
        return
    missing = list(session.scalars(MISSING_RIGHTS, {"tables": [table.name for table in Row.metadata.sorted_tables]}))
    if missing:
        raise DatabaseUnusable(
            f"The user of the database {store.name} lacks {', '.join(missing[:4])}. "
            "Ask the owner of the tables to grant these rights, or connect as the owner."
        )

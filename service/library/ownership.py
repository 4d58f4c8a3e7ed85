"""The storage belongs to one database. A server does not start on the files of another one.

Otherwise a server with an empty or a wrong database would list no jobs, although their files are there, and an order to
sweep would delete all of them.
"""

import secrets

from sqlalchemy import select

from models.errors import VitfitError
from service.core.data_folder import DataFolder
from service.db.engine import one_at_a_time
from service.db.tables import DatasetRow, IdentityRow, JobRow, ModelRow, Store
from service.storage.base import Storage

KINDS: dict[str, type[JobRow] | type[ModelRow] | type[DatasetRow]] = {
    "jobs": JobRow,
    "models": ModelRow,
    "datasets": DatasetRow,
}
IDENTITY = "identity"
"""The kind of bundle that says to which database a storage belongs. Its id is the id of the database."""


class ForeignData(VitfitError):
    """The files in the data folder or the bucket belong to another database."""

    code = "foreign-data"


def claim(store: Store, folder: DataFolder, storage: Storage) -> str:
    """Write the id of the database into the storage, if it has none yet. Return the id.

    Raises: ForeignData when the storage has the id of another database, or files that this database does not know.
    """
    mine = _identity(store)
    owners = storage.ids(IDENTITY)
    if mine in owners:
        return mine
    if owners:
        raise _foreign(f"They belong to the database with the id {owners[0]}; this one has the id {mine}.")
    stored = {kind: set(storage.ids(kind)) for kind in KINDS}
    count = sum(map(len, stored.values()))
    if count and not _knows_any(store, stored):
        raise _foreign(f"This database does not know any of the {count} jobs, models and data sets there.")
    with folder.uploading() as scratch:
        (scratch / "database").write_text(mine)
        storage.put(f"{IDENTITY}/{mine}", scratch)
    return mine


def _foreign(why: str) -> ForeignData:
    return ForeignData(
        f"The files in the data folder or the bucket are of another database. {why} The database may have been emptied,"
        " replaced or lost. Restore it from a backup (vitfit restore), or give the address of the right one"
        " (VITFIT_DATA, VITFIT_DATABASE_URL). If nobody needs the files, `vitfit sweep` lists them, and `vitfit sweep"
        " --yes` deletes them."
    )


def _identity(store: Store) -> str:
    with store.write() as session:
        one_at_a_time(session, IDENTITY)
        found = session.scalar(select(IdentityRow.id))
        if found is None:
            found = f"db_{secrets.token_hex(10)}"
            session.add(IdentityRow(id=found))
    return found


def _knows_any(store: Store, stored: dict[str, set[str]]) -> bool:
    with store.read() as session:
        return any(stored[kind] & set(session.scalars(select(row.id))) for kind, row in KINDS.items())

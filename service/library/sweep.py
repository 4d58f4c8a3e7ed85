"""Files of jobs, models and data sets that no database row knows. They are deleted only on an order by hand."""

import shutil

from sqlalchemy import select

from service.core.data_folder import DataFolder
from service.db.tables import Store
from service.library.ownership import IDENTITY, KINDS
from service.storage.base import Storage


def unknown_files(store: Store, folder: DataFolder, storage: Storage) -> list[str]:
    """Return the keys of the stored things that the database does not know, such as `jobs/job_1`."""
    found = {f"{kind}/{item}" for kind in KINDS for item in storage.ids(kind)}
    found |= {f"jobs/{path.name}" for path in folder.jobs.iterdir()}
    known = set()
    with store.read() as session:  # after listing the files: the row of a new job exists before its files
        for kind, row in KINDS.items():
            known |= {f"{kind}/{item}" for item in session.scalars(select(row.id))}
    return sorted(found - known)


def delete_unknown(store: Store, folder: DataFolder, storage: Storage, keys: list[str]) -> None:
    """Delete these things. A storage without known files then belongs to no other database any more."""
    for key in keys:
        storage.delete(key)
        shutil.rmtree(folder.root / key, ignore_errors=True)
    if not any(storage.ids(kind) for kind in KINDS):
        for owner in storage.ids(IDENTITY):
            storage.delete(f"{IDENTITY}/{owner}")

"""Uploaded models and data sets.

Each is a validated bundle of files and a row, which are added and deleted together.
"""

import contextlib
import secrets
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from models.errors import UnknownName
from service.core.errors import Away, NotFound, in_use
from service.db.job_states import UNFINISHED
from service.db.tables import DatasetRow, JobRow, ModelRow, Store
from service.storage.base import Storage
from service.storage.digests import write_digests

R = TypeVar("R", ModelRow, DatasetRow)
NOUN: dict[type[Any], str] = {ModelRow: "model", DatasetRow: "data set"}
PREFIX: dict[type[Any], str] = {ModelRow: "mdl", DatasetRow: "dat"}


class Library:
    """The models and data sets that users have uploaded."""

    def __init__(self, store: Store, storage: Storage) -> None:
        self._store, self._storage = store, storage

    def add(self, kind: type[R], uploaded: Path, name: str, description: dict[str, Any], *, owner: str = "") -> R:
        """Store a validated upload and create its row.

        Args:
            kind: ModelRow or DatasetRow.
            uploaded: the folder with the validated files, which may be moved out of it.
            name: the name that the user gave.
            description: what the validation has found.
            owner: the owner of the new item.
        """
        row = kind(id=f"{PREFIX[kind]}_{secrets.token_hex(10)}", owner=owner, name=name, description=description)
        key = bundle_key(kind, row.id)
        write_digests(uploaded)
        try:
            self._storage.put(key, uploaded)  # before the row: as soon as the row exists, jobs may use the files
            with self._store.write() as session:
                session.add(row)
        except BaseException:
            with contextlib.suppress(Away):
                self._storage.delete(key)
            raise
        return row

    def get(self, kind: type[R], item_id: str, owner: str | None = None) -> R:
        """Return the row of an item.

        owner: the caller; None may see the items of all owners. Raises: NotFound, also for an item of another owner.
        """
        with self._store.read() as session:
            return _require(session, kind, item_id, owner)

    def path(self, kind: type[R], item_id: str, owner: str | None = None) -> Path:
        """Return a local folder with the files of an item that a request names.

        Raises: UnknownName, with the ids of the caller's own items (the newest 100).
        """
        with self._store.read() as session:
            row = session.get(kind, item_id)
            if row is None or owner not in (None, row.owner):
                mine = select(kind.id) if owner is None else select(kind.id).where(kind.owner == owner)
                newest = session.scalars(mine.order_by(kind.created_at.desc()).limit(100))
                raise UnknownName(f"{NOUN[kind]} id", item_id, list(newest))
        return self._storage.folder(bundle_key(kind, item_id))

    def delete(self, kind: type[R], item_id: str, owner: str | None = None) -> None:
        """Delete an item and its files. Raises: NotFound; Conflict while an unfinished job uses it."""
        with self._store.write() as session:
            # A new job has to wait, and then fails: its item is gone.
            _require(session, kind, item_id, owner, lock=True)
            column = JobRow.model_id if kind is ModelRow else JobRow.dataset_id
            users = list(session.scalars(select(JobRow.id).where(column == item_id, JobRow.status.in_(UNFINISHED))))
            if users:
                raise in_use(NOUN[kind], item_id, users)
            session.execute(delete(kind).where(kind.id == item_id))
        self._storage.delete(bundle_key(kind, item_id))


def bundle_key(kind: type[Any], item_id: str) -> str:
    """Return the storage key of the files of a model or data set."""
    return f"{kind.__tablename__}/{item_id}"


def _require(session: Session, kind: type[R], item_id: str, owner: str | None, *, lock: bool = False) -> R:
    row = session.get(kind, item_id, with_for_update=lock)
    if row is None or owner not in (None, row.owner):
        raise NotFound(NOUN[kind], item_id)
    return row

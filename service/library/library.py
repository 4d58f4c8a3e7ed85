"""Models and data sets: a validated folder and its row, which come and go together."""

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

R = TypeVar("R", ModelRow, DatasetRow)
NOUN: dict[type[Any], str] = {ModelRow: "model", DatasetRow: "data set"}
PREFIX: dict[type[Any], str] = {ModelRow: "mdl", DatasetRow: "dat"}


class Library:
    """Everything that users have uploaded."""

    def __init__(self, store: Store, storage: Storage) -> None:
        self._store, self._storage = store, storage

    def add(self, kind: type[R], uploaded: Path, name: str, description: dict[str, Any], owner: str = "") -> R:
        """Keep the files of a validated folder and remember them."""
        row = kind(id=f"{PREFIX[kind]}_{secrets.token_hex(10)}", owner=owner, name=name, description=description)
        key = bundle_key(kind, row.id)
        try:
            self._storage.put(key, uploaded)  # before its row: what has a row can be used
            with self._store.write() as session:
                session.add(row)
        except BaseException:
            with contextlib.suppress(Away):
                self._storage.delete(key)
            raise
        return row

    def get(self, kind: type[R], item_id: str, owner: str | None = None) -> R:
        """owner: who asks; None may see all. Raises: NotFound, also for what is another's."""
        with self._store.read() as session:
            return _require(session, kind, item_id, owner)

    def path(self, kind: type[R], item_id: str, owner: str | None = None) -> Path:
        """A folder with the files of an item that a request names. Raises: UnknownName with the asker's own."""
        with self._store.read() as session:
            row = session.get(kind, item_id)
            if row is None or owner not in (None, row.owner):
                mine = select(kind.id) if owner is None else select(kind.id).where(kind.owner == owner)
                newest = session.scalars(mine.order_by(kind.created_at.desc()).limit(100))
                raise UnknownName(f"{NOUN[kind]} id", item_id, list(newest))
        return self._storage.folder(bundle_key(kind, item_id))

    def delete(self, kind: type[R], item_id: str, owner: str | None = None) -> None:
        """Raises: NotFound; Conflict while a job that is not finished uses it."""
        with self._store.write() as session:
            _require(session, kind, item_id, owner, lock=True)  # a job that is created now waits, and finds it gone
            column = JobRow.model_id if kind is ModelRow else JobRow.dataset_id
            users = list(session.scalars(select(JobRow.id).where(column == item_id, JobRow.status.in_(UNFINISHED))))
            if users:
                raise in_use(NOUN[kind], item_id, users)
            session.execute(delete(kind).where(kind.id == item_id))
        self._storage.delete(bundle_key(kind, item_id))


def bundle_key(kind: type[Any], item_id: str) -> str:
    """Of a model's or data set's files in the storage."""
    return f"{kind.__tablename__}/{item_id}"


def _require(session: Session, kind: type[R], item_id: str, owner: str | None, lock: bool = False) -> R:
    row = session.get(kind, item_id, with_for_update=lock)
    if row is None or owner not in (None, row.owner):
        raise NotFound(NOUN[kind], item_id)
    return row

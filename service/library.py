"""Models and data sets: a validated folder and its row, which come and go together."""

import os
import secrets
import shutil
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from models.errors import UnknownName
from service.errors import NotFound, in_use
from service.jobs import UNFINISHED
from service.paths import DataFolder
from service.store import DatasetRow, JobRow, ModelRow, Store

R = TypeVar("R", ModelRow, DatasetRow)
NOUN: dict[type[Any], str] = {ModelRow: "model", DatasetRow: "data set"}
PREFIX: dict[type[Any], str] = {ModelRow: "mdl", DatasetRow: "dat"}


class Library:
    """Everything that users have uploaded."""

    def __init__(self, store: Store, folder: DataFolder) -> None:
        self._store = store
        self._folder = folder

    def add(self, kind: type[R], uploaded: Path, name: str, description: dict[str, Any], owner: str = "") -> R:
        """Move a validated folder to its place and remember it."""
        row = kind(id=f"{PREFIX[kind]}_{secrets.token_hex(10)}", owner=owner, name=name, description=description)
        place = self._place(kind, row.id)
        try:
            with self._store.write() as session:
                session.add(row)
                session.flush()
                os.replace(uploaded, place)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        return row

    def get(self, kind: type[R], item_id: str, owner: str | None = None) -> R:
        """owner: who asks; None may see all. Raises: NotFound, also for what is another's."""
        with self._store.read() as session:
            return _require(session, kind, item_id, owner)

    def path(self, kind: type[R], item_id: str, owner: str | None = None) -> Path:
        """The folder of an item that a request names. Raises: UnknownName with the asker's own."""
        with self._store.read() as session:
            row = session.get(kind, item_id)
            if row is None or owner not in (None, row.owner):
                mine = select(kind.id) if owner is None else select(kind.id).where(kind.owner == owner)
                newest = session.scalars(mine.order_by(kind.created_at.desc()).limit(100))
                raise UnknownName(f"{NOUN[kind]} id", item_id, list(newest))
        return self._place(kind, item_id)

    def delete(self, kind: type[R], item_id: str, owner: str | None = None) -> None:
        """Raises: NotFound; Conflict while a job that is not finished uses it."""
        with self._store.write() as session:
            _require(session, kind, item_id, owner, lock=True)  # a job that is created now waits, and finds it gone
            column = JobRow.model_id if kind is ModelRow else JobRow.dataset_id
            users = list(session.scalars(select(JobRow.id).where(column == item_id, JobRow.status.in_(UNFINISHED))))
            if users:
                raise in_use(NOUN[kind], item_id, users)
            session.execute(delete(kind).where(kind.id == item_id))
        shutil.rmtree(self._place(kind, item_id), ignore_errors=True)

    def _place(self, kind: type[R], item_id: str) -> Path:
        return self._folder.model(item_id) if kind is ModelRow else self._folder.dataset(item_id)


def _require(session: Session, kind: type[R], item_id: str, owner: str | None, lock: bool = False) -> R:
    row = session.get(kind, item_id, with_for_update=lock)
    if row is None or owner not in (None, row.owner):
        raise NotFound(NOUN[kind], item_id)
    return row

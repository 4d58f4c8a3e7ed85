"""Return lists in pages, with `page_size` and an opaque `page_token`.

A page token holds the sort values of the last item on the previous page, and not a count of items. Rows that are added
or deleted in the meantime therefore cause no item to be repeated or skipped.
"""

import base64
import binascii
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Query
from sqlalchemy import ColumnElement, literal, select, tuple_

from service.api.identity import Caller
from service.core.errors import BadPageToken
from service.db.tables import DatasetRow, JobRow, ModelRow, Store, TrialRow, UtcDateTime

MAX_PAGE_SIZE = 500
MAX_NUMBER = 2**31 - 1
R = TypeVar("R", ModelRow, DatasetRow, JobRow)


@dataclass(frozen=True)
class Page:
    """The page that a caller asks for. token: the `next_page_token` of the previous page; None for the first page."""

    size: int
    token: str | None

    def start(self, listing: str) -> list[Any] | None:
        """Return the sort values of the last item on the previous page; None for the first page.

        Raises: BadPageToken if the token is damaged or belongs to another list than `listing`.
        """
        if self.token is None:
            return None
        try:
            found, *after = json.loads(base64.urlsafe_b64decode(self.token.encode()))
        except (ValueError, TypeError, RecursionError, binascii.Error):
            raise _bad_token() from None
        if found != listing or not after:
            raise _bad_token()
        return list(after)


def _bad_token() -> BadPageToken:
    return BadPageToken(
        "This page_token does not belong to this list. Use the next_page_token of the previous page with the same "
        "filter, or leave out page_token to start again."
    )


def mine(kind: type[R], caller: Caller) -> list[ColumnElement[bool]]:
    """Return the query conditions that limit a list to the rows that the caller may see."""
    return [] if caller.sees is None else [kind.owner == caller.sees]


def _token(listing: str, *after: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps([listing, *after]).encode()).decode()


def _page(
    page_size: Annotated[
        int, Query(ge=1, description=f"Number of items on a page. A page never has more than {MAX_PAGE_SIZE}.")
    ] = 50,
    page_token: Annotated[
        str | None,
        Query(max_length=500, description="The next_page_token of the previous page. The first page needs none."),
    ] = None,
) -> Page:
    return Page(min(page_size, MAX_PAGE_SIZE), page_token)


PageQuery = Annotated[Page, Depends(_page)]


def newest_first(
    store: Store, kind: type[R], page: Page, listing: str, *where: ColumnElement[bool]
) -> tuple[list[R], str | None]:
    """Return a page of rows, newest first, and the token of the next page. Raises: BadPageToken."""
    query = select(kind).where(*where).order_by(kind.created_at.desc(), kind.id.desc()).limit(page.size + 1)
    after = page.start(listing)
    if after is not None:
        time, item_id = _time_and_id(after)
        query = query.where(tuple_(kind.created_at, kind.id) < tuple_(literal(time, UtcDateTime()), literal(item_id)))
    with store.read() as session:
        rows = list(session.scalars(query))
    more = len(rows) > page.size
    rows = rows[: page.size]
    return rows, _token(listing, rows[-1].created_at.isoformat(), rows[-1].id) if more else None


def _time_and_id(after: list[Any]) -> tuple[datetime, str]:
    try:
        stated, item_id = after
        time = datetime.fromisoformat(stated).astimezone(UTC)
    except (ValueError, TypeError, OverflowError):  # a time zone may move a time out of the years that exist
        raise _bad_token() from None
    if not isinstance(item_id, str) or not item_id.isascii():
        raise _bad_token()
    return time, item_id


def trials_in_order(store: Store, job_id: str, page: Page) -> tuple[list[dict[str, Any]], str | None]:
    """Return a page of a job's trials, ordered by number, and the token of the next page. Raises: BadPageToken."""
    listing = f"trials of {job_id}"
    query = select(TrialRow).where(TrialRow.job_id == job_id).order_by(TrialRow.number).limit(page.size + 1)
    after = page.start(listing)
    if after is not None:
        if type(after[0]) is not int or not 0 <= after[0] <= MAX_NUMBER or len(after) > 1:  # True is an int too
            raise _bad_token()
        query = query.where(TrialRow.number > after[0])
    with store.read() as session:
        rows = list(session.scalars(query))
    more = len(rows) > page.size
    rows = rows[: page.size]
    return [row.body for row in rows], _token(listing, rows[-1].number) if more else None

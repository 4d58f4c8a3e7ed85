"""The number of bytes that unpacking may write, for a process that opens the files of others."""

import contextlib
import errno
from collections.abc import Iterator
from contextvars import ContextVar

_ROOM: ContextVar[int | None] = ContextVar("unpacking_room", default=None)


@contextlib.contextmanager
def unpacking_room(room_bytes: int | None) -> Iterator[None]:
    """Let each archive that is opened in the body unpack to at most so many bytes. None: to any size."""
    token = _ROOM.set(room_bytes)
    try:
        yield
    finally:
        _ROOM.reset(token)


def check_unpacking_room(unpacked_bytes: int) -> None:
    """Raises: OSError, as for a full disk, if an archive unpacks to more bytes than there is room for."""
    room = _ROOM.get()
    if room is not None and unpacked_bytes > room:
        raise OSError(errno.ENOSPC, f"the archive unpacks to {unpacked_bytes} bytes, and {room} bytes are left")

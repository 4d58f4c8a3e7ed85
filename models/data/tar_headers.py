"""Limits for the extra headers of a tar file: long names, pax records, maps of sparse files.

tarfile reads such a header as a whole, and searches it with patterns whose time grows with the square of its length
(CVE-2024-6232, in Python before 3.11.10 and 3.12.6).
"""

import re
import tarfile
from typing import Any

from models.errors import TooLarge, UnsafeFile

MOST_BYTES = 64 * 1024
"""Length of the longest extra header. A path has at most 4,096 bytes."""
MOST_GLOBAL = 1_000
"""Largest number of pax records that hold for the whole archive."""
PAX = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
EXTRA = (*PAX, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
"""Types of entries that are headers of the next entry, or of all."""
DIGITS = re.compile(rb"\d{101}")


class LimitedTarInfo(tarfile.TarInfo):
    """An entry of an archive whose extra headers are limited. Raises: TooLarge, UnsafeFile."""

    def _proc_member(self, archive: tarfile.TarFile) -> Any:
        """Check the type and the length of an entry before tarfile reads what follows it."""
        if self.type in EXTRA and self.size > MOST_BYTES:
            raise TooLarge(
                f"A header of the archive states a length of {self.size} bytes. Allowed: 0 to {MOST_BYTES}. Pack it"
                " again, with short names and without extended attributes.",
                bytes=self.size,
            )
        if self.type == tarfile.GNUTYPE_SPARSE:
            raise _sparse()
        if self.type in PAX and DIGITS.search(_next(archive, self.size)):
            raise UnsafeFile(
                "A header of the archive has a number with more than 100 digits, which can be an attack. Pack the"
                " archive again."
            )
        if len(archive.pax_headers) > MOST_GLOBAL:
            raise TooLarge(
                f"The archive has more than {MOST_GLOBAL} global headers. Pack the archive again, without extended"
                " attributes."
            )
        return super()._proc_member(archive)  # type: ignore[misc]

    def _proc_gnusparse_00(self, *_: Any) -> None:
        raise _sparse()

    def _proc_gnusparse_01(self, *_: Any) -> None:
        raise _sparse()

    def _proc_gnusparse_10(self, *_: Any) -> None:
        raise _sparse()


def _next(archive: tarfile.TarFile, size: int) -> bytes:
    """Return the next bytes of an archive without moving forward in it."""
    file = archive.fileobj
    assert file is not None
    place = file.tell()
    found: bytes = file.read(size)
    file.seek(place)
    return found


def _sparse() -> UnsafeFile:
    return UnsafeFile("The archive has a sparse file, which vitfit does not read. Pack the archive without --sparse.")

"""Unpack pictures from an untrusted zip or tar: no file is written outside the folder, and all sizes are limited.

The archive never names a file on disk. Pictures become 00000000.png, 00000001.jpg ..., and an index in the same folder
lists their names in the archive.
"""

import bz2
import contextlib
import functools
import gzip
import json
import lzma
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, cast

from models.data.tar_headers import LimitedTarInfo
from models.data.unpacking_room import check_unpacking_room
from models.errors import BadData, DamagedFile, TooLarge, UnsafeFile
from models.record import Record

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
MIB = 1024 * 1024
CHUNK_BYTES = MIB
END_OF_TAR = bytes(tarfile.BLOCKSIZE)
DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    ValueError,
    RuntimeError,
    NotImplementedError,
)


@dataclass(frozen=True)
class Limits(Record):
    """Upper limits for one data set. Unpacking stops as soon as an upload exceeds one of them."""

    packed_bytes: int = 20 * 1024 * MIB
    total_bytes: int = 40 * 1024 * MIB
    file_bytes: int = 64 * MIB
    array_bytes: int = 4 * 1024 * MIB
    members: int = 500_000
    pixels: int = 64_000_000
    expansion: float = 100.0
    expansion_from_bytes: int = 64 * MIB  # contents up to this size may expand by any factor


@dataclass(frozen=True)
class Unpacked(Record):
    """The result of unpacking.

    The member `names[i]` of the archive is in `files[i]`. `ignored`: number of other members.
    """

    files: tuple[str, ...]
    names: tuple[str, ...]
    ignored: int


def unpack(archive: Path, folder: Path, limits: Limits) -> Unpacked:
    """Unpack the pictures of a zip or tar into `folder`, which appears complete or not at all.

    If `folder` already has an index, the archive is not unpacked again.

    Raises:
        UnsafeFile: a name leads out of the folder, a member is a link or device, or the contents are far larger than
            the file.
        TooLarge: a limit is exceeded.
        DamagedFile: the file is no archive, or it is truncated or encrypted.
        BadData: the archive holds no pictures.
    """
    index = folder / "index.json"
    if not index.is_file():
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            unpacked = _unpack_into(scratch, archive, limits)
            (scratch / "index.json").write_text(json.dumps(unpacked.to_json()))
            _publish(scratch, folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return Unpacked.from_json(json.loads(index.read_text()))


def _publish(scratch: Path, folder: Path) -> None:
    """Rename `scratch` to `folder`.

    If another process unpacked the same archive in the meantime, its folder is kept.
    """
    try:
        scratch.rename(folder)
    except OSError:
        if not (folder / "index.json").is_file():
            raise


def _unpack_into(scratch: Path, archive: Path, limits: Limits) -> Unpacked:
    files: list[str] = []
    names: list[str] = []
    ignored = 0
    for name, content in members(archive, limits):
        suffix = PurePosixPath(name).suffix.lower()
        if suffix not in PICTURE_SUFFIXES or is_clutter(name):
            ignored += 1
            continue
        file = f"{len(files):08d}{suffix}"
        with _reading():
            source = content()
        with source, (scratch / file).open("wb") as target:
            _copy(source, target)
        files.append(file)
        names.append(name)
    if not files:
        raise BadData(
            f"The archive holds no pictures. It holds {ignored} other files. Allowed types of pictures:"
            f" {', '.join(PICTURE_SUFFIXES)}. Pack the pictures, with one folder for each class.",
            ignored=ignored,
        )
    return Unpacked(tuple(files), tuple(names), ignored)


def is_clutter(name: str) -> bool:
    """Return whether a desktop system made this file: hidden files and the resource forks of macOS."""
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


Member = tuple[str, Callable[[], IO[bytes]]]


def members(archive: Path, limits: Limits) -> Iterator[Member]:
    """Yield the checked name of every regular file and a function that opens it.

    Sizes are counted before contents are read.
    """
    packed = archive.stat().st_size
    if packed > limits.packed_bytes:
        raise TooLarge(
            f"The archive has {packed} bytes. The limit is {limits.packed_bytes} bytes. Pack fewer or smaller files.",
            bytes=packed,
        )
    if packed == 0:
        raise DamagedFile(
            "The archive is empty: it has 0 bytes. It must be a zip or tar file. Upload it again.", bytes=0
        )
    ledger = _Ledger(limits, packed)
    with _reading():
        if zipfile.is_zipfile(archive):
            yield from _zip_members(archive, ledger)
        else:
            yield from _tar_members(archive, ledger, limits)


def _zip_members(archive: Path, ledger: "_Ledger") -> Iterator[Member]:
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            name = check_name(info.filename)
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise UnsafeFile(
                    f"The entry {name!r} of the archive is a link or a device. An archive may hold only regular files"
                    " and folders. Pack it without links and devices.",
                    member=name,
                )
            if info.flag_bits & 1:
                raise DamagedFile(
                    f"The entry {name!r} of the archive is encrypted. vitfit cannot read encrypted entries. Pack the"
                    " archive without a password.",
                    member=name,
                )
            ledger.count(name, info.file_size)
            if not info.is_dir():
                yield name, functools.partial(opened.open, info)


def _tar_members(archive: Path, ledger: "_Ledger", limits: Limits) -> Iterator[Member]:
    with _decompressed(archive) as plain:
        reader = cast(IO[bytes], _BoundedReader(plain, limits))
        with tarfile.open(fileobj=reader, mode="r:", tarinfo=LimitedTarInfo) as opened:
            while (member := opened.next()) is not None:
                name = check_name(member.name)
                member = _filtered(member, archive)
                if not (member.isfile() or member.isdir()):  # the filter accepts links that stay inside the folder
                    raise UnsafeFile(
                        f"The entry {name!r} of the archive is a link. An archive may hold only regular files and"
                        " folders. Pack it without links.",
                        member=name,
                    )
                ledger.count(name, member.size)
                if member.isfile():
                    yield name, functools.partial(_content, opened, member)
                opened.members = []  # type: ignore[attr-defined]  # otherwise tarfile keeps all members in memory
            reader.seek(opened.offset)
            if reader.read(len(END_OF_TAR)) != END_OF_TAR:  # tarfile accepts a cut between two members as the end
                raise tarfile.ReadError("the end of the archive is missing")
            reader.read(MIB)  # read the padding, so that gzip, bz2 and xz compare their checksums


def _content(opened: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    return cast(IO[bytes], opened.extractfile(member))


def _filtered(member: tarfile.TarInfo, archive: Path) -> tarfile.TarInfo:
    """Apply Python's own "data" filter. It refuses devices, and it is a second check of the names."""
    folder = str(archive.parent.resolve())
    try:
        return tarfile.data_filter(member, folder)
    except tarfile.FilterError as error:
        why = str(error).replace(f"{folder}/", "")
        raise UnsafeFile(
            f"The entry {member.name!r} of the archive is not safe to unpack ({why}). An archive may hold only"
            " regular files and folders with relative names. Remove this entry and pack the archive again.",
            member=member.name,
        ) from error


def _decompressed(archive: Path) -> IO[bytes]:
    with archive.open("rb") as file:
        magic = file.read(6)
    if magic.startswith(b"\x1f\x8b"):
        return cast(IO[bytes], gzip.open(archive))
    if magic.startswith(b"BZh"):
        return bz2.open(archive)
    if magic == b"\xfd7zXZ\x00":
        return lzma.open(archive)
    return archive.open("rb")


class _BoundedReader:
    """A file reader with a limit for each read.

    tarfile reads some headers into memory with the size that they claim. A malicious archive can claim a huge size.
    """

    def __init__(self, file: IO[bytes], limits: Limits) -> None:
        self._file, self._limits = file, limits

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self._limits.file_bytes:
            raise TooLarge(
                f"A header of the archive states a length of {size} bytes. Allowed: 0 to {self._limits.file_bytes}"
                " bytes. The archive may be damaged. Pack it again.",
                bytes=size,
            )
        return self._file.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


class _Ledger:
    """Adds up the sizes that the members claim, and raises an error at the first limit that is exceeded."""

    def __init__(self, limits: Limits, packed_bytes: int) -> None:
        self._limits, self._packed_bytes = limits, packed_bytes
        self._members = 0
        self._bytes = 0

    def count(self, name: str, size: int) -> None:
        limits = self._limits
        self._members += 1
        self._bytes += size
        if self._members > limits.members:
            raise TooLarge(
                f"The archive has more than {limits.members} entries. The limit is {limits.members} files and folders."
                " Pack fewer files.",
                allowed=limits.members,
            )
        if size > limits.file_bytes:
            raise TooLarge(
                f"The entry {name!r} unpacks to {size} bytes. The limit for one entry is {limits.file_bytes} bytes."
                " Pack smaller files.",
                member=name,
                bytes=size,
            )
        if self._bytes > limits.total_bytes:
            raise TooLarge(
                f"The archive unpacks to {self._bytes} bytes or more. The limit is {limits.total_bytes} bytes. Pack"
                " fewer or smaller files.",
                allowed=limits.total_bytes,
            )
        check_expansion(self._packed_bytes, self._bytes, limits)
        check_unpacking_room(self._bytes)


def check_expansion(packed_bytes: int, unpacked_bytes: int, limits: Limits) -> None:
    """Check the expansion of a file. Raises: UnsafeFile if the contents are far larger than the packed file."""
    if unpacked_bytes > max(limits.expansion_from_bytes, limits.expansion * packed_bytes):
        raise UnsafeFile(
            f"The file has {packed_bytes} bytes and unpacks to {unpacked_bytes} bytes or more. The limit is"
            f" {limits.expansion:g} times the size of the file, because larger contents can be an attack. Pack the"
            " contents without compression.",
            packed_bytes=packed_bytes,
            unpacked_bytes=unpacked_bytes,
        )


def check_name(name: str) -> str:
    """Return the name of a member with forward slashes.

    Raises: UnsafeFile if the name is absolute, leads out of its folder or holds unprintable characters.
    """
    plain = name.replace("\\", "/")
    path = PurePosixPath(plain)
    climbs = path.is_absolute() or ".." in path.parts or bool(PureWindowsPath(plain).drive)
    if climbs or not plain.isprintable():
        raise UnsafeFile(
            f"The entry {name!r} of the archive has an unsafe name. A name must be relative, must stay inside the"
            " folder and must hold only printable characters. Pack the folder again with such names.",
            member=name,
        )
    return plain


def _copy(source: IO[bytes], target: IO[bytes]) -> None:
    while True:
        with _reading():
            chunk = source.read(CHUNK_BYTES)
        if not chunk:
            return
        target.write(chunk)


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Convert the reading errors of all libraries to `DamagedFile`. Errors of vitfit pass unchanged."""
    try:
        yield
    except DAMAGE as error:
        raise DamagedFile(
            f"vitfit cannot read the archive as zip or tar ({error}). The file may be truncated. Upload it again.",
            reason=str(error),
        ) from error

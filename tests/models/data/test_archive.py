"""Tests of archives from strangers.

They check which archives vitfit refuses, and that a refused archive leaves no files behind.
"""

import bz2
import gzip
import io
import lzma
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.data.archive import MIB, Limits, _publish, unpack
from models.data.unpacking_room import unpacking_room
from models.errors import BadData, DamagedFile, TooLarge, UnsafeFile
from service.core.disk_space import is_full

SMALL = Limits(members=20, file_bytes=MIB, total_bytes=4 * MIB, expansion_from_bytes=2 * MIB)


def zip_of(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def tar_of(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as file:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def assert_refused(archive: Path, error: type[Exception], words: str, limits: Limits = SMALL) -> None:
    folder = archive.parent / "pictures"
    with pytest.raises(error, match=words) as refused:
        unpack(archive, folder, limits)
    assert str(archive.parent) not in str(refused.value), "a message has no path of the machine"
    assert list(archive.parent.iterdir()) == [archive]


Build = Callable[[Path, dict[str, bytes]], Path]
BUILDERS = [zip_of, tar_of]


@pytest.mark.parametrize("build", BUILDERS)
def test_pictures_come_out_under_our_names(tmp_path: Path, build: Build) -> None:
    members = {
        "cat/a.PNG": b"first",
        "cat/readme.txt": b"-",
        "__MACOSX/a.png": b"-",
        "dog/.b.png": b"-",
        "dog/b.jpg": b"",
    }
    unpacked = unpack(build(tmp_path / "data", members), tmp_path / "pictures", SMALL)
    assert unpacked.names == ("cat/a.PNG", "dog/b.jpg")
    assert unpacked.files == ("00000000.png", "00000001.jpg")
    assert unpacked.ignored == 3
    assert (tmp_path / "pictures" / "00000000.png").read_bytes() == b"first"
    assert len(list(tmp_path.iterdir())) == 2  # no scratch folder is left


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_every_compression_of_tar_is_read(tmp_path: Path, mode: str) -> None:
    unpacked = unpack(tar_of(tmp_path / "data.tar", {"a/b.png": b"x"}, mode), tmp_path / "pictures", SMALL)
    assert unpacked.names == ("a/b.png",)


def test_is_unpacked_once(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "data.zip", {"a.png": b"x"})
    first = unpack(archive, tmp_path / "pictures", SMALL)
    archive.unlink()
    assert unpack(archive, tmp_path / "pictures", SMALL) == first


def test_two_processes_may_unpack_at_once(tmp_path: Path) -> None:
    """Another process publishes the folder while this one still unpacks.

    Check that this process takes the other's result.
    """
    archive = zip_of(tmp_path / "data.zip", {"a.png": b"x"})
    other = tmp_path / "other"
    done = unpack(archive, other, SMALL)
    _publish(tmp_path / "missing-scratch", other)
    assert unpack(archive, other, SMALL) == done


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize(
    "name", ["../evil.png", "a/../../evil.png", "/etc/evil.png", "C:\\evil.png", "..\\evil.png", "a/\x07.png", "../"]
)
def test_names_that_climb_out(tmp_path: Path, build: Build, name: str) -> None:
    assert_refused(build(tmp_path / "data", {"good.png": b"x", name: b"x"}), UnsafeFile, "unsafe name")


@pytest.mark.parametrize(
    ("kind", "target", "words"),
    [
        (tarfile.SYMTYPE, "b.png", "is a link"),
        (tarfile.LNKTYPE, "b.png", "is a link"),
        (tarfile.SYMTYPE, "/etc/passwd", "absolute path"),
        (tarfile.SYMTYPE, "../../../etc/passwd", "outside"),
        (tarfile.CHRTYPE, "", "special file"),
        (tarfile.FIFOTYPE, "", "special file"),
    ],
)
def test_tar_links_and_devices(tmp_path: Path, kind: bytes, target: str, words: str) -> None:
    archive = tmp_path / "data.tar"
    with tarfile.open(archive, "w") as file:
        info = tarfile.TarInfo("a/link.png")
        info.type, info.linkname = kind, target
        file.addfile(info)
    assert_refused(archive, UnsafeFile, words)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR])
def test_zip_links_and_devices(tmp_path: Path, kind: int) -> None:
    archive = tmp_path / "data.zip"
    with zipfile.ZipFile(archive, "w") as file:
        info = zipfile.ZipInfo("a/link.png")
        info.external_attr = (kind | 0o777) << 16
        file.writestr(info, "/etc/passwd")
    assert_refused(archive, UnsafeFile, "link or a device")


@pytest.mark.parametrize("build", BUILDERS)
def test_too_many_members(tmp_path: Path, build: Build) -> None:
    assert_refused(build(tmp_path / "data", {f"{n}.png": b"" for n in range(21)}), TooLarge, "more than 20 entries")


@pytest.mark.parametrize("build", BUILDERS)
def test_a_member_that_is_too_large(tmp_path: Path, build: Build) -> None:
    assert_refused(build(tmp_path / "data", {"a.png": bytes(MIB + 1)}), TooLarge, "'a.png' unpacks to")


def test_too_much_in_all(tmp_path: Path) -> None:
    members = {f"{n}.png": bytes(MIB) for n in range(5)}
    assert_refused(zip_of(tmp_path / "data.zip", members, zipfile.ZIP_STORED), TooLarge, "limit is 4194304 bytes")


def test_zip_bomb(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "data.zip", {f"{n}.png": bytes(MIB) for n in range(4)})
    assert_refused(archive, UnsafeFile, "limit is 100 times")


@pytest.mark.parametrize("opener", [gzip.open, bz2.open, lzma.open])
def test_tar_bomb(tmp_path: Path, opener: Callable[[Path, str], Any]) -> None:
    plain = tar_of(tmp_path / "plain", {f"{n}.png": bytes(MIB) for n in range(4)})
    with opener(tmp_path / "data.tar", "wb") as file:
        file.write(plain.read_bytes())
    plain.unlink()
    assert_refused(tmp_path / "data.tar", UnsafeFile, "limit is 100 times")


def test_tar_header_that_would_fill_memory(tmp_path: Path) -> None:
    """Python reads a pax header into memory, at the size that the header claims.

    No limit on members covers this size.
    """
    archive = tmp_path / "data.tar"
    info = tarfile.TarInfo("header")
    info.type, info.size = tarfile.XHDTYPE, 5 * MIB
    with gzip.open(archive, "wb") as file:
        file.write(info.tobuf() + bytes(5 * MIB))
    assert_refused(archive, TooLarge, "header of the archive states")


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"7" * 60_000, "more than 100 digits"), (b"30 GNU.sparse.map=0,1,2,3,4,5\n", "sparse file")],
    ids=["digits", "sparse"],
)
def test_tar_headers_that_take_long_to_read(tmp_path: Path, content: bytes, words: str) -> None:
    """Python searches a pax header with patterns whose time grows with the square of its length (CVE-2024-6232)."""
    info = tarfile.TarInfo("header")
    info.type, info.size = tarfile.XHDTYPE, len(content)
    entry = tarfile.TarInfo("a.png").tobuf()
    (tmp_path / "data.tar").write_bytes(info.tobuf() + content + bytes(-len(content) % 512) + entry + bytes(1024))
    assert_refused(tmp_path / "data.tar", UnsafeFile, words)


def test_a_sparse_file_of_gnu_tar_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a.png")
    info.type = tarfile.GNUTYPE_SPARSE
    (tmp_path / "data.tar").write_bytes(info.tobuf() + bytes(1024))
    assert_refused(tmp_path / "data.tar", UnsafeFile, "sparse file")


def test_global_headers_without_end_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "data.tar", "w", format=tarfile.PAX_FORMAT) as file:
        file.pax_headers = {f"key{number}": "v" for number in range(1_100)}
        file.addfile(tarfile.TarInfo("a.png"))
        header = file.tarinfo.create_pax_global_header(file.pax_headers)
    archive = tmp_path / "data.tar"
    archive.write_bytes(header + archive.read_bytes())
    assert_refused(archive, TooLarge, "global headers")


@pytest.mark.parametrize("build", BUILDERS)
def test_truncated(tmp_path: Path, build: Build) -> None:
    archive = build(tmp_path / "data", {f"{n}.png": bytes(range(256)) * 40 for n in range(4)})
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    assert_refused(archive, DamagedFile, "may be truncated")


def test_tar_cut_between_two_members(tmp_path: Path) -> None:
    archive = tar_of(tmp_path / "data.tar", {"a.png": b"x", "b.png": b"y"})
    archive.write_bytes(archive.read_bytes()[:1024])  # keeps the header and the block of a.png
    assert_refused(archive, DamagedFile, "end of the archive is missing")


def test_truncated_compressed_tar(tmp_path: Path) -> None:
    archive = tar_of(tmp_path / "data.tar", {"a.png": bytes(range(256)) * 40}, "w:gz")
    archive.write_bytes(archive.read_bytes()[:-10])
    assert_refused(archive, DamagedFile, "may be truncated")


def test_zip_whose_contents_were_changed(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "data.zip", {"a.png": b"known content"}, zipfile.ZIP_STORED)
    archive.write_bytes(archive.read_bytes().replace(b"known content", b"other content"))
    assert_refused(archive, DamagedFile, "CRC")


def test_zip_whose_compressed_contents_were_changed(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "data.zip", {"a.png": bytes(range(256)) * 40})
    content = bytearray(archive.read_bytes())
    start = 30 + len("a.png")  # the position after the local header
    content[start : start + 20] = b"\xff" * 20
    archive.write_bytes(content)
    assert_refused(archive, DamagedFile, "may be truncated")


def test_zip_that_lies_about_its_sizes(tmp_path: Path) -> None:
    """The table claims 10 bytes, but the content is a mebibyte long. Check that no more than 10 bytes are written."""
    archive = zip_of(tmp_path / "data.zip", {"a.png": bytes(MIB)})
    archive.write_bytes(archive.read_bytes().replace(struct.pack("<L", MIB), struct.pack("<L", 10)))
    assert_refused(archive, DamagedFile, "cannot read the archive")


def test_encrypted_zip(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "data.zip", {"a.png": b"x"})
    content = bytearray(archive.read_bytes())
    table = content.index(b"PK\x01\x02")
    content[table + 8] |= 1
    archive.write_bytes(content)
    assert_refused(archive, DamagedFile, "without a password")


@pytest.mark.parametrize("content", [b"not an archive at all", bytes(5)])
def test_no_archive(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data.zip").write_bytes(content)
    assert_refused(tmp_path / "data.zip", DamagedFile, "cannot read the archive as zip or tar")


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "data.zip").touch()
    assert_refused(tmp_path / "data.zip", DamagedFile, "0 bytes")


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("members", [{}, {"readme.txt": b"hello"}])
def test_archive_without_pictures(tmp_path: Path, build: Build, members: dict[str, bytes]) -> None:
    assert_refused(build(tmp_path / "data", members), BadData, "no pictures")


def test_oversized_upload(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "data.zip", {"a.png": b"x"})
    assert_refused(archive, TooLarge, "limit is 50 bytes", Limits(packed_bytes=50))


@pytest.mark.parametrize("build", BUILDERS)
def test_an_archive_needs_room_for_what_it_unpacks_to(tmp_path: Path, build: Build) -> None:
    """It is refused as on a full disk, before the first file that does not fit is written."""
    archive = build(tmp_path / "data", {"a.png": b"x" * 1000, "b.png": b"x" * 1000})
    with unpacking_room(1500), pytest.raises(DamagedFile) as refused:
        unpack(archive, tmp_path / "pictures", SMALL)
    assert is_full(refused.value) and list(tmp_path.iterdir()) == [archive]
    with unpacking_room(2000):
        assert len(unpack(archive, tmp_path / "pictures", SMALL).files) == 2

"""Hostile zip files, tar files and folders of pictures: links, names outside the folder, bombs, and damaged files."""

import bz2
import gzip
import io
import lzma
import os
import random
import socket
import stat
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

from benchmarks.hostile.upload import Upload, damaged, picture

CLASSES, EACH = 3, 14
KINDS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
BOMB_BYTES = 80 * 2**20
Members = list[tuple[str, bytes]]


def archive(rng: random.Random, outside: Path) -> Upload:
    """Make a hostile archive.

    outside: a folder in which nothing may appear.
    """
    members = _members(rng)
    name, content, suffix = rng.choice((_damaged, _named, _linked, _bomb, _pictures))(rng, members, outside)
    if rng.random() < 0.1:
        suffix = rng.choice((".zip", ".tar", ".tar.gz", ".npz", ".tar.zst", ".rar", ""))
    return Upload(f"archive, {name}", "/v1/datasets", None, f"data{suffix}", content)


def _members(rng: random.Random) -> Members:
    kind = rng.choice(KINDS)
    names = [f"{c}/{i}.{kind.lower()}" for c in range(CLASSES) for i in range(EACH)]
    return [(name, picture(rng, kind)) for name in names]


def _packed(rng: random.Random, members: Members) -> tuple[bytes, str]:
    if rng.random() < 0.5:
        return _zip(members), ".zip"
    plain = _tar([(_info(name, content), content) for name, content in members])
    ways = ((lambda b: b, ".tar"), (gzip.compress, ".tar.gz"), (bz2.compress, ".tar.bz2"), (lzma.compress, ".tar.xz"))
    press, suffix = rng.choice(ways)
    return press(plain), suffix


def _zip(members: Members, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as opened:
        for name, content in members:
            opened.writestr(zipfile.ZipInfo(name), content, method)
    return buffer.getvalue()


def _tar(members: list[tuple[tarfile.TarInfo, bytes]], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as opened:
        for info, content in members:
            opened.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _info(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(content), kind, target
    return info


def _damaged(rng: random.Random, members: Members, _outside: Path) -> tuple[str, bytes, str]:
    content, suffix = _packed(rng, members)
    name, content = damaged(rng, content)
    return f"{suffix} {name}", content, suffix


def _named(rng: random.Random, members: Members, outside: Path) -> tuple[str, bytes, str]:
    """Add a file whose name points outside the upload's folder, or is not a valid name."""
    up = "../" * rng.randrange(1, 12)
    odd = rng.choice(
        [
            f"{up}escaped.png",
            str(outside / "escaped.png"),
            f"a/{up}{outside}/escaped.png",
            "C:\\escaped.png",
            "..\\..\\escaped.png",
            "a\x00b.png",
            "a\nb.png",
            "x" * 300 + ".png",
            "/".join("d" * 400) + "/a.png",
            "ü/\u202egnp.png",
            "",
            ".png",
            "0/",
            "./././a.png",
            "index.json",
            "\ud800.png",
            "CON.png",
            "~/.ssh/a.png",
        ]
    )
    extra = (odd, picture(rng))
    if rng.random() < 0.5 and "\ud800" not in odd:
        return f"zip with the name {odd[:30]!r}", _zip([*members, extra]), ".zip"
    form = rng.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))
    packed = [(_info(name, content), content) for name, content in [*members, extra]]
    return f"tar with the name {odd[:30]!r}", _tar(packed, form), ".tar"


def _linked(rng: random.Random, members: Members, outside: Path) -> tuple[str, bytes, str]:
    """Add a link, a device or a pipe. A tar file also gets a picture that is written through the link."""
    target = rng.choice(("/etc/passwd", str(outside), "..", "0/0.png", "l.png", ""))
    through = picture(rng)
    if rng.random() < 0.3:
        buffer = io.BytesIO(_zip(members))
        with zipfile.ZipFile(buffer, "a") as opened:
            info = zipfile.ZipInfo("l.png")
            info.external_attr = (rng.choice((stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR)) | 0o777) << 16
            opened.writestr(info, target)
        return "zip with a link", buffer.getvalue(), ".zip"
    kind = rng.choice(
        (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, b"S", b"?")
    )
    packed = [(_info(name, content), content) for name, content in members]
    link = [(_info("l.png", b"", kind, target), b""), (_info("l.png/escaped.png", through), through)]
    return (
        f"tar with a link of type {kind!r}",
        _tar([*packed, *link] if rng.random() < 0.5 else [*link, *packed]),
        ".tar",
    )


def _bomb(rng: random.Random, members: Members, _outside: Path) -> tuple[str, bytes, str]:
    """Make a small file that becomes large, a header that claims missing content, or a picture of extreme size."""
    choice = rng.randrange(5)
    if choice == 0:
        return "zip bomb", _zip([*members, ("0/bomb.png", bytes(BOMB_BYTES))]), ".zip"
    if choice == 1:
        many = [(f"0/{i}.png", bytes(BOMB_BYTES // 16)) for i in range(16)]
        return "tar bomb", gzip.compress(_tar([(_info(n, c), c) for n, c in many]), 1), ".tar.gz"
    if choice == 2:
        info = _info("0/huge.png")
        info.size = 2**40
        return "tar that claims a terabyte", info.tobuf(tarfile.GNU_FORMAT) + bytes(1024), ".tar"
    if choice == 3:
        info = _info("././@LongLink", b"", tarfile.GNUTYPE_LONGNAME)
        info.size = 2**33
        return "tar with an endless name", info.tobuf(tarfile.GNU_FORMAT) + bytes(4096), ".tar"
    wide, high = rng.choice(((60_000, 60_000), (2**31 - 1, 1), (0, 5), (8_000, 7_999)))
    return "picture bomb", _zip([*members, ("0/bomb.png", _png(wide, high))]), ".zip"


def _png(width: int, height: int) -> bytes:
    """Return a PNG file whose header claims `width` x `height` pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(100_000)))
        + chunk(b"IEND", b"")
    )


def _pictures(rng: random.Random, members: Members, _outside: Path) -> tuple[str, bytes, str]:
    """Make a valid archive in which some pictures are damaged."""
    changed = [(name, damaged(rng, content)[1] if rng.random() < 0.3 else content) for name, content in members]
    content, suffix = _packed(rng, changed)
    return f"{suffix} of damaged pictures", content, suffix


def folder(rng: random.Random, place: Path, outside: Path) -> Upload:
    """Make a folder on the server that also holds something that is not a picture.

    place: a new folder below an allowed root. outside: a folder that is not below an allowed root.
    """
    for name, content in _members(rng):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    odd = place / "0" / "odd.png"
    way = rng.choice(
        ("pipe", "socket", "device", "folder", "link out", "loop", "bytes", "damaged", "deep", "unread", "none")
    )
    if way == "pipe":
        os.mkfifo(odd)
    elif way == "socket":
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(os.path.relpath(odd))
    elif way == "device":
        odd.symlink_to("/dev/zero")
    elif way == "folder":
        odd.mkdir()
    elif way == "link out":
        (outside / "secret.png").write_bytes(picture(rng))
        odd.symlink_to(outside / "secret.png")
    elif way == "loop":
        odd.symlink_to(odd.name)
    elif way == "bytes":
        Path(os.fsdecode(os.fsencode(place) + b"/0/\xff\xfe.png")).write_bytes(damaged(rng, picture(rng))[1])
    elif way == "damaged":
        odd.write_bytes(damaged(rng, picture(rng))[1])
    elif way == "deep":
        deep = place / "/".join("d" * 60)
        deep.mkdir(parents=True)
        (deep / "a.png").write_bytes(picture(rng))
    elif way == "unread":
        odd.write_bytes(picture(rng))
        odd.chmod(0)
    return Upload(f"folder with {way}", "/v1/datasets", {"path": str(place)})

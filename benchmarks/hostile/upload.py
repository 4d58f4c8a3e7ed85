"""The type of an upload, and functions that damage valid files."""

import io
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class Upload:
    """One upload: either `json`, or the file `filename` with the content `content`.

    name: what is unusual about the upload. path: path of the address on the server. json: any value, or bytes that
    claim to be JSON. fields: form fields that are sent beside the file.
    """

    name: str
    path: str
    json: Any = None
    filename: str = ""
    content: bytes = b""
    fields: dict[str, str] | None = None


Damage = Callable[[random.Random, bytes], bytes]


def flip(rng: random.Random, content: bytes) -> bytes:
    """Change some bytes.

    Bytes near the beginning and the end change more often, because file formats keep tables there.
    """
    found = bytearray(content)
    for _ in range(rng.choice((1, 3, 20))):
        reach = rng.choice((64, 1024, len(found)))
        place = min(rng.randrange(max(reach, 1)), len(found) - 1)
        found[-1 - place if rng.random() < 0.5 else place] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return bytes(found)


def cut(rng: random.Random, content: bytes) -> bytes:
    return content[: rng.randrange(len(content))]


def splice(rng: random.Random, content: bytes) -> bytes:
    """Copy a piece of the content to another position."""
    start, place = rng.randrange(len(content)), rng.randrange(len(content))
    piece = content[start : start + rng.choice((4, 64, 1000))]
    return content[:place] + piece + content[place + rng.choice((0, len(piece))) :]


def append(rng: random.Random, content: bytes) -> bytes:
    return content + rng.randbytes(rng.choice((1, 100, 10_000)))


def numbers(rng: random.Random, content: bytes) -> bytes:
    """Write an extreme number over some bytes. A size or an offset there becomes huge or negative."""
    found, place = bytearray(content), rng.randrange(max(len(content) - 8, 1))
    found[place : place + rng.choice((2, 4, 8))] = rng.choice(
        (b"\xff" * 8, b"\x00" * 7 + b"\x80", b"\xff" * 7 + b"\x7f")
    )
    return bytes(found)


DAMAGES: dict[str, Damage] = {"flipped": flip, "cut": cut, "spliced": splice, "appended": append, "numbers": numbers}


def damaged(rng: random.Random, content: bytes) -> tuple[str, bytes]:
    """Damage the content in one random way. Return the name of the way and the damaged content."""
    name = rng.choice(list(DAMAGES))
    return name, DAMAGES[name](rng, content)


def picture(rng: random.Random, kind: str = "PNG") -> bytes:
    """Return a small valid picture."""
    buffer = io.BytesIO()
    pixels = rng.randbytes(16 * 16 * 3)
    Image.frombytes("RGB", (16, 16), pixels).save(buffer, kind)
    return buffer.getvalue()

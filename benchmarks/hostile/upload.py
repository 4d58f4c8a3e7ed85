"""What is sent, and how whole files are damaged."""

import io
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class Upload:
    """name: what was done to it. Either `json` (any value, or bytes that claim to be JSON), or `content` as the file `filename`
    with `fields` beside it; `path`: the address."""

    name: str
    path: str
    json: Any = None
    filename: str = ""
    content: bytes = b""
    fields: dict[str, str] | None = None


Damage = Callable[[random.Random, bytes], bytes]


def flip(rng: random.Random, content: bytes) -> bytes:
    """Some bytes become others; more often near the beginning and the end, where tables stand."""
    found = bytearray(content)
    for _ in range(rng.choice((1, 3, 20))):
        reach = rng.choice((64, 1024, len(found)))
        place = min(rng.randrange(max(reach, 1)), len(found) - 1)
        found[-1 - place if rng.random() < 0.5 else place] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return bytes(found)


def cut(rng: random.Random, content: bytes) -> bytes:
    return content[: rng.randrange(len(content))]


def splice(rng: random.Random, content: bytes) -> bytes:
    """A piece of it once more, somewhere else."""
    start, place = rng.randrange(len(content)), rng.randrange(len(content))
    piece = content[start : start + rng.choice((4, 64, 1000))]
    return content[:place] + piece + content[place + rng.choice((0, len(piece))) :]


def append(rng: random.Random, content: bytes) -> bytes:
    return content + rng.randbytes(rng.choice((1, 100, 10_000)))


def numbers(rng: random.Random, content: bytes) -> bytes:
    """Sizes and offsets become huge, or negative."""
    found, place = bytearray(content), rng.randrange(max(len(content) - 8, 1))
    found[place : place + rng.choice((2, 4, 8))] = rng.choice(
        (b"\xff" * 8, b"\x00" * 7 + b"\x80", b"\xff" * 7 + b"\x7f")
    )
    return bytes(found)


DAMAGES: dict[str, Damage] = {"flipped": flip, "cut": cut, "spliced": splice, "appended": append, "numbers": numbers}


def damaged(rng: random.Random, content: bytes) -> tuple[str, bytes]:
    """What was done, and what came of it."""
    name = rng.choice(list(DAMAGES))
    return name, DAMAGES[name](rng, content)


def picture(rng: random.Random, kind: str = "PNG") -> bytes:
    """A small honest one."""
    buffer = io.BytesIO()
    pixels = rng.randbytes(16 * 16 * 3)
    Image.frombytes("RGB", (16, 16), pixels).save(buffer, kind)
    return buffer.getvalue()

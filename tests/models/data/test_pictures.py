"""Tests of folders of pictures: classes and splits from file names, and files that are not pictures."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.data.archive import Limits
from models.data.pictures import Grouping, PictureFile, PictureImages, group, labels_of, list_folder
from models.data.preprocessing import Preprocessing
from models.errors import BadData, DamagedFile, TooLarge, UnsafeFile

PREPROCESSING = Preprocessing(size=(1, 16, 16), mean=(0.5,), std=(0.5,))


def draw(path: Path, level: int = 100, size: tuple[int, int] = (20, 10)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level, level, level)).save(path)
    return path


def images_of(*paths: Path, limits: Limits | None = None) -> PictureImages:
    files = tuple(PictureFile(path, path.name) for path in paths)
    return PictureImages(files, PREPROCESSING, limits or Limits())


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif", "webp", "tif", "ppm"])
def test_formats_are_decoded(tmp_path: Path, suffix: str) -> None:
    loaded = images_of(draw(tmp_path / f"a.{suffix}")).load(np.array([0]))
    torch.testing.assert_close(loaded, torch.full((1, 1, 16, 16), (100 / 255 - 0.5) / 0.5), atol=0.02, rtol=0)


def test_rows_come_in_the_order_asked_for(tmp_path: Path) -> None:
    images = images_of(*(draw(tmp_path / f"{level}.png", level) for level in (0, 100, 200)))
    means = images.load(np.array([2, 0])).mean((1, 2, 3))
    assert means.tolist() == pytest.approx([200 / 255 * 2 - 1, -1], abs=1e-5)


def test_pictures_are_decoded_only_when_asked_for(tmp_path: Path) -> None:
    """A picture that cannot be decoded does no harm until its row is loaded."""
    good, bad = draw(tmp_path / "good.png"), draw(tmp_path / "truncated.png", size=(500, 400))
    bad.write_bytes(bad.read_bytes()[:100])
    images = images_of(good, bad)
    images.check()
    images.load(np.array([0]))
    with pytest.raises(DamagedFile, match=r"cannot decode the picture 'truncated.png'"):
        images.load(np.array([1]))


def test_not_a_picture(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(BadData, match=r"'text.png' is not a picture"):
        images_of(tmp_path / "text.png").check()


def test_formats_that_run_other_programs_are_not_read(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    with pytest.raises(BadData, match="is not a picture"):
        images_of(tmp_path / "a.png").load(np.array([0]))


@pytest.mark.parametrize(("side", "limit"), [(100_000, 64_000_000), (8_001, 64_000_000), (10_000, 10**9)])
def test_too_many_pixels(tmp_path: Path, side: int, limit: int) -> None:
    """A file of a few bytes would fill the memory.

    The three cases are above both limits, above vitfit's limit only, and above the limit of Pillow's warning only.
    """

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    with pytest.raises(TooLarge, match=rf"'bomb.png' is too large.*limit is {limit} pixels"):
        images_of(bomb, limits=Limits(pixels=limit)).check()


def test_folder_is_listed_by_name(tmp_path: Path) -> None:
    for name in ("b/2.png", "a/1.JPG", "b/1.png"):
        draw(tmp_path / name)
    (tmp_path / "a" / "notes.txt").touch()
    (tmp_path / "a" / ".hidden.png").touch()
    files, ignored = list_folder(tmp_path, [tmp_path], Limits())
    assert [file.name for file in files] == ["a/1.JPG", "b/1.png", "b/2.png"]
    assert ignored == 2


def test_a_folder_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="holds no pictures"):
        list_folder(tmp_path, [tmp_path], Limits())


def test_a_folder_with_too_many(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").touch()
    with pytest.raises(TooLarge, match="more than 2 pictures"):
        list_folder(tmp_path, [tmp_path], Limits(members=2))


def test_links_stay_inside(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", draw(tmp_path / "outside" / "x.png")
    inside = draw(root / "a" / "x.png")
    os.symlink(inside, root / "a" / "link.png")
    files, _ = list_folder(root, [root], Limits())
    assert [file.path for file in files] == [inside, inside]
    os.symlink(outside, root / "a" / "climber.png")
    with pytest.raises(UnsafeFile, match="leads out"):
        list_folder(root, [root], Limits())
    assert len(list_folder(root, [root, outside.parent], Limits())[0]) == 3


def test_links_to_folders_are_refused(tmp_path: Path) -> None:
    draw(tmp_path / "outside" / "x.png")
    draw(tmp_path / "root" / "x.png")
    os.symlink(tmp_path / "outside", tmp_path / "root" / "more")
    with pytest.raises(UnsafeFile, match="link to a folder"):
        list_folder(tmp_path / "root", [tmp_path / "root"], Limits())


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["cat/1.png", "dog/1.png"], Grouping(("cat", "dog"), None)),
        (["data/set/cat/1.png", "data/set/dog/deep/1.png"], Grouping(("cat", "dog"), None)),
        (["1.png", "2.png"], Grouping(None, None)),
        (["all/1.png", "all/2.png"], Grouping(None, None)),
        (["train/cat/1.png", "test/dog/1.png"], Grouping(("cat", "dog"), ("train", "test"))),
        (["d/train/i/cat/1.png", "d/test/i/dog/1.png"], Grouping(("cat", "dog"), ("train", "test"))),
        (["train/1.png", "test/1.png"], Grouping(None, ("train", "test"))),
        (["train/1.png", "cat/1.png"], Grouping(("train", "cat"), None)),
    ],
)
def test_what_folders_say(names: list[str], expected: Grouping) -> None:
    assert group(names) == expected


def test_pictures_beside_class_folders() -> None:
    with pytest.raises(BadData, match=r"'stray.png' is beside the class folders"):
        group(["cat/1.png", "dog/1.png", "stray.png"])


def test_a_split_whose_name_is_unclear() -> None:
    with pytest.raises(BadData, match="'val' is unclear"):
        group(["train/cat/1.png", "val/cat/1.png"])


@pytest.mark.parametrize(
    ("folders", "names", "count", "expected"),
    [
        (["dog", "cat", "dog"], None, None, [1, 0, 1]),
        (["dog", "cat", "dog"], None, 2, [1, 0, 1]),
        (["dog", "cat", "dog"], None, 3, None),
        (["dog", "cat", "dog"], ["emu", "dog", "cat"], 3, [1, 2, 1]),
        (["10", "9", "010"], None, 1000, [10, 9, 10]),
        (["a", "b", "c"], None, 2, [0, 1, 2]),
    ],
)
def test_labels_from_class_folders(
    folders: list[str], names: list[str] | None, count: int | None, expected: list[int] | None
) -> None:
    labels = labels_of(folders, names, count)
    assert (None if labels is None else labels.tolist()) == expected

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
from models.data.pictures import PictureFile, PictureImages, list_folder
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
    loaded = images_of(draw(tmp_path / f"a.{suffix}")).load(np.array([0]))[0]
    torch.testing.assert_close(loaded, torch.full((1, 1, 16, 16), (100 / 255 - 0.5) / 0.5), atol=0.02, rtol=0)


def test_rows_come_in_the_order_asked_for(tmp_path: Path) -> None:
    images = images_of(*(draw(tmp_path / f"{level}.png", level) for level in (0, 100, 200)))
    means = images.load(np.array([2, 0]))[0].mean((1, 2, 3))
    assert means.tolist() == pytest.approx([200 / 255 * 2 - 1, -1], abs=1e-5)


def test_pictures_are_decoded_only_when_asked_for(tmp_path: Path) -> None:
    """A picture that cannot be decoded does no harm until its row is loaded."""
    good, bad = draw(tmp_path / "good.png"), draw(tmp_path / "truncated.png", size=(500, 400))
    bad.write_bytes(bad.read_bytes()[:100])
    images = images_of(good, bad)
    images.checked()
    images.load(np.array([0]))
    with pytest.raises(DamagedFile, match=r"cannot decode the picture 'truncated.png'"):
        images.load(np.array([1]))


def test_not_a_picture(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(BadData, match=r"'text.png' is not a picture"):
        images_of(tmp_path / "text.png").checked()


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
        images_of(bomb, limits=Limits(pixels=limit)).checked()


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


def test_a_damaged_picture_among_many_is_skipped_and_named(tmp_path: Path) -> None:
    paths = [draw(tmp_path / f"{number:03}.png", number, (40, 30)) for number in range(200)]
    paths[50].write_bytes(paths[50].read_bytes()[:60])  # the header can be read, the pixels cannot
    paths[150].write_text("hello")
    images = images_of(*paths).checked()
    assert len(images) == 199
    assert images.warnings() == ("vitfit skipped 1 damaged pictures: '150.png'.",)
    loaded, rows = images.load(np.arange(48, 53))
    assert rows.tolist() == [48, 49, 51, 52]
    levels = ((loaded.mean((1, 2, 3)) * 0.5 + 0.5) * 255).round().int().tolist()
    assert levels == [48, 49, 51, 52]
    assert images.warnings()[1] == "vitfit skipped 1 damaged pictures: '050.png'."


def test_more_damaged_pictures_than_one_percent_are_an_error(tmp_path: Path) -> None:
    paths = [draw(tmp_path / f"{number:03}.png", number, (40, 30)) for number in range(200)]
    for place in (10, 20, 30):
        paths[place].write_bytes(paths[place].read_bytes()[:60])
    with pytest.raises(DamagedFile, match=r"'030.png'"):
        images_of(*paths).checked().load(np.arange(200))


def test_grey_pictures_of_16_bits_are_taken_by_their_upper_8(tmp_path: Path) -> None:
    deep = np.full((20, 20), 200 * 256 + 17, dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    images = images_of(tmp_path / "deep.png").checked()
    torch.testing.assert_close(images.load(np.array([0]))[0], torch.full((1, 1, 16, 16), (200 / 255 - 0.5) / 0.5))
    assert "1 of 1 pictures have 16 bits" in images.warnings()[0]


def test_pictures_do_not_serve_a_model_of_six_channels(tmp_path: Path) -> None:
    six = Preprocessing((6, 16, 16), (0.5,) * 6, (0.5,) * 6)
    images = PictureImages((PictureFile(draw(tmp_path / "a.png"), "a.png"),), six, Limits())
    with pytest.raises(BadData, match=r"6 channels.*Give the images as an .npz file"):
        images.checked()

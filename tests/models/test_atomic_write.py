"""Tests of files that appear completely or not at all."""

from pathlib import Path

import pytest

from models.atomic_write import replacing, write_whole


def test_what_was_there_stays_until_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "state.json"
    write_whole(file, "old")

    def full(self: Path, content: bytes) -> int:
        with self.open("wb") as handle:
            handle.write(content[:2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(file, "newer")
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


def test_text_and_bytes(tmp_path: Path) -> None:
    for content in ("é", b"\x00\xff"):
        write_whole(tmp_path / "file", content)
        assert (tmp_path / "file").read_bytes() == (content.encode() if isinstance(content, str) else content)


def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    with replacing(file) as beside:
        beside.write_text("first")
        assert not file.exists()
    with pytest.raises(RuntimeError), replacing(file) as beside:
        beside.write_text("half")
        raise RuntimeError
    assert file.read_text() == "first" and list(tmp_path.iterdir()) == [file]

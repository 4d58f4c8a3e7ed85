"""Tests of files that are no weights: the message says what they are, and what to do."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models.errors import DamagedFile
from models.loading.checkpoint_file import read_checkpoint

FILES = {
    "empty": (b"", "empty: it has 0 bytes"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
    "HTML": (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
    "upper case": (b"<HTML><BODY>404</BODY></HTML>", "web page"),
    "JSON": (b'{"error": "Repository not found"}', "Repository not found.*not a model"),
    "Keras": (b"\x89HDF\r\n\x1a\n" + bytes(100), "Keras"),
    "gzip": (b"\x1f\x8b\x08" + bytes(100), "gzip"),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_model_is_named(tmp_path: Path, name: str, suffix: str) -> None:
    content, said = FILES[name]
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(DamagedFile, match=said):
        read_checkpoint(path)


def test_the_content_decides_and_not_the_name(tmp_path: Path) -> None:
    save_file({"a": torch.arange(3.0)}, tmp_path / "weights.pth")
    torch.save({"a": torch.arange(3.0)}, tmp_path / "weights.safetensors")
    for path in tmp_path.iterdir():
        assert torch.equal(read_checkpoint(path)["a"], torch.arange(3.0))

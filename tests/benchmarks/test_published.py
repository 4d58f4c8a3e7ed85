"""Tests of the command that reproduces ImageNet rows, on a tiny folder with ImageNet's layout."""

import json
from pathlib import Path

import pytest

from benchmarks.published.__main__ import main, request_of
from benchmarks.published.cases import CASES, half_unit
from benchmarks.published.pictures import class_names, noise, view
from models.data.open_dataset import open_data
from models.data.preprocessing import Preprocessing


def test_train_and_val_become_splits_that_do_not_overlap(tmp_path: Path) -> None:
    root = noise(tmp_path / "imagenet")
    folder = view(root, tmp_path / "view", train=20, test=None)
    names = {
        split: {p.name for p in (folder / split).glob("*/*")} for split in ("selection", "calibration", "train", "test")
    }
    assert [len(names[split]) for split in names] == [16, 16, 20, 16]
    assert not names["selection"] & (names["calibration"] | names["train"])
    assert names["test"] == {path.name for path in (root / "val").glob("*/*")}


def test_labels_are_imagenets_own(tmp_path: Path) -> None:
    """Use eight of the thousand class folders.

    The number of a class comes from the name of its folder, not from the order of the folders.
    """
    root = noise(tmp_path / "imagenet")
    for split in ("train", "val"):
        (root / split / class_names()[3]).rename(root / split / class_names()[700])
    folder = view(root, tmp_path / "view", None, None)
    description = {"source": "path", "path": str(folder), "filename": "view"}
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    roots = (folder.resolve(), root.resolve())
    data = open_data(
        tmp_path, Preprocessing((3, 32, 32), (0.5,) * 3, (0.5,) * 3), 1000, roots, class_names=class_names()
    )
    labels = data.take("test", 100, 0).labels
    assert labels is not None and set(labels.tolist()) == {0, 1, 2, 4, 5, 6, 7, 700}


def test_a_row_asks_for_what_was_published() -> None:
    assert half_unit(2.66) == pytest.approx(0.005) and half_unit(13.8) == pytest.approx(0.05)
    for case in CASES:
        request = request_of(case, trials=2, epochs=0)
        assert {b.metric for b in request.budgets} == {"macs", "params"} & set(case.published)
        assert request.method == case.method


def test_an_unknown_row_and_a_wrong_folder_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--rows", "no such row"])
    assert "there are CP-ViT, DeiT-S" in capsys.readouterr().err
    (tmp_path / "train").mkdir()
    with pytest.raises(SystemExit, match="<wnid>"):
        main(["--imagenet", str(tmp_path), "--output", str(tmp_path / "out")])


@pytest.mark.slow
def test_the_command_writes_the_table_and_keeps_finished_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = noise(tmp_path / "imagenet")
    arguments = [
        "--imagenet",
        str(root),
        "--random",
        "--rows",
        "CP-ViT, DeiT-S",
        "--trials",
        "1",
        "--output",
        str(tmp_path),
    ]
    main(arguments)
    (row,) = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert row["macs"] <= 2.665e9 and row["passed"] and row["accuracy"] is not None
    assert "| CP-ViT, DeiT-S | 2.6" in capsys.readouterr().out
    before = (tmp_path / "cp-vit--deit-s.json").stat().st_mtime_ns
    main(arguments)
    assert (tmp_path / "cp-vit--deit-s.json").stat().st_mtime_ns == before

"""Open a data set: an .npz file, an archive or a folder of pictures.

It is checked here as far as possible without decoding all images.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.data.allowed_path import below_allowed
from models.data.archive import Limits, unpack
from models.data.arrays import read_npz
from models.data.class_folders import group, labels_of
from models.data.dataset import Dataset, Images
from models.data.pictures import PictureFile, PictureImages, list_folder
from models.data.preprocessing import Preprocessing
from models.data.splits import SPLIT_CYCLE, SPLITS, Rows, Split, given_rows, split_rows
from models.errors import BadData, DamagedFile, InvalidRequest, TooLarge, UnsafeFile
from models.offline import offline

NEEDED: dict[Split, int] = {"calibration": 16, "selection": 8, "test": 8, "train": 16}
FEW = 100  # with fewer images, the accuracy on a split changes in steps of more than one percentage point
SOURCES = ("npz", "archive", "path")
NO_MODEL = Preprocessing((3, 224, 224), (0.0,) * 3, (1.0,) * 3)


@offline()
def open_data(
    folder: Path,
    preprocessing: Preprocessing | None,
    classes: int | None,
    allowed: Sequence[Path] = (),
    *,
    class_names: Sequence[str] | None = None,
    limits: Limits | None = None,
) -> Dataset:
    """Open the data set that `folder/dataset.json` describes, and check it as far as possible without decoding it.

    Args:
        folder: the folder of the data set; an archive is unpacked into it once.
        preprocessing: the preprocessing of the model. None: no model is known yet, so sizes are not checked and images
            are not loaded.
        classes: number of classes of the model, to check the labels. None: unknown.
        allowed: folders below which a "path" data set may lie.
        class_names: class names of the model, to recognise class folders by name.
        limits: upper limits for sizes.

    Raises:
        BadData: images, labels or splits cannot be used, or there are too few.
        DamagedFile, TooLarge, UnsafeFile: the file cannot be read, exceeds a limit or is unsafe.
        InvalidRequest: `dataset.json` names a source or a path that is not allowed.
    """
    limits = limits or Limits()
    any_size = preprocessing is None
    preprocessing = preprocessing or NO_MODEL
    path = _locate(folder, _description(folder), allowed)
    if path.suffix == ".npz" and path.is_file():
        _check_size(path, limits)
        arrays = read_npz(path, preprocessing, limits, any_size)
        return _dataset(arrays.images, arrays.labels, arrays.splits, classes, warnings=[])
    files, ignored = _list_pictures(path, folder, allowed, limits)
    images = PictureImages(tuple(files), preprocessing, limits).checked()
    return _picture_dataset(images, ignored, classes, class_names)


def _description(folder: Path) -> dict[str, Any]:
    file = folder / "dataset.json"
    try:
        value = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise DamagedFile(f"vitfit cannot read the file {str(file)!r} ({error}). Upload the data set again.") from error
    if not isinstance(value, dict) or value.get("source") not in SOURCES:
        source = value.get("source") if isinstance(value, dict) else None
        raise InvalidRequest(
            f"The data set has the source {source!r}. Use one of these sources: {', '.join(SOURCES)}.", source=source
        )
    return value


def _locate(folder: Path, description: Mapping[str, Any], allowed: Sequence[Path]) -> Path:
    """Return the file or folder with the images. Raises: UnsafeFile if it is outside of the allowed folders."""
    source = description["source"]
    if source == "path":
        return _allowed_path(description.get("path"), allowed)
    names = ("data.npz",) if source == "npz" else ("data.zip", "data.tar")
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DamagedFile(f"The data set has no {' or '.join(names)}. Upload the data set again.", folder=str(folder))


def _allowed_path(text: Any, allowed: Sequence[Path]) -> Path:
    """Return the real path of a "path" data set.

    Links are resolved first, so no link can lead out of the allowed folders.
    """
    if not isinstance(text, str) or not Path(text).is_absolute() or "\0" in text:
        raise InvalidRequest(
            f"The data set has the path {text!r}. The path must be absolute and must not hold a NUL character. Give a"
            " path that begins with '/'.",
            path=text,
        )
    real = below_allowed(text, allowed)
    if real is None:
        names = ", ".join(str(root) for root in allowed) or "none"
        raise UnsafeFile(
            f"The path {text!r} is outside of the folders that the operator allows ({names}). Give a path inside one of"
            " these folders, or ask the operator to allow this folder.",
            path=text,
        )
    if not real.exists():
        raise InvalidRequest(
            f"The path {text!r} does not exist on the server. Give the path of a file or folder that exists.", path=text
        )
    return real


def _check_size(path: Path, limits: Limits) -> None:
    size = path.stat().st_size
    if size > limits.packed_bytes:
        raise TooLarge(
            f"The file of the data set has {size} bytes. The limit is {limits.packed_bytes} bytes. Give fewer or"
            " smaller images.",
            bytes=size,
        )


def _list_pictures(path: Path, folder: Path, allowed: Sequence[Path], limits: Limits) -> tuple[list[PictureFile], int]:
    """Return the pictures, sorted by name, and the number of other files.

    An archive is first unpacked into `folder`.
    """
    if path.is_dir():
        return list_folder(path, [root.resolve() for root in allowed], limits)
    pictures = folder / "pictures"
    unpacked = unpack(path, pictures, limits)
    files = [PictureFile(pictures / file, name) for file, name in zip(unpacked.files, unpacked.names, strict=True)]
    return sorted(files, key=lambda file: file.name), unpacked.ignored


def _picture_dataset(
    images: PictureImages, ignored: int, classes: int | None, class_names: Sequence[str] | None
) -> Dataset:
    grouping = group([file.name for file in images.files])
    images = dataclasses.replace(images, files=tuple(images.files[row] for row in grouping.rows))
    labels, warnings = None, list(grouping.notes)
    if grouping.classes is None:
        warnings.append(
            "All pictures are in one folder, so they have no labels. The report shows the agreement with the original"
            " instead of the accuracy."
        )
    else:
        labels, notes = labels_of(grouping.classes, class_names, classes)
        warnings += notes
        if labels is None:
            warnings.append(
                f"The pictures are in {len(set(grouping.classes))} class folders, but the model has {classes} classes."
                " vitfit cannot tell which class each folder holds, so the pictures have no labels. Rename each folder"
                " to its class name or its class number."
            )
    if ignored:
        warnings.append(f"vitfit ignored {ignored} files, because they are not pictures.")
    return _dataset(images, labels, grouping.splits, classes, warnings=warnings)


def _dataset(
    images: Images, labels: Rows | None, splits: tuple[str, ...] | None, classes: int | None, *, warnings: list[str]
) -> Dataset:
    if not len(images):
        raise BadData(f"The data set has no images. {_needs()}", images=0)
    if labels is not None:
        _check_labels(labels, classes)
    rows, notes = (split_rows(len(images), labels), []) if splits is None else given_rows(splits, labels)
    warnings = [*warnings, *notes]
    for split in SPLITS:
        if len(rows[split]) < NEEDED[split]:
            raise BadData(
                f"The split {split!r} has {len(rows[split])} of the {len(images)} images. {_needs()}",
                split=split,
                images=len(rows[split]),
                needed=dict(NEEDED),
            )
    if splits is None:
        warnings = [
            *warnings,
            "The data set defines no splits. vitfit uses half of the images for calibration, a quarter for selection"
            " and a quarter for test.",
        ]
    few = [f"{split} ({len(rows[split])})" for split in SPLITS[1:3] if len(rows[split]) < FEW]
    if few:
        warnings = [
            *warnings,
            f"These splits have fewer than {FEW} images: {', '.join(few)}. The accuracies on them are imprecise.",
        ]
    return Dataset(images, labels, rows, tuple(warnings))


def _needs() -> str:
    needs = ", ".join(f"{count} images for {split}" for split, count in NEEDED.items() if split != "train")
    total = len(SPLIT_CYCLE) * NEEDED["test"]
    return f"A data set needs at least {needs}. If it defines no splits, it needs at least {total} images. Add images."


def _check_labels(labels: Rows, classes: int | None) -> None:
    known = None if classes is None else max(classes, 2)  # one logit stands for two classes
    wrong = labels < 0 if known is None else (labels < 0) | (labels >= known)
    if wrong.any():
        row = int(np.argmax(wrong))
        allowed = "0 or more" if known is None else f"0 to {known - 1}, because the model has {known} classes"
        raise BadData(
            f"Image {row} has label {labels[row]}. Allowed labels: {allowed}. Correct the labels.",
            image=row,
            label=int(labels[row]),
            classes=classes,
        )

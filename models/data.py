"""Images for a job, in splits that never mix, whatever they came as: an .npz, an archive or a folder of pictures.

calibration  statistics and recovery          train  fine-tuning (the same images as calibration, unless told apart)
selection    scores of the search             test   the report, and nothing else
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.archive import Limits, unpack
from models.arrays import read_npz
from models.errors import BadData, DamagedFile, InvalidRequest, TooLarge, UnsafeFile
from models.pictures import PictureFile, PictureImages, group, labels_of, list_folder
from models.preprocessing import Preprocessing

Split = Literal["calibration", "selection", "test", "train"]
SPLITS: tuple[Split, ...] = ("calibration", "selection", "test", "train")
NEEDED: dict[Split, int] = {"calibration": 16, "selection": 8, "test": 8, "train": 16}
FEW = 100  # below this many images a split's accuracy is coarser than a point
SPLIT_SEED = 0  # a data set without splits is split the same way in every job
SPLIT_CYCLE: tuple[Split, ...] = ("calibration", "selection", "calibration", "test")
SOURCES = ("npz", "archive", "path")
Rows = npt.NDArray[np.int64]
NO_MODEL = Preprocessing((3, 224, 224), (0.0,) * 3, (1.0,) * 3)


class Images(Protocol):
    """The network's inputs of a data set, loaded by row number. Open for new kinds of files."""

    def __len__(self) -> int: ...

    def load(self, rows: Rows) -> Tensor:
        """float32 (len(rows), C, H, W)."""


@dataclass(frozen=True)
class Batch:
    """`images` float32 (N, C, H, W); `labels` int64 (N,) or None; `indices` int64 (N,), rows of the data set."""

    images: Tensor
    labels: Tensor | None
    indices: Tensor


@dataclass(frozen=True)
class Dataset:
    """Images in splits. `assessed` is False where they are noise, on which an accuracy would mean nothing."""

    images: Images
    labels: Rows | None
    rows: Mapping[Split, Rows]
    warnings: tuple[str, ...] = field(default=())
    assessed: bool = True

    def count(self, split: Split) -> int:
        return len(self.rows[split])

    def take(self, split: Split, count: int, seed: int) -> Batch:
        """`count` images of a split (all, when it has fewer), drawn by the seed and in the order of the data set.

        A larger `count` with the same seed holds the same images and more.
        """
        rows = self.rows[split]
        chosen = np.random.default_rng(seed).permutation(len(rows))[:count]
        return self._batch(rows[np.sort(chosen)])

    def batches(self, split: Split, size: int) -> Iterator[Batch]:
        """All images of a split in their order, at most `size` at a time; only these are in memory."""
        rows = self.rows[split]
        for start in range(0, len(rows), size):
            yield self._batch(rows[start : start + size])

    def _batch(self, rows: Rows) -> Batch:
        labels = None if self.labels is None else torch.from_numpy(self.labels[rows])
        return Batch(self.images.load(rows), labels, torch.from_numpy(rows.copy()))

    def describe(self) -> dict[str, Any]:
        """JSON: what the service tells the user about his data."""
        return {
            "images": len(self.images),
            "labelled": self.labels is not None,
            "classes": None if self.labels is None else len(np.unique(self.labels)),
            "splits": {split: self.count(split) for split in SPLITS},
            "warnings": list(self.warnings),
        }


def open_data(
    folder: Path,
    preprocessing: Preprocessing | None,
    classes: int | None,
    allowed: Sequence[Path] = (),
    *,
    class_names: Sequence[str] | None = None,
    limits: Limits | None = None,
) -> Dataset:
    """The data set that `folder/dataset.json` describes, checked as far as it can be without decoding all of it.

    Args:
        folder: of the data set; archives are unpacked into it once.
        preprocessing: of the model; None: no model is known yet, sizes are not judged and images not loaded.
        classes: number of classes of the model, to check the labels against; None: unknown.
        allowed: folders whose contents a "path" data set may name.
        class_names: of the model, to tell class folders by name.
        limits: on sizes.

    Raises:
        BadData: images, labels or splits that cannot be used, or too few of them.
        DamagedFile, TooLarge, UnsafeFile: the file itself.
        InvalidRequest: `dataset.json` names a source or a path that is not allowed.
    """
    limits = limits or Limits()
    any_size = preprocessing is None
    preprocessing = preprocessing or NO_MODEL
    path = _locate(folder, _description(folder), allowed)
    if path.suffix == ".npz" and path.is_file():
        _check_size(path, limits)
        arrays = read_npz(path, preprocessing, limits, any_size)
        return _dataset(arrays.images, arrays.labels, arrays.splits, classes, [])
    files, ignored = _list_pictures(path, folder, allowed, limits)
    images = PictureImages(tuple(files), preprocessing, limits)
    images.check()
    return _picture_dataset(images, ignored, classes, class_names)


def noise_data(preprocessing: Preprocessing, count: int, seed: int) -> Dataset:
    """Seeded noise where there is no data: enough to prune and to measure by, not to assess an accuracy."""
    warning = "No data: seeded noise stands in. Accuracy is not assessed; agreement on noise says little."
    rows = _split_rows(count, None)
    return Dataset(NoiseImages(preprocessing.size, count, seed), None, rows, (warning,), assessed=False)


@dataclass(frozen=True)
class NoiseImages:
    """Standard normal values; image i depends on the seed and i only."""

    size: tuple[int, int, int]
    count: int
    seed: int

    def __len__(self) -> int:
        return self.count

    def load(self, rows: Rows) -> Tensor:
        """float32 (len(rows), C, H, W)."""
        images = np.empty((len(rows), *self.size), dtype=np.float32)
        for place, row in enumerate(rows):
            np.random.default_rng([self.seed, int(row)]).standard_normal(dtype=np.float32, out=images[place])
        return torch.from_numpy(images)


def _description(folder: Path) -> dict[str, Any]:
    file = folder / "dataset.json"
    try:
        value = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise DamagedFile(f"{str(file)!r} cannot be read ({error}). Upload the data set again.") from error
    if not isinstance(value, dict) or value.get("source") not in SOURCES:
        source = value.get("source") if isinstance(value, dict) else None
        raise InvalidRequest(f"A data set's source is {source!r}; allowed: {', '.join(SOURCES)}.", source=source)
    return value


def _locate(folder: Path, description: Mapping[str, Any], allowed: Sequence[Path]) -> Path:
    """The file or folder with the images. Raises: UnsafeFile when it is outside of the allowed folders."""
    source = description["source"]
    if source == "path":
        return _allowed_path(description.get("path"), allowed)
    names = ("data.npz",) if source == "npz" else ("data.zip", "data.tar")
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DamagedFile(f"The data set has no {' or '.join(names)}. Upload it again.", folder=str(folder))


def _allowed_path(text: Any, allowed: Sequence[Path]) -> Path:
    """Links are followed before the comparison, so none can climb out."""
    if not isinstance(text, str) or not Path(text).is_absolute() or "\0" in text:
        raise InvalidRequest(f"A data set's path is {text!r}; an absolute path is needed.", path=text)
    real = Path(text).resolve()
    roots = [root.resolve() for root in allowed]
    if not any(real.is_relative_to(root) for root in roots):
        names = ", ".join(str(root) for root in allowed) or "none"
        raise UnsafeFile(f"{text!r} is outside of the folders that the operator allows ({names}).", path=text)
    if not real.exists():
        raise InvalidRequest(f"{text!r} does not exist.", path=text)
    return real


def _check_size(path: Path, limits: Limits) -> None:
    size = path.stat().st_size
    if size > limits.packed_bytes:
        raise TooLarge(f"The file has {size} bytes; at most {limits.packed_bytes} are allowed.", bytes=size)


def _list_pictures(path: Path, folder: Path, allowed: Sequence[Path], limits: Limits) -> tuple[list[PictureFile], int]:
    """The pictures by name and the number of other files; an archive is unpacked into `folder` first."""
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
    labels, warnings = None, []
    if grouping.classes is None:
        warnings.append("All pictures lie in one folder, so they have no labels: agreement is reported, not accuracy.")
    else:
        labels = labels_of(grouping.classes, class_names, classes)
        if labels is None:
            warnings.append(
                f"{len(set(grouping.classes))} class folders cannot be told apart as the model's {classes} classes, so"
                " they are not used as labels. Call the folders by class name or by class number."
            )
    if ignored:
        warnings.append(f"{ignored} files are no pictures and were left out.")
    return _dataset(images, labels, grouping.splits, classes, warnings)


def _dataset(
    images: Images, labels: Rows | None, splits: tuple[str, ...] | None, classes: int | None, warnings: list[str]
) -> Dataset:
    if not len(images):
        raise BadData(f"There are no images; {_needs()}.", images=0)
    if labels is not None:
        _check_labels(labels, classes)
    rows = _split_rows(len(images), labels) if splits is None else _given_rows(splits)
    for split in SPLITS:
        if len(rows[split]) < NEEDED[split]:
            raise BadData(
                f"The split {split!r} has {len(rows[split])} of the {len(images)} images; {_needs()}.",
                split=split,
                images=len(rows[split]),
                needed=dict(NEEDED),
            )
    if splits is None:
        warnings = [*warnings, "The data brings no split: half calibrates, a quarter selects, a quarter tests."]
    few = [f"{split} ({len(rows[split])})" for split in SPLITS[1:3] if len(rows[split]) < FEW]
    if few:
        warnings = [*warnings, f"Fewer than {FEW} images: {', '.join(few)}. Accuracies on them are coarse."]
    return Dataset(images, labels, rows, tuple(warnings))


def _needs() -> str:
    needs = ", ".join(f"{count} for {split}" for split, count in NEEDED.items() if split != "train")
    return f"at least {needs} are needed (without given splits: {len(SPLIT_CYCLE) * NEEDED['test']} in all)"


def _check_labels(labels: Rows, classes: int | None) -> None:
    wrong = labels < 0 if classes is None else (labels < 0) | (labels >= classes)
    if wrong.any():
        row = int(np.argmax(wrong))
        top = "" if classes is None else f" to {classes - 1}, the model's last class"
        raise BadData(
            f"Image {row} has label {labels[row]}; allowed: 0{top}.", image=row, label=int(labels[row]), classes=classes
        )


def _given_rows(splits: Sequence[str]) -> dict[Split, Rows]:
    """The splits that the data brings. "train" serves calibration where there is none, and the other way round."""
    unknown = sorted(set(splits) - set(SPLITS))
    if unknown:
        raise BadData(f"The split {unknown[0]!r} is unknown; allowed: {', '.join(SPLITS)}.", split=unknown[0])
    names = np.array(splits)
    rows = {split: np.flatnonzero(names == split) for split in SPLITS}
    if not len(rows["calibration"]):
        rows["calibration"] = rows["train"]
    if not len(rows["train"]):
        rows["train"] = rows["calibration"]
    return rows


def _split_rows(count: int, labels: Rows | None) -> dict[Split, Rows]:
    """A seeded split, the same shares of every class (to within one image): images are dealt out class by class."""
    order = np.random.default_rng(SPLIT_SEED).permutation(count)
    if labels is not None:
        order = order[np.argsort(labels[order], kind="stable")]
    place = np.arange(count) % len(SPLIT_CYCLE)
    dealt = {split: [turn for turn, name in enumerate(SPLIT_CYCLE) if name == split] for split in SPLITS}
    rows = {split: np.sort(order[np.isin(place, turns)]) for split, turns in dealt.items()}
    rows["train"] = rows["calibration"]
    return rows

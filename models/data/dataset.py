"""The images of a job in splits. They come from an .npz file, an archive or a folder of pictures.

calibration  for statistics and recovery
selection    for the scores of the search
test         for the report only
train        for fine-tuning; these are the calibration images, unless the data set has a split of its own for training

Calibration, selection and test share no images.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Split = Literal["calibration", "selection", "test", "train"]
SPLITS: tuple[Split, ...] = ("calibration", "selection", "test", "train")
SPLIT_SEED = 0  # a data set without splits is split the same way in every job
SPLIT_CYCLE: tuple[Split, ...] = ("calibration", "selection", "calibration", "test")
Rows = npt.NDArray[np.int64]


class Images(Protocol):
    """The images of a data set as inputs of the network, loaded by row number. Each kind of file implements this."""

    def __len__(self) -> int: ...

    def load(self, rows: Rows) -> Tensor:
        """Return the inputs in these rows, float32 (len(rows), C, H, W)."""


@dataclass(frozen=True)
class Batch:
    """Some images of a data set.

    images: float32 (N, C, H, W). labels: int64 (N,), or None. indices: int64 (N,), the rows in the data set.
    """

    images: Tensor
    labels: Tensor | None
    indices: Tensor


@dataclass(frozen=True)
class Dataset:
    """Images in splits. `assessed` is False if the images are noise, because an accuracy on noise means nothing."""

    images: Images
    labels: Rows | None
    rows: Mapping[Split, Rows]
    warnings: tuple[str, ...] = field(default=())
    assessed: bool = True

    def count(self, split: Split) -> int:
        return len(self.rows[split])

    def take(self, split: Split, count: int, seed: int) -> Batch:
        """Draw `count` images of a split (all images if it has fewer). The seed decides which; their order stays.

        A larger `count` with the same seed returns the same images and more.
        """
        rows = self.rows[split]
        chosen = np.random.default_rng(seed).permutation(len(rows))[:count]
        return self._batch(rows[np.sort(chosen)])

    def batches(self, split: Split, size: int) -> Iterator[Batch]:
        """Yield all images of a split in order, at most `size` at a time. Only one batch is in memory."""
        rows = self.rows[split]
        for start in range(0, len(rows), size):
            yield self._batch(rows[start : start + size])

    def _batch(self, rows: Rows) -> Batch:
        labels = None if self.labels is None else torch.from_numpy(self.labels[rows])
        return Batch(self.images.load(rows), labels, torch.from_numpy(rows.copy()))

    def describe(self) -> dict[str, Any]:
        """Return a JSON description of the data set, which the service shows to the user."""
        return {
            "images": len(self.images),
            "labelled": self.labels is not None,
            "classes": None if self.labels is None else len(np.unique(self.labels)),
            "splits": {split: self.count(split) for split in SPLITS},
            "warnings": list(self.warnings),
        }


def split_rows(count: int, labels: Rows | None) -> dict[Split, Rows]:
    """Split `count` images at random with a fixed seed.

    Images are distributed class by class, so each split gets the same share of every class, to within one image.
    """
    order = np.random.default_rng(SPLIT_SEED).permutation(count)
    if labels is not None:
        order = order[np.argsort(labels[order], kind="stable")]
    place = np.arange(count) % len(SPLIT_CYCLE)
    dealt = {split: [turn for turn, name in enumerate(SPLIT_CYCLE) if name == split] for split in SPLITS}
    rows = {split: np.sort(order[np.isin(place, turns)]) for split, turns in dealt.items()}
    rows["train"] = rows["calibration"]
    return rows

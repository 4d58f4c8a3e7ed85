"""Images for a job, in splits that never mix, whatever they came as: an .npz, an archive or a folder of pictures.

calibration  statistics and recovery          train  fine-tuning (the same images as calibration, unless told apart)
selection    scores of the search             test   the report, and nothing else
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


def split_rows(count: int, labels: Rows | None) -> dict[Split, Rows]:
    """A seeded split, the same shares of every class (to within one image): images are dealt out class by class."""
    order = np.random.default_rng(SPLIT_SEED).permutation(count)
    if labels is not None:
        order = order[np.argsort(labels[order], kind="stable")]
    place = np.arange(count) % len(SPLIT_CYCLE)
    dealt = {split: [turn for turn, name in enumerate(SPLIT_CYCLE) if name == split] for split in SPLITS}
    rows = {split: np.sort(order[np.isin(place, turns)]) for split, turns in dealt.items()}
    rows["train"] = rows["calibration"]
    return rows

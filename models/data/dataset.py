"""The images of a job in splits. They come from an .npz file, an archive or a folder of pictures."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from models.data.splits import SPLITS, Rows, Split


class Images(Protocol):
    """The images of a data set as inputs of the network, loaded by row number. Each kind of file implements this."""

    def __len__(self) -> int: ...

    def load(self, rows: Rows) -> tuple[Tensor, Rows]:
        """Return the inputs in these rows, float32 (n, C, H, W), and their rows (n,).

        Rows whose picture is damaged are left out.
        """

    def warnings(self) -> tuple[str, ...]:
        """Return remarks on the images that were found so far."""


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
    """Images in splits.

    Attributes:
        opening_warnings: remarks that were found when the data set was opened.
        assessed: False if the images are noise, because an accuracy on noise means nothing.
    """

    images: Images
    labels: Rows | None
    rows: Mapping[Split, Rows]
    opening_warnings: tuple[str, ...] = field(default=())
    assessed: bool = True

    @property
    def warnings(self) -> tuple[str, ...]:
        """All remarks on the data, with those that were found while images were loaded."""
        return (*self.opening_warnings, *self.images.warnings())

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
        images, rows = self.images.load(rows)
        labels = None if self.labels is None else torch.from_numpy(self.labels[rows])
        return Batch(images, labels, torch.from_numpy(rows.copy()))

    def describe(self) -> dict[str, Any]:
        """Return a JSON description of the data set, which the service shows to the user."""
        return {
            "images": len(self.images),
            "labelled": self.labels is not None,
            "classes": None if self.labels is None else len(np.unique(self.labels)),
            "splits": {split: self.count(split) for split in SPLITS},
            "warnings": list(self.warnings),
        }

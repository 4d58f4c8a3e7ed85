"""Seeded noise that replaces a missing data set."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.data.dataset import Dataset
from models.data.preprocessing import Preprocessing
from models.data.splits import Rows, split_rows


def noise_data(preprocessing: Preprocessing, count: int, seed: int) -> Dataset:
    """Return a data set of seeded noise, for jobs without data. It allows pruning and measuring, but no accuracy."""
    warning = (
        "The job has no data, so vitfit uses random noise as images. The accuracy is not assessed. The agreement with"
        " the original on noise says little about real images."
    )
    rows = split_rows(count, None)
    return Dataset(NoiseImages(preprocessing.size, count, seed), None, rows, (warning,), assessed=False)


@dataclass(frozen=True)
class NoiseImages:
    """Images of standard normal values. Image i depends only on the seed and on i."""

    size: tuple[int, int, int]
    count: int
    seed: int

    def __len__(self) -> int:
        return self.count

    def load(self, rows: Rows) -> tuple[Tensor, Rows]:
        """Return the images in these rows, float32 (len(rows), C, H, W), and the rows."""
        images = np.empty((len(rows), *self.size), dtype=np.float32)
        for place, row in enumerate(rows):
            np.random.default_rng([self.seed, int(row)]).standard_normal(dtype=np.float32, out=images[place])
        return torch.from_numpy(images), rows

    def warnings(self) -> tuple[str, ...]:
        """Return nothing: `noise_data` warns once."""
        return ()

"""Write the scenes of a task as a data set: `python -m benchmarks.scenes --task clutter --output scenes.npz`."""

import argparse
from pathlib import Path

import numpy as np

from benchmarks.scenes.task import COUNTS, TASKS, Task


def write_data(task: Task, path: Path, counts: dict[str, int]) -> None:
    """Write a data set of scenes at difficulty 1, with its splits, in vitfit's format."""
    images, labels, split = [], [], []
    for name, count in counts.items():
        shown, truth = task.split(name, count)
        images.append(shown.numpy())
        labels.append(truth.numpy())
        split += [name] * count
    np.savez_compressed(path, images=np.concatenate(images), labels=np.concatenate(labels), split=np.asarray(split))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=list(TASKS), default="clutter")
    parser.add_argument("--output", type=Path, default=Path("build/scenes.npz"))
    options = parser.parse_args()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_data(TASKS[options.task], options.output, COUNTS)


if __name__ == "__main__":
    main()

"""Find the model in a folder that a trainer of Hugging Face has left: its checkpoints are in folders below."""

import re
import shutil
from pathlib import Path, PurePosixPath

from models.loading.image_processor import FILES, read_json
from models.loading.weight_files import has_weights

CHECKPOINT = re.compile(r"checkpoint-(\d+)")
STATE = "trainer_state.json"
CONFIG = "config.json"


def checkpoint_part(name: str) -> str:
    """Return the part of a path that names a folder of a checkpoint, such as "checkpoint-500"; "" if there is none."""
    return next((part for part in reversed(PurePosixPath(name).parts[:-1]) if CHECKPOINT.fullmatch(part)), "")


def model_in(folder: Path) -> tuple[Path, list[str]]:
    """Return the folder with the model, and sentences that say which one was taken.

    Weights in `folder` itself come first. Otherwise the checkpoint comes first that trainer_state.json calls the best,
    and then the last one. Descriptions that lie beside the other weights only are copied to the model.
    """
    found = {int(path.name.partition("-")[2]): path for path in folder.iterdir() if CHECKPOINT.fullmatch(path.name)}
    weighty = {number: path for number, path in sorted(found.items()) if has_weights(path)}
    if has_weights(folder) or not weighty:
        if found:
            _complete(folder, found[max(found)])
        listed = ", ".join(path.name for _, path in sorted(found.items()))
        said = f"The folder has weights beside its checkpoints ({listed}): vitfit takes the weights of the folder."
        return folder, [said] if found and has_weights(folder) else []
    taken, why = _best(folder, weighty)
    _complete(taken, folder)
    listed = ", ".join(path.name for path in weighty.values())
    return taken, [f"The folder holds the checkpoints {listed}: vitfit takes {taken.name}, {why}."]


def _best(folder: Path, checkpoints: dict[int, Path]) -> tuple[Path, str]:
    last = checkpoints[max(checkpoints)]
    state = next((file for file in (folder / STATE, last / STATE) if file.is_file()), None)
    best = read_json(state).get("best_model_checkpoint") if state else None
    name = PurePosixPath(best.replace("\\", "/")).name if isinstance(best, str) else ""
    if taken := next((path for path in checkpoints.values() if path.name == name), None):
        return taken, f"the best one by {STATE}"
    missing = f" ({STATE} calls {name} the best one, but it is not there)" if name else ""
    return last, f"the last one{missing}"


def _complete(folder: Path, other: Path) -> None:
    """Copy the descriptions of a model that only the other folder has."""
    for name in (CONFIG, *FILES):
        if (other / name).is_file() and not (folder / name).exists():
            shutil.copyfile(other / name, folder / name)

"""Pack a model that consists of several files into one file: a Hugging Face folder, or an ONNX file with its data."""

import shutil
import zipfile
from pathlib import Path

DESCRIPTIONS = ("config.json", "preprocessor_config.json", "processor_config.json")
"""Files of Hugging Face that say how pictures are prepared and what the classes are called."""


def packed(model: Path, folder: Path) -> Path:
    """Return the single file that represents `model`; a zip file is written to `folder` if it is needed.

    model: a file or a folder. An ONNX file is packed with its external data, and with the files of Hugging Face that
    are in its folder.
    """
    if model.is_dir():
        return Path(shutil.make_archive(str(folder / "model"), "zip", model))
    beside = companions(model)
    if not beside:
        return model
    archive = folder / "model.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in (model, *beside):
            file.write(path, path.name)
    return archive


def companions(model: Path) -> list[Path]:
    """Return the files beside an ONNX file that belong to it: external data by usual names, and descriptions."""
    if model.suffix.lower() != ".onnx":
        return []
    data = (f"{model.name}.data", f"{model.name}_data", f"{model.stem}.data", f"{model.stem}_data", "weights.data")
    return [path for name in (*data, *DESCRIPTIONS) if (path := model.parent / name).is_file()]

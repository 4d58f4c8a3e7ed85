"""Find out where a model comes from, and pack a model that consists of several files.

A model is a timm name with options, a `model.json` (or its folder) with weights next to it, an ONNX file, a zip file,
or a Hugging Face folder.
"""

import json
import re
import shutil
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitfit.errors import VitfitError

WEIGHTS = ("weights.safetensors", "weights.pth")
PACKAGES = (".onnx", ".zip")
FIELDS = ("name", "options", "pretrained", "preprocessing", "classes")

DESCRIPTIONS = ("config.json", "preprocessor_config.json", "processor_config.json")
"""Files of Hugging Face that say how pictures are prepared and what the classes are called."""


@dataclass(frozen=True)
class ModelSource:
    """The content of a model.json, and the path of the weights."""

    name: str
    options: dict[str, Any]
    pretrained: bool | None = None
    preprocessing: dict[str, Any] | None = None
    classes: list[str] | None = None
    checkpoint: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the content of a complete model.json."""
        pretrained = self.checkpoint is None if self.pretrained is None else self.pretrained
        return {
            "name": self.name,
            "options": self.options,
            "pretrained": pretrained,
            "preprocessing": self.preprocessing,
            "classes": self.classes,
        }


def model_source(  # noqa: PLR0917  programs call it by position
    name: str,
    options: str | None = None,
    checkpoint: Path | None = None,
    pretrained: bool | None = None,
    preprocessing: str | None = None,
) -> ModelSource:
    """Create the source of a model from command-line values.

    `options` and `preprocessing` are JSON or `@FILE`. They override the values in the folder's model.json.

    Raises: VitfitError if a file is missing or has the wrong content.
    """
    path = Path(name)
    if path.suffix.lower() in PACKAGES or ((path / "config.json").is_file() and not (path / "model.json").is_file()):
        source = _from_package(path)
    else:
        source = _from_folder(path) if _is_file_or_folder(name) else ModelSource(name, {})
    if options is not None:
        source = replace(source, options={**source.options, **_object(options, "--options")})
    if preprocessing is not None:
        source = replace(source, preprocessing=_object(preprocessing, "--preprocessing"))
    if checkpoint is not None:
        source = replace(source, checkpoint=checkpoint)
    if pretrained is not None:
        source = replace(source, pretrained=pretrained)
    if source.checkpoint is not None and not source.checkpoint.exists():
        raise VitfitError.local(
            "no-such-file", f"There is no checkpoint {str(source.checkpoint)!r}. Give the path of a file with weights."
        )
    return source


def _from_package(path: Path) -> ModelSource:
    """Return the source for an ONNX file, a zip file, or a Hugging Face folder. The model is named after the file."""
    if not path.exists():
        raise VitfitError.local(
            "no-such-file", f"There is no file {str(path)!r}. Give the path of an ONNX file, a zip file or a folder."
        )
    name = (
        re.sub(r"[^A-Za-z0-9_.\-]+", "-", path.resolve().name.removesuffix(path.suffix) or "model").strip("-.")
        or "model"
    )
    return ModelSource(name, {}, pretrained=False, checkpoint=path)


def _is_file_or_folder(name: str) -> bool:
    """Return whether `name` is a path and not a timm name.

    A timm name has no slash. `.`, a name that ends in .json, and a folder that contains model.json are paths too.
    """
    return "/" in name or "\\" in name or name == "." or name.endswith(".json") or (Path(name) / "model.json").is_file()


def _from_folder(path: Path) -> ModelSource:
    file = path / "model.json" if path.is_dir() else path
    if not file.is_file():
        raise VitfitError.local(
            "no-such-file",
            f"There is no file {str(file)!r}. Give the name of a timm model, or a folder with model.json.",
        )
    value = _object("@" + str(file), str(file))
    if unknown := sorted(set(value) - set(FIELDS)):
        raise VitfitError.local(
            "bad-file",
            f"The file {file} has the unknown field {unknown[0]!r}. Allowed fields: {', '.join(FIELDS)}.",
        )
    if not isinstance(value.get("name"), str):
        raise VitfitError.local(
            "bad-file", f"The file {file} lacks the field 'name'. Set it to the name of a timm model."
        )
    weights = next((file.parent / name for name in WEIGHTS if (file.parent / name).is_file()), None)
    return ModelSource(**{"options": {}, **value, "checkpoint": weights})


def _object(text: str, origin: str) -> dict[str, Any]:
    """Return the JSON object in `text`, or in the file if `text` is `@FILE`. Raises: VitfitError."""
    try:
        value = json.loads(Path(text[1:]).read_text() if text.startswith("@") else text)
    except OSError as error:
        raise VitfitError.local(
            "no-such-file", f"{origin}: the file {text[1:]} cannot be read ({error.strerror}). Check its path."
        ) from error
    except ValueError as error:
        raise VitfitError.local(
            "bad-json", f"{origin} is not JSON: {error}. Write it like '{{\"depth\": 6}}'."
        ) from error
    if not isinstance(value, dict):
        raise VitfitError.local("bad-json", f"{origin} must be a JSON object like '{{\"depth\": 6}}', not {text!r}.")
    return value


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

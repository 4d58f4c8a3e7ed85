"""Find out where a model comes from, and pack a model that consists of several files.

A model is a timm name with options, a `model.json` (or its folder) with weights next to it, an ONNX file, a zip file,
or a Hugging Face folder.
"""

import json
import re
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitfit.errors import VitfitError

WEIGHTS = ("weights.safetensors", "weights.pth")
PACKAGES = (".onnx", ".zip")
FIELDS = ("name", "options", "pretrained", "preprocessing", "classes", "weights")
CONFIGS = ("config.json", "checkpoint-*/config.json", "adapter_config.json")
"""Files by which a folder of Hugging Face is known; its trainer writes the checkpoints below it."""

WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")
TRAINERS_FILES = ("training_args", "optimizer", "scheduler", "rng_state", "scaler", "random_states", "events.out.")
"""What the names of files begin with that a trainer writes and that hold no weights."""

DESCRIPTIONS = ("config.json", "preprocessor_config.json", "processor_config.json")
"""Files of Hugging Face that say how pictures are prepared and what the classes are called."""


@dataclass(frozen=True)
class ModelSource:
    """The content of a model.json, and the path of the weights.

    weights: which set of weights of the checkpoint is taken: "ema", "model" or its name. None: vitfit chooses.
    """

    name: str
    options: dict[str, Any]
    pretrained: bool | None = None
    preprocessing: dict[str, Any] | None = None
    classes: list[str] | None = None
    checkpoint: Path | None = None
    weights: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the content of a complete model.json."""
        pretrained = self.checkpoint is None if self.pretrained is None else self.pretrained
        return {
            "name": self.name,
            "options": self.options,
            "pretrained": pretrained,
            "preprocessing": self.preprocessing,
            "classes": self.classes,
            **({"weights": self.weights} if self.weights else {}),  # earlier servers do not know the field
        }


def model_source(  # noqa: PLR0917  programs call it by position
    name: str,
    options: str | None = None,
    checkpoint: Path | None = None,
    pretrained: bool | None = None,
    preprocessing: str | None = None,
    *,
    weights: str | None = None,
) -> ModelSource:
    """Create the source of a model from command-line values.

    `options` and `preprocessing` are JSON or `@FILE`. They override the values in the folder's model.json. `weights`
    chooses one of several sets of weights in the checkpoint.

    Raises: VitfitError if a file is missing or has the wrong content.
    """
    path = Path(name)
    if path.suffix.lower() in PACKAGES or _is_hugging_face(path):
        source = _from_package(path)
    else:
        source = _from_folder(path) if _is_file_or_folder(name) else ModelSource(name, {})
    if options is not None:
        source = replace(source, options={**source.options, **_object(options, "--options")})
    if preprocessing is not None:
        source = replace(source, preprocessing=_object(preprocessing, "--preprocessing"))
    if checkpoint is not None:
        source = replace(source, checkpoint=checkpoint)
    if weights is not None:
        source = replace(source, weights=weights)
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


def _is_hugging_face(path: Path) -> bool:
    return not (path / "model.json").is_file() and any(next(path.glob(name), None) for name in CONFIGS)


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
            f"There is no file {str(file)!r}. Give the name of a timm model, or a folder with model.json or"
            f" config.json. If the folder {str(path)!r} holds only weights, give the name of their timm model, and the"
            " folder as --checkpoint.",
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
    are in its folder. The index of shards is packed with the shards. Of a folder, hidden files and a trainer's other
    files are left out; its checkpoints are left out if the folder has weights itself.

    Raises: VitfitError if a shard is missing.
    """
    members = _members(model) if model.is_dir() else [model, *companions(model)]
    if members == [model]:
        return model
    base = model if model.is_dir() else model.parent
    archive = folder / "model.zip"
    with zipfile.ZipFile(archive, "w", strict_timestamps=False) as file:
        for path in members:
            file.write(path, path.relative_to(base).as_posix())
    return archive


def _members(folder: Path) -> list[Path]:
    has_weights = any(next(folder.glob(pattern), None) for pattern in WEIGHT_FILES)
    found = []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if not path.is_file() or any(part.startswith(".") for part in parts) or path.name.startswith(TRAINERS_FILES):
            continue
        if has_weights and path.suffix != ".json" and any(re.fullmatch(r"checkpoint-\d+", part) for part in parts):
            continue
        found.append(path)
    return found


def companions(model: Path) -> list[Path]:
    """Return the files that belong to a file and are beside it.

    For an ONNX file: external data by usual names, and descriptions. For the index of shards: the shards.

    Raises: VitfitError if a shard is missing.
    """
    if model.name.endswith(".index.json"):
        return _shards(model)
    if model.suffix.lower() != ".onnx":
        return []
    data = (f"{model.name}.data", f"{model.name}_data", f"{model.stem}.data", f"{model.stem}_data", "weights.data")
    return [path for name in (*data, *DESCRIPTIONS) if (path := model.parent / name).is_file()]


def _shards(index: Path) -> list[Path]:
    placed = _object(f"@{index}", str(index)).get("weight_map")
    names = sorted(set(placed.values())) if isinstance(placed, dict) else []
    shards = [index.parent / Path(str(name)).name for name in names]
    if missing := [path.name for path in shards if not path.is_file()]:
        raise VitfitError.local(
            "no-such-file",
            f"The shard {missing[0]!r}, which {index.name} names, is not in the folder {str(index.parent)!r}. Add all"
            f" shards: {', '.join(missing[:8])}.",
        )
    return shards

"""Choose the weights in a checkpoint. Training scripts store several sets of them, with prefixes before the names."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Size, Tensor

from models.errors import CheckpointMismatch, InvalidRequest
from models.loading.adapters import refuse_adapter_weights
from models.loading.checkpoint_file import MODULE

AVERAGED = ("state_dict_ema", "model_ema", "ema", "ema_state_dict", "ema_model", "params_ema", "shadow", "teacher")
"""Names of averaged weights (EMA). The teacher of DINO is the average of its student."""
TRAINED = (
    *("model", "state_dict", "model_state_dict", "module", "network", "net", "params", "weights", "student"),
    *("backbone", "encoder", MODULE),
)
"""Names of the weights that training itself changed. The averaged weights come first, as in timm."""
EMA, MODEL = "ema", "model"
"""Choices of the user: averaged weights, or those that training changed. A third choice is the name of a set."""
SHOWN = 8
MOST_PARTS = 12
"""Largest number of parts of a name that may belong to a prefix."""


@dataclass(frozen=True)
class Weights:
    """The chosen weights, by the names of the model. said: sentences about what was assumed."""

    tensors: dict[str, Tensor]
    said: list[str]


@dataclass(frozen=True)
class _Candidate:
    """Weights with names of the model.

    place: the entry of the file that holds them; empty for the file itself. prefix: what stands before their names.
    names: the number of names that the model has too. shapes: how many of these have the model's shape.
    """

    place: str
    prefix: str
    names: int
    shapes: int

    @property
    def title(self) -> str:
        return ".".join(filter(None, (self.place, self.prefix.rstrip("."))))

    @property
    def is_averaged(self) -> bool:
        return any(part in AVERAGED for part in self.title.split("."))

    def matches(self, wanted: str | None) -> bool:
        if wanted in (EMA, MODEL):
            return self.is_averaged == (wanted == EMA)
        return wanted is None or wanted.rstrip(".") in (
            *(self.title, self.place, self.prefix.rstrip(".")),
            *self.title.split("."),
        )


def chosen_weights(content: Mapping[Any, Any], own: Mapping[str, Size], wanted: str | None) -> Weights:
    """Return the weights of a checkpoint for a model with these names and shapes.

    wanted: "ema", "model", or the name or prefix of a set of weights. None: averaged weights come first.

    Raises: CheckpointMismatch if the file holds no weights; InvalidRequest if it has no set that is wanted.
    """
    sets = _sets(content) or {"": dict(content)}
    candidates = _fitting([one for place, value in sets.items() for one in _candidates(place, value, own)])
    if not candidates:
        candidates = [_Candidate(place, "", 0, 0) for place in sets]
    allowed = [one for one in candidates if one.matches(wanted)]
    if not allowed:
        there = ", ".join(one.title for one in candidates if one.title) or "one, without a name"
        raise InvalidRequest(
            f"The checkpoint has no set of weights {wanted!r}. It has: {there}. Give one of these names, or leave"
            " --weights out.",
            field="weights",
            value=wanted,
        )
    taken = max(allowed, key=lambda one: one.is_averaged)  # among equals, max takes the first
    tensors = _named_tensors(sets[taken.place])
    said = _several(candidates, taken)
    if taken.prefix:
        said.append(f"The names of the weights begin with {taken.prefix!r}: vitfit leaves this prefix out.")
        known = tuple(one.prefix for one in candidates if one.place == taken.place)
        if left := [key for key in tensors if not key.startswith(known)]:
            said.append(f"vitfit leaves out {len(left)} other tensors of the checkpoint, such as {left[0][:100]!r}.")
    size = len(taken.prefix)
    return Weights({key[size:]: value for key, value in tensors.items() if key.startswith(taken.prefix)}, said)


def _several(candidates: list[_Candidate], taken: _Candidate) -> list[str]:
    """Return a sentence if there are several sets. Their place is left out if all are in the same one."""
    if len(candidates) < 2:
        return []
    is_same = len({one.place for one in candidates}) == 1
    titles = {one: (one.prefix.rstrip(".") if is_same else one.title) or "without a prefix" for one in candidates}
    other = next((titles[one] for one in candidates if one != taken and one.title), None)
    choose = f" To take another one, give --weights {other}." if other else ""
    return [
        f"The checkpoint has several sets of weights ({', '.join(titles.values())}): vitfit takes"
        f" {titles[taken]!r}.{choose}"
    ]


def _candidates(place: str, weights: Mapping[Any, Any], own: Mapping[str, Size]) -> list[_Candidate]:
    """Return the weights of a set whose names the model has, for each prefix."""
    found: dict[str, tuple[int, int]] = {}
    for key, value in weights.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            continue
        parts = key.split(".")
        for cut in range(min(len(parts), MOST_PARTS)):
            name = ".".join(parts[cut:])
            if name in own:
                prefix = key[: len(key) - len(name)]
                names, shapes = found.get(prefix, (0, 0))
                found[prefix] = names + 1, shapes + (_is_plain(value) and value.shape == own[name])
    ordered = sorted(found, key=lambda prefix: (len(prefix), prefix))
    return [_Candidate(place, prefix, *found[prefix]) for prefix in ordered]


def _fitting(candidates: list[_Candidate]) -> list[_Candidate]:
    """Leave out the candidates with fewer than half of the names, or of the shapes, of the best one."""
    for size in ("names", "shapes"):
        most = max((getattr(one, size) for one in candidates), default=0)
        candidates = [one for one in candidates if 2 * getattr(one, size) >= most]
    return candidates


def _sets(content: Mapping[Any, Any]) -> dict[str, dict[Any, Any]]:
    """Return the sets of weights in a checkpoint by their names, the averaged ones first."""
    found: dict[str, dict[Any, Any]] = {}
    for name in (*AVERAGED, *TRAINED):
        value = content.get(name)
        for _ in range(3):  # a set may lie in a set
            if isinstance(value, dict) and not _has_tensors(value):
                value = next((value[one] for one in (*AVERAGED, *TRAINED) if isinstance(value.get(one), dict)), None)
        if isinstance(value, dict) and _has_tensors(value):
            found[name] = value
    return found


def _has_tensors(value: Mapping[Any, Any]) -> bool:
    return any(isinstance(one, Tensor) for one in value.values())


def _named_tensors(weights: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Return the tensors of a set by their names. Raises: CheckpointMismatch for anything else in the set."""
    if not _has_tensors(weights):
        raise CheckpointMismatch(_without_weights(weights))
    strange = [
        key
        for key, value in weights.items()
        if not isinstance(key, str) or not (isinstance(value, Tensor) or "_packed_params" in key)
    ]
    if strange:
        raise CheckpointMismatch(
            f"The entry {str(strange[0])[:200]!r} of the checkpoint is not a tensor with a name. A checkpoint may hold"
            " only named tensors. Save the weights alone: torch.save(model.state_dict(), 'weights.pth')."
        )
    refuse_adapter_weights(weights)
    odd = next((key for key, value in weights.items() if isinstance(value, Tensor) and not _is_plain(value)), None)
    if odd is not None:
        raise CheckpointMismatch(
            f"The tensor {odd[:200]!r} of the checkpoint is sparse, nested, quantised or without values. vitfit loads"
            " only dense tensors with values. Convert the tensor and save the checkpoint again."
        )
    return dict(weights)


def _is_plain(value: Tensor) -> bool:
    return not (value.is_nested or value.is_quantized or value.is_meta) and value.layout == torch.strided


def _without_weights(content: Mapping[Any, Any]) -> str:
    names = [str(key)[:100] for key in content]
    if "param_groups" in content or any("optim" in name for name in names):
        return (
            f"The file holds the state of an optimizer and no weights. Its entries: {', '.join(names[:SHOWN])}. Give"
            " the file with the weights, such as model.safetensors, pytorch_model.bin, or the checkpoint beside it."
        )
    return (
        f"The checkpoint holds no weights. Its entries: {', '.join(names[:SHOWN]) or 'none'}. vitfit looks for tensors"
        f" by their names, alone or in one of these entries: {', '.join((*TRAINED, *AVERAGED))}. Save the weights"
        " alone: torch.save(model.state_dict(), 'weights.pth')."
    )

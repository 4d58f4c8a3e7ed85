"""Every error that vitfit raises on purpose. Standard library only: the web process imports it.

VitfitError
|-- InvalidRequest       the request contradicts itself or names a value that is not allowed
|   `-- UnknownName      a model, device, method or criterion that does not exist (nearest names given)
|-- UnsupportedModel     the architecture cannot be handled; each reason is listed
|-- CheckpointMismatch   the weights do not fit the architecture; the keys are listed
|-- UnsafeFile           a pickle with code, an archive that climbs out or explodes
|-- DamagedFile          truncated, empty or unreadable
|-- TooLarge             over a stated limit
|-- BadData              images or labels that cannot be used
|-- ImpossibleBudget     no policy reaches the budget; the best reachable value is named
|-- DeviceUnavailable    a device that cannot measure what was asked
|-- ParityFailure        the exported file disagrees with PyTorch
`-- Canceled             the user stopped the job
"""

import difflib
from collections.abc import Iterable
from typing import Any


class VitfitError(Exception):
    """Base class of all errors here.

    `detail` is a text that names the problem, the value, the allowed values and the next step. `facts` are JSON values
    for programs.
    """

    code = "error"

    def __init__(self, detail: str, **facts: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.facts = facts

    def to_json(self) -> dict[str, Any]:
        """Return `{"code", "detail", "facts"}`. This form is passed between processes and stored with a failed job."""
        return {"code": self.code, "detail": self.detail, "facts": self.facts}


class InvalidRequest(VitfitError):
    code = "invalid-request"


class UnknownName(InvalidRequest):
    """A name that does not exist. The text lists the known names if there are few, otherwise the nearest ones."""

    code = "unknown-name"

    def __init__(self, noun: str, name: str, known: Iterable[str] = (), **facts: Any) -> None:
        names = list(known)
        near = difflib.get_close_matches(name, names, n=5, cutoff=0.4)
        if len(names) <= 12:
            hint = f"Use one of these names: {', '.join(sorted(names))}." if names else ""
        elif near:
            hint = f"The nearest of the {len(names)} known names are: {', '.join(near)}. Use a known name."
        else:
            hint = f"None of the {len(names)} known names is similar. Use a known name."
        text = f"The {noun} {name!r} does not exist. {hint}".strip()
        super().__init__(text, noun=noun, name=name, nearest=near, **facts)


class UnsupportedModel(VitfitError):
    code = "unsupported-model"


class CheckpointMismatch(VitfitError):
    code = "checkpoint-mismatch"


class UnsafeFile(VitfitError):
    code = "unsafe-file"


class DamagedFile(VitfitError):
    code = "damaged-file"


class TooLarge(VitfitError):
    code = "too-large"


class BadData(VitfitError):
    code = "bad-data"


class ImpossibleBudget(VitfitError):
    code = "impossible-budget"


class DeviceUnavailable(VitfitError):
    code = "device-unavailable"


class ParityFailure(VitfitError):
    code = "parity-failure"


class Canceled(VitfitError):
    code = "canceled"


def _tree(root: type[VitfitError]) -> Iterable[type[VitfitError]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)


def error_from_json(value: dict[str, Any]) -> VitfitError:
    """Rebuild the error that `to_json` described. Its code selects the class; an unknown code gives the base class."""
    classes = {cls.code: cls for cls in _tree(VitfitError)}
    cls = classes.get(value["code"], VitfitError)
    error = cls.__new__(cls)
    VitfitError.__init__(error, value["detail"], **value.get("facts", {}))
    return error

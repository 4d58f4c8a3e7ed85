"""`Result`, the base class of everything that a server answers: frozen dataclasses that convert from and to JSON."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Self

from vitfit.errors import Problem, VitfitError


class Result:
    """Base class of the results. `from_json` reads the known fields, and `to_json` returns plain values.

    Fields that a class does not know are ignored, because a newer server may send them.
    """

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Create the result from JSON. Raises: VitfitError if a field without a default is missing."""
        fields = {item.name: item for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
        known = {name: value[name] for name in fields if value.get(name) is not None}
        for name, item in fields.items():
            if name not in known and item.default is item.default_factory is dataclasses.MISSING:
                raise VitfitError.local(
                    "unexpected-answer",
                    f"The server sent a {cls.__name__.lower()} without {name!r}. "
                    "Install the same version of vitfit on client and server.",
                )
        kinds = typing.get_type_hints(cls)
        return cls(**{name: _build(kinds[name], item) for name, item in known.items()})

    def to_json(self) -> dict[str, Any]:
        """Return plain values, also for nested results."""
        return typing.cast(dict[str, Any], _plain(self))


def _build(kind: Any, value: Any) -> Any:
    """Convert JSON to a value of the annotated type. Plain values and values of unknown types stay as they are."""
    if value is None:
        return None
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        (inner,) = [part for part in parts if part is not type(None)]
        return _build(inner, value)
    if origin is list:
        return [_build(parts[0], item) for item in value]
    if origin is tuple and parts[-1] is Ellipsis:
        return tuple(_build(parts[0], item) for item in value)
    if origin is tuple:
        return tuple(_build(part, item) for part, item in zip(parts, value, strict=True))
    if origin is dict:
        return {name: _build(parts[1], item) for name, item in value.items()}
    if isinstance(kind, type) and issubclass(kind, Result | Problem):
        return kind.from_json(value)
    return value


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return value

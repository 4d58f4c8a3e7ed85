"""Frozen dataclasses that convert to and from JSON and have a stable key. Standard library only."""

import dataclasses
import hashlib
import json
import types
import typing
from typing import Any, Self


class Record:
    """Base class of frozen dataclasses. It adds JSON conversion, and a key for caches and file names."""

    def to_json(self) -> dict[str, Any]:
        return typing.cast(dict[str, Any], _plain(self))

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Build a record from its JSON.

        Raises: ValueError on an unknown or missing field, TypeError on a wrong kind of value.
        """
        return typing.cast(Self, _build(cls, value))

    @property
    def key(self) -> str:
        """The first 16 hex digits of SHA-256 over the canonical JSON. Equal values have equal keys on every machine."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def later(default: Any) -> Any:
    """Declare a field that was added after records of this class had been stored.

    The JSON omits the field while it has its default value, so the keys of older records do not change.
    """
    return dataclasses.field(default=default, metadata={"later": True})


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _plain(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if not ("later" in field.metadata and getattr(value, field.name) == field.default)
        }
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    return value


def _build(kind: Any, value: Any) -> Any:
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        (inner,) = [arm for arm in typing.get_args(kind) if arm is not type(None)]
        return _build(inner, value)
    if origin is tuple:
        arms = typing.get_args(kind)
        if len(arms) == 2 and arms[1] is Ellipsis:
            if arms[0] in (int, str):  # index lists are long, so this avoids one call per item
                return tuple(value)
            return tuple(_build(arms[0], item) for item in value)
        return tuple(_build(arm, item) for arm, item in zip(arms, value, strict=True))
    if origin is dict:
        return {name: _build(typing.get_args(kind)[1], item) for name, item in value.items()}
    if dataclasses.is_dataclass(kind):
        return _build_record(typing.cast(type, kind), value)
    if kind is float:
        return float(value)
    return value


def _build_record(kind: type, value: dict[str, Any]) -> Any:
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(value) - {field.name for field in dataclasses.fields(kind)})
    if unknown:
        raise ValueError(f"{kind.__name__} has no field {unknown[0]!r}. Use these fields: {', '.join(hints)}.")
    return kind(**{name: _build(hints[name], item) for name, item in value.items()})

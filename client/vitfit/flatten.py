"""Let command functions take groups of options as frozen dataclasses.

Two commands can then share a group without repeating its twenty arguments.
"""

import copy
import dataclasses
import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_args

from rich.markup import escape


def flattened(verb: Callable[..., None]) -> Callable[..., None]:
    """Return the command function in the form that Typer needs.

    Each parameter that is a dataclass is replaced by its fields, with one option for each field. Typer reads help texts
    as markup, in which `[agent]` would be a style, so their brackets are escaped.
    """
    groups: dict[str, type] = {}
    flat: list[inspect.Parameter] = []
    for parameter in inspect.signature(verb).parameters.values():
        if dataclasses.is_dataclass(parameter.annotation) and isinstance(parameter.annotation, type):
            groups[parameter.name] = parameter.annotation
            flat.extend(_option(field) for field in dataclasses.fields(parameter.annotation))
        else:
            kind = _with_plain_help(parameter.annotation)
            flat.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=kind))

    def run(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in dataclasses.fields(group)})
        verb(**values)

    run.__name__, run.__doc__ = verb.__name__, escape(inspect.cleandoc(verb.__doc__ or ""))
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in flat}
    run.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]
    return run


def _option(field: "dataclasses.Field[Any]") -> inspect.Parameter:
    default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
    kind = _with_plain_help(field.type)
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)


def _with_plain_help(annotation: Any) -> Any:
    """Return the annotation of an option with an escaped help text. Other annotations stay as they are."""
    kind, *notes = get_args(annotation) if hasattr(annotation, "__metadata__") else (annotation,)
    if not notes or not getattr(notes[0], "help", None):
        return annotation
    note = copy.copy(notes[0])  # several commands share an option
    note.help = escape(note.help)
    return Annotated[kind, note]

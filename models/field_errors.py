"""Sentences for what pydantic finds wrong in the documents of users.

pydantic describes each error as a dictionary: `type` names the rule, `loc` is the place of the value, `input` is the
value, and `ctx` has the limits of the rule. Its own sentences are for programmers and do not say what to do next.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

OBJECT, LIST, TEXT = "a JSON object in braces {{ }}", "a list in brackets [ ]", "a text in quotes"
WHOLE_NUMBER, TRUTH, DATE = "a whole number", "true or false", "a date such as 2026-11-21"
MUST_BE: Final = {
    "greater_than": "above {gt:,.10g}",
    "greater_than_equal": "at least {ge:,.10g}",
    "less_than": "below {lt:,.10g}",
    "less_than_equal": "at most {le:,.10g}",
    "finite_number": "a finite number",
    "float_type": "a number",
    "float_parsing": "a number",
    "int_type": WHOLE_NUMBER,
    "int_parsing": WHOLE_NUMBER,
    "int_parsing_size": "a whole number with fewer digits",
    "int_from_float": WHOLE_NUMBER,
    "bool_type": TRUTH,
    "bool_parsing": TRUTH,
    "string_type": TEXT,
    "string_unicode": "a text in UTF-8",
    "string_too_short": "a text of at least {min_length} characters",
    "string_too_long": "a text of at most {max_length} characters",
    "string_pattern_mismatch": "a text of the form {pattern}",
    "list_type": LIST,
    "tuple_type": LIST,
    "dict_type": OBJECT,
    "model_type": OBJECT,
    "model_attributes_type": OBJECT,
    "dataclass_type": OBJECT,
    "none_required": "null",
    "literal_error": "{expected}",
    "date_type": DATE,
    "date_parsing": DATE,
    "date_from_datetime_parsing": DATE,
    "date_from_datetime_inexact": DATE,
    "path_type": "the path of a file or folder",
    "url_type": "the address of a server",
    "union_tag_invalid": "a JSON object whose {discriminator} is {expected_tags}",
    "union_tag_not_found": "a JSON object with the field {discriminator}",
}
"""What a value must be: type of the error -> text, with the members of `ctx` in braces. `MUST_HAVE` is the same for
lists and objects, and `SAYS` for errors that are not about the value."""
MUST_HAVE: Final = {"too_short": "{min_length} or more entries", "too_long": "at most {max_length} entries"}
SAYS: Final = {
    "missing": "the field is missing. Add it.",
    "extra_forbidden": "the field is unknown. Leave it out, or correct its name.",
    "json_invalid": "the text is not JSON{at}: {error}. Correct it; names and texts need double quotes.",
    "value_error": "{error}",
    "assertion_error": "{error}",
}
NO_BODY: Final = "The request has no body. Send a JSON object, with Content-Type application/json."
ALTERNATIVES: Final = ("bool", "int", "float", "str", "none")
"""The last part of `loc` if the value fits none of several types. pydantic then reports one error for each type."""
MOST_SENTENCES, MOST_SHOWN = 4, 80
Error = Mapping[str, Any]


def field_errors(errors: Iterable[Error]) -> list[dict[str, Any]]:
    """Return `field`, `detail` (a sentence), `value` and `allowed` for each error that is no consequence of another."""
    found = [_merged(group) for group in _by_value(list(errors))]
    places = [tuple(error["loc"]) for error in found]
    return [
        _described(error)
        for error, place in zip(found, places, strict=True)
        if not any(len(other) > len(place) and other[: len(place)] == place for other in places)
    ]


def in_words(found: Sequence[Mapping[str, Any]]) -> str:
    """Return one paragraph for the result of `field_errors`. It has the first few sentences."""
    said = [f"{item['field']}: {item['detail']}" if item["field"] else _capital(item["detail"]) for item in found]
    more = len(said) - MOST_SENTENCES
    return " ".join([*said[:MOST_SENTENCES], *([f"{more} more fields are wrong."] if more > 0 else [])])


def _by_value(errors: list[Error]) -> list[list[Error]]:
    """Group the errors of one value that fits none of several types."""
    groups: dict[Any, list[Error]] = {}
    for number, error in enumerate(errors):
        place = tuple(error["loc"])
        groups.setdefault(place[:-1] if place and place[-1] in ALTERNATIVES else number, []).append(error)
    return list(groups.values())


def _merged(group: list[Error]) -> Error:
    if len(group) == 1:
        return group[0]
    *wanted, last = dict.fromkeys(_rule(error).removeprefix("be ") for error in group)
    expected = f"{', '.join(wanted)} or {last}" if wanted else last
    return {**group[0], "type": "literal_error", "loc": group[0]["loc"][:-1], "ctx": {"expected": expected}}


def _described(error: Error) -> dict[str, Any]:
    context = {name: short(value) for name, value in error.get("ctx", {}).items() if name != "error"}
    unplaced = error["type"] == "json_invalid"
    field = "" if unplaced else ".".join(map(str, error["loc"]))
    found = {"field": field, "detail": _sentence(error), "value": short(error.get("input"))}
    return {**found, "allowed": context} if context else found


def _sentence(error: Error) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind == "missing" and not error["loc"]:
        return NO_BODY
    if kind in SAYS:
        at = f" at character {error['loc'][-1]}" if error["loc"] else ""
        text = SAYS[kind].format(error=context.get("error", "it is wrong"), at=at)
        return text if text.endswith(".") else f"{text}."
    value = "the value" if "input" not in error else _shown(error["input"])
    place = "" if error["loc"] else "the body "
    return f"{place}{value} is not allowed. It must {_rule(error)}. Correct it."


def _rule(error: Error) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind in MUST_HAVE:
        return f"have {MUST_HAVE[kind].format(**context)}"
    return f"be {MUST_BE.get(kind, 'as the documentation describes it').format(**context)}"


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 3]}..."


def _capital(text: str) -> str:
    return re.sub(r"^[a-z]", lambda letter: letter[0].upper(), text)


def short(value: Any) -> Any:
    """Return a short JSON scalar unchanged, and the first 200 characters of any other value as text."""
    if value is None or isinstance(value, bool | int) or (isinstance(value, str) and len(value) <= 200):
        return value
    return value if isinstance(value, float) and value - value == 0 else repr(value)[:200]

"""Tests that users read sentences of ours, and none of pydantic's, for every error that our documents can have."""

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from latency.devices.profile_schema import AnyProfile
from models.field_errors import MUST_BE, MUST_HAVE, SAYS, field_errors, in_words
from service.api.agents import AgentRequest, MeasuringAnswer
from service.api.schemas import DatasetRequest, DeliverRequest, ModelRequest
from service.core.settings import Settings, wrong_settings
from service.jobs.job_request import JobRequest

DOCUMENTS: dict[Any, dict[str, Any]] = {
    JobRequest: {"model": "m", "budgets": [{"metric": "macs_keep", "limit": 0.6}]},
    ModelRequest: {"name": "m"},
    DatasetRequest: {"path": "/data"},
    DeliverRequest: {"trial": 1},
    AgentRequest: {},
    MeasuringAnswer: {},
}
GIVES = {
    "int": {"int_type", "int_parsing", "int_from_float", "int_parsing_size"},
    "float": {"float_type", "float_parsing"},
    "str": {"string_type", "string_unicode"},
    "bool": {"bool_type", "bool_parsing"},
    "literal": {"literal_error"},
    "date": {"date_type", "date_parsing", "date_from_datetime_parsing", "date_from_datetime_inexact"},
    "tuple": {"tuple_type", "missing"},
    "list": {"list_type"},
    "dict": {"dict_type"},
    "model": {"model_type", "model_attributes_type"},
    "model-fields": {"missing", "extra_forbidden"},
    "tagged-union": {"union_tag_invalid", "union_tag_not_found"},
    "function-after": {"value_error", "assertion_error"},
    "function-before": {"value_error", "assertion_error"},
    "function-plain": {"value_error", "assertion_error"},
    "is-instance": {"path_type"},  # only in the settings, whose values are texts
}
"""The errors that each kind of schema can give."""
CONSTRAINTS = {
    "gt": {"greater_than"},
    "ge": {"greater_than_equal"},
    "lt": {"less_than"},
    "le": {"less_than_equal"},
    "allow_inf_nan": {"finite_number"},
    "pattern": {"string_pattern_mismatch"},
    "min_length": {"too_short", "string_too_short"},
    "max_length": {"too_long", "string_too_long"},
}
SILENT = {"default", "nullable", "union", "definitions", "definition-ref", "any", "no-info", "model-field"}
SILENT |= {"lax-or-strict", "json-or-python"}
"""Kinds of schema that give only the errors of the schemas inside them."""
THEIR_WORDS = ("Input should", "required", "Extra inputs", "should have", "should match", "unable to", "Value error")


def schemas_in(node: Any) -> Iterator[dict[str, Any]]:
    """Yield every schema inside a core schema of pydantic."""
    if isinstance(node, dict):
        if isinstance(node.get("type"), str):
            yield node
        for name, inner in node.items():
            if name != "metadata":
                yield from schemas_in(inner)
    elif isinstance(node, list | tuple):
        for inner in node:
            yield from schemas_in(inner)


@pytest.mark.parametrize("kind", [*DOCUMENTS, Settings, TypeAdapter(AnyProfile)], ids=str)
def test_every_error_that_a_schema_can_give_has_a_sentence(kind: Any) -> None:
    core = kind.core_schema if isinstance(kind, TypeAdapter) else kind.__pydantic_core_schema__
    possible = {"json_invalid"}
    for node in schemas_in(core):
        if node["type"] not in SILENT:
            possible |= GIVES[node["type"]]
        possible |= {error for name in node.keys() & CONSTRAINTS.keys() for error in CONSTRAINTS[name]}
    assert len(possible) > 5
    assert possible - {*MUST_BE, *MUST_HAVE, *SAYS} == set()


def places(document: Any) -> Iterator[tuple[Any, ...]]:
    for name, inner in document.items() if isinstance(document, dict) else enumerate(document):
        yield (name,)
        if isinstance(inner, dict | list):
            yield from ((name, *rest) for rest in places(inner))


def changed(document: Any, place: tuple[Any, ...], value: Any) -> Any:
    copy = dict(document) if isinstance(document, dict) else list(document)
    copy[place[0]] = value if len(place) == 1 else changed(copy[place[0]], place[1:], value)
    return copy


def errors_of(kind: type[BaseModel], document: Any) -> list[dict[str, Any]]:
    try:
        kind.model_validate(document)
    except ValidationError as error:
        return field_errors(error.errors(include_url=False))
    return []


NO_JSON = (float("inf"), float("nan"))
WRONG: tuple[Any, ...] = (None, "", "x" * 300, "é", 5, 1.5, -1, 10**30, True, [], [[]], {}, {"a": []}, *NO_JSON)


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_no_word_of_pydantic_is_in_a_sentence(kind: type[BaseModel]) -> None:
    whole = {name: None for name in kind.model_fields} | DOCUMENTS[kind]
    seen = 0
    for place in [*places(whole), ("unknown field",)]:
        for value in WRONG:
            found = errors_of(kind, changed(whole, place, value))
            seen += len(found)
            said = in_words(found)
            assert not any(words in said for words in THEIR_WORDS), said
            assert "{" not in said.replace("braces { }", "") or "{" in repr(value) or "budget" in said, said
            assert "as the documentation describes it" not in said
    assert seen > 20


@pytest.mark.parametrize(
    ("change", "sentences"),
    [
        (
            {"precisions": ["int4"]},
            ["precisions.0: \"int4\" is not allowed. It must be 'fp32', 'int8' or 'fp16'. Correct it."],
        ),
        ({"seed": 1.5}, ["seed: 1.5 is not allowed. It must be a whole number. Correct it."]),
        ({"trials": 0}, ["trials: 0 is not allowed. It must be at least 1. Correct it."]),
        ({"trails": 3}, ["trails: the field is unknown. Leave it out, or correct its name."]),
        ({"precisions": []}, ["precisions: [] is not allowed. It must have 1 or more entries. Correct it."]),
        ({"budgets": [{"limit": 0.5}]}, ["budgets.0.metric: the field is missing. Add it."]),
        ({"budgets": []}, ["budgets: there is no budget. Give at least one, such as"]),
        ({"max_loss": 0.1}, ["Objective is 'score' and max_loss is 0.1"]),
        ({"seed": -1, "model": 3}, ["model: 3 is not allowed. It must be a text in quotes.", "seed: -1 is not"]),
    ],
)
def test_a_sentence_has_the_field_the_value_what_is_allowed_and_the_next_step(
    change: dict[str, Any], sentences: list[str]
) -> None:
    """Nothing else is said: a consequence of an error is not an error."""
    found = errors_of(JobRequest, DOCUMENTS[JobRequest] | change)
    assert len(found) == len(sentences)
    for sentence in sentences:
        assert sentence in in_words(found)


def test_a_value_that_fits_none_of_several_types_is_one_error() -> None:
    (found,) = errors_of(ModelRequest, {"name": "m", "options": {"depth": [1]}})
    assert found["field"] == "options.depth" and found["value"] == "[1]"
    assert "true or false, a whole number, a number or a text in quotes" in found["detail"]


def test_only_the_first_errors_are_said_and_the_others_counted() -> None:
    found = errors_of(JobRequest, {f"field{number}": 1 for number in range(9)} | DOCUMENTS[JobRequest])
    assert in_words(found).count("unknown") == 4 and in_words(found).endswith("5 more fields are wrong.")


def test_the_value_of_a_setting_is_not_shown() -> None:
    with pytest.raises(ValidationError) as caught:
        Settings(database_url="secret://user:password@host/name")
    said = wrong_settings(caught.value)
    assert said.startswith("database_url: The address must have the form") and "secret" not in said
    with pytest.raises(ValidationError) as caught:
        Settings(port=70_000, database_url=["secret"])
    assert "port: 70000 is not allowed" in wrong_settings(caught.value) and "secret" not in wrong_settings(caught.value)

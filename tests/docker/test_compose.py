"""Check that the compose file parses and refers only to things that exist."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.dockerfile import read_dockerfile

FILE = Path(__file__).resolve().parents[2] / "docker" / "compose.yaml"


@pytest.fixture
def compose() -> dict[str, Any]:
    content = yaml.safe_load(FILE.read_text())
    assert isinstance(content, dict)
    return content


def test_it_builds_our_dockerfile_with_arguments_that_it_has(compose: dict[str, Any]) -> None:
    build = compose["services"]["server"]["build"]
    context = (FILE.parent / build["context"]).resolve()
    dockerfile = context / build["dockerfile"]
    assert dockerfile.is_file() and (context / "pyproject.toml").is_file()
    declared = [instruction.text for instruction in read_dockerfile(dockerfile) if instruction.name == "ARG"]
    assert list(build["args"]) == declared
    assert all(re.fullmatch(r"\$\{[A-Z_]+:-\}", value) for value in build["args"].values()), "unset by default"


def test_the_port_is_open_to_this_machine_only(compose: dict[str, Any]) -> None:
    assert compose["services"]["server"]["ports"] == ["127.0.0.1:${VITFIT_PORT:-8000}:8000"]


def test_the_data_survive_the_container(compose: dict[str, Any]) -> None:
    volume, _, target = compose["services"]["server"]["volumes"][0].partition(":")
    assert volume in compose["volumes"]
    (declared,) = (found.text for found in read_dockerfile(FILE.parent / "Dockerfile") if found.name == "VOLUME")
    assert target == declared


def test_dead_children_are_collected_and_nothing_is_privileged(compose: dict[str, Any]) -> None:
    server = compose["services"]["server"]
    assert server["init"] is True
    assert server["cap_drop"] == ["ALL"]
    assert "privileged" not in server

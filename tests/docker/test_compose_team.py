"""Tests of the compose file of a team.

The file parses and names settings that exist. Its two servers share the database, the bucket and the other things that
they must share.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import URL

from service.core.settings import PREFIX, Settings
from tests.support.dockerfile import read_dockerfile
from tests.support.s3 import S3

FILE = Path(__file__).resolve().parents[2] / "docker" / "compose.team.yaml"
SERVERS = ("one", "two")
GIVEN = {"VITFIT_DB_PASSWORD": "open", "VITFIT_S3_SECRET": "sesame"}


@pytest.fixture
def services() -> dict[str, Any]:
    content = yaml.safe_load(FILE.read_text())
    used = {
        volume.partition(":")[0] for service in content["services"].values() for volume in service.get("volumes", ())
    }
    assert used == set(content["volumes"])
    found: dict[str, Any] = content["services"]
    return found


def filled(text: str) -> str:
    """Replace ${NAME:-default} and ${NAME:?why} in a text, as compose does."""
    return re.sub(r"\$\{(\w+):[-?]([^}]*)\}", lambda match: GIVEN.get(match[1], match[2]), text)


def environment(service: dict[str, Any]) -> dict[str, str]:
    return {name: filled(value) for name, value in service["environment"].items()}


@pytest.mark.parametrize("name", SERVERS)
def test_the_settings_of_a_server_exist_and_make_sense(
    services: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = environment(services[name])
    ours = {variable for variable in given if variable.startswith(PREFIX)}
    assert {variable.removeprefix(PREFIX).lower() for variable in ours} <= set(Settings.model_fields)
    for variable, value in given.items():
        monkeypatch.setenv(variable, value)
    settings = Settings()
    assert isinstance(settings.database, URL) and settings.storage_url == "s3://vitfit"
    database, postgres = settings.database, environment(services["postgres"])
    assert (database.username, database.password) == (postgres["POSTGRES_USER"], postgres["POSTGRES_PASSWORD"])
    assert (database.host, database.database) == ("postgres", postgres["POSTGRES_DB"])


def test_keys_and_port_of_the_storage_are_those_of_its_clients(services: dict[str, Any]) -> None:
    storage = environment(services["s3"])
    for client in ("one", "two", "bucket"):
        given = environment(services[client])
        assert given["AWS_ENDPOINT_URL"] == f"http://s3{storage['VGW_PORT']}"
        assert given["AWS_ACCESS_KEY_ID"] == storage["ROOT_ACCESS_KEY"]
        assert given["AWS_SECRET_ACCESS_KEY"] == storage["ROOT_SECRET_KEY"]
    assert storage["VGW_BACKEND_ARGS"] == services["s3"]["volumes"][0].partition(":")[2]


def test_servers_share_nothing_but_the_database_and_the_storage(services: dict[str, Any]) -> None:
    (declared,) = (found.text for found in read_dockerfile(FILE.parent / "Dockerfile") if found.name == "VOLUME")
    volumes = [services[name]["volumes"] for name in SERVERS]
    assert volumes == [[f"{name}:{declared}"] for name in SERVERS]
    ports = [filled(services[name]["ports"][0]) for name in SERVERS]
    assert ports == ["127.0.0.1:8000:8000", "127.0.0.1:8001:8000"]
    for name in SERVERS:
        assert set(services[name]["depends_on"]) <= set(services)
        assert services[name]["init"] is True and services[name]["cap_drop"] == ["ALL"]
    assert not any("ports" in services[name] for name in ("postgres", "s3")), "nobody outside needs them"


def test_no_password_stands_in_the_file() -> None:
    text = FILE.read_text()
    for name in ("POSTGRES_PASSWORD", "ROOT_SECRET_KEY", "AWS_SECRET_ACCESS_KEY"):
        assert all(value.startswith("${VITFIT_") for value in re.findall(rf"{name}: (.+)", text)), name


def test_the_bucket_is_made_and_making_it_again_does_no_harm(
    services: dict[str, Any], s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.announce(monkeypatch)
    program, *arguments = services["bucket"]["command"]
    assert program == "python", shlex.join([program, *arguments])
    for _ in range(2):
        subprocess.run([sys.executable, *arguments], check=True, timeout=60)

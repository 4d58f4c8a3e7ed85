"""Tests of the Dockerfile.

No container engine builds the image here. The tests run each line that an engine would run as a process.
"""

import os
import subprocess
import sys
import tomllib
import urllib.request
from pathlib import Path

import pytest

from tests.support.dockerfile import Instruction, read_dockerfile
from tests.support.fake_server import FakeServer
from tests.support.served import served

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "docker" / "Dockerfile"
KNOWN = {"FROM", "ARG", "ENV", "WORKDIR", "RUN", "COPY", "USER", "VOLUME", "EXPOSE", "HEALTHCHECK", "CMD"}
# The recorder takes the place of a program that would change the machine. It writes its name and arguments, one line
# per call.
RECORDER = '#!/bin/sh\necho "$(basename "$0")" "$@" >> "$CALLS"\n'


@pytest.fixture
def instructions() -> list[Instruction]:
    return read_dockerfile(DOCKERFILE)


def texts(instructions: list[Instruction], name: str) -> list[str]:
    return [instruction.text for instruction in instructions if instruction.name == name]


def only(instructions: list[Instruction], name: str) -> Instruction:
    (found,) = (instruction for instruction in instructions if instruction.name == name)
    return found


def test_it_has_known_instructions_and_starts_from_python(instructions: list[Instruction]) -> None:
    assert {instruction.name for instruction in instructions} <= KNOWN
    assert instructions[0] == Instruction("FROM", "python:3.11-slim")


def test_it_does_not_run_as_root(instructions: list[Instruction]) -> None:
    names = [instruction.name for instruction in instructions]
    assert texts(instructions, "USER") == ["vitfit"]
    assert names.index("USER") < names.index("HEALTHCHECK") < names.index("CMD")
    assert "RUN" not in names[names.index("USER") :]


def test_no_index_is_named_and_the_arguments_are_unset(instructions: list[Instruction]) -> None:
    assert texts(instructions, "ARG") == ["PACKAGE_INDEX", "TORCH_INDEX"]
    hosts = [word for word in DOCKERFILE.read_text().split() if "://" in word and "127.0.0.1" not in word]
    assert hosts == []


def copied(instructions: list[Instruction]) -> list[str]:
    return [source.rstrip("/") for text in texts(instructions, "COPY") for source in text.split()[:-1]]


def test_everything_that_is_copied_exists_and_is_not_ignored(instructions: list[Instruction]) -> None:
    ignore = (ROOT / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in ignore if line and not line.startswith("#")]
    assert rules[0] == "*"
    let_in = {rule[1:] for rule in rules if rule.startswith("!")}
    assert set(copied(instructions)) == let_in
    assert [source for source in sorted(let_in) if not (ROOT / source).exists()] == []


def test_every_package_of_the_server_is_copied(instructions: list[Instruction]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert packages <= set(copied(instructions))
    assert project["project"]["readme"] in copied(instructions)


def recorded(command: str, folder: Path, **arguments: str) -> list[str]:
    """Return what a RUN line calls. The programs `useradd`, `chown`, `mkdir` and `pip` are recorded and not run."""
    tools = folder / "bin"
    tools.mkdir(exist_ok=True)
    for name in ("pip", "useradd", "chown", "mkdir"):
        (tools / name).write_text(RECORDER)
        (tools / name).chmod(0o755)
    calls = folder / "calls"
    calls.write_text("")
    environment = {"PATH": f"{tools}:{os.environ['PATH']}", "CALLS": str(calls), **arguments}
    subprocess.run(["sh", "-ec", command], cwd=folder, env=environment, check=True, timeout=20)
    return calls.read_text().splitlines()


def run_all(instructions: list[Instruction], folder: Path, **arguments: str) -> list[str]:
    pins = ["numpy==2.4.6", "nvidia-nccl-cu13==2.30.7", "torch==2.15.0", "torchvision==0.29.2", "triton==3.9.0"]
    (folder / "requirements.txt").write_text("\n".join(pins) + "\n")
    return [call for text in texts(instructions, "RUN") for call in recorded(text, folder, **arguments)]


def test_without_build_arguments_pip_decides_where_packages_come_from(
    instructions: list[Instruction], tmp_path: Path
) -> None:
    calls = run_all(instructions, tmp_path)
    assert calls == [
        "useradd --system --uid 10001 --no-create-home --home-dir /data vitfit",
        "mkdir /data",
        "chown vitfit /data",
        "pip install --requirement torch.txt",
        "pip install --requirement rest.txt",
        "pip install --no-deps ./client .",
    ]
    assert (tmp_path / "torch.txt").read_text() == "torch==2.15.0\ntorchvision==0.29.2\n"
    assert "nvidia" not in (tmp_path / "rest.txt").read_text()


def test_build_arguments_choose_the_indexes(instructions: list[Instruction], tmp_path: Path) -> None:
    calls = run_all(instructions, tmp_path, PACKAGE_INDEX="http://mirror/simple", TORCH_INDEX="http://mirror/cpu")
    assert [call for call in calls if call.startswith("pip")] == [
        "pip install --index-url http://mirror/cpu --requirement torch.txt",
        "pip install --index-url http://mirror/simple --requirement rest.txt",
        "pip install --index-url http://mirror/simple --no-deps ./client .",
    ]


def test_the_pinned_requirements_name_torch() -> None:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert any(line.startswith("torch==") for line in lines)


def health_check(instructions: list[Instruction], address: str) -> subprocess.CompletedProcess[bytes]:
    program, flag, code = only(instructions, "HEALTHCHECK").exec_form
    assert (program, flag) == ("python", "-c")
    assert "http://127.0.0.1:8000/" in code
    code = code.replace("http://127.0.0.1:8000", address)
    return subprocess.run([sys.executable, flag, code], capture_output=True, timeout=20)


def test_the_health_check_tells_a_live_server_from_a_dead_one(instructions: list[Instruction]) -> None:
    with FakeServer() as server:
        address = server.url
        assert health_check(instructions, address).returncode == 0
        server.faults = [503]
        assert health_check(instructions, address).returncode != 0
    assert health_check(instructions, address).returncode != 0


def test_its_command_serves_and_is_healthy(instructions: list[Instruction], tmp_path: Path) -> None:
    """Run the image's own command, with a port and a folder that a test may use."""
    program, verb, *options = only(instructions, "CMD").exec_form
    assert (program, verb) == ("vitfit", "serve")
    assert options == ["--host", "0.0.0.0", "--port", "8000", "--data", "/data"]
    assert texts(instructions, "EXPOSE") == ["8000"]
    assert texts(instructions, "VOLUME") == ["/data"]
    options[options.index("8000")] = "0"
    options[options.index("/data")] = str(tmp_path / "data")
    with served(tmp_path, *options, VITFIT_ANONYMOUS="0") as url:
        port = url.rsplit(":", 1)[1]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/openapi.json", timeout=10) as answer:
            assert answer.status == 200
        assert health_check(instructions, f"http://127.0.0.1:{port}").returncode == 0

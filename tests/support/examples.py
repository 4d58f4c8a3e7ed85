"""The examples of docs/api.md.

Each example is a call of curl with its answer. The tests run them one after the other and compare the answers.
"""

import fnmatch
import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOCUMENT = Path(__file__).parents[2] / "docs" / "api.md"
PAIR = re.compile(r"```sh\n(.*?)```\s*```http\n(.*?)```", re.DOTALL)
CALL = re.compile(r"curl\b.*?\$S(/[^\s\"?]*)", re.DOTALL)
REST = "..."
"""The mark for parts that may differ.

In a text it stands for any characters, as a key of an object for any further keys.
"""


@dataclass(frozen=True)
class Answer:
    """An answer: status, headers by their lower-case names, and the body as it arrived."""

    status: int
    headers: dict[str, str]
    body: str

    @classmethod
    def parse(cls, text: str) -> "Answer":
        head, _, body = text.replace("\r\n", "\n").partition("\n\n")
        first, *lines = head.strip().split("\n")
        pairs = (line.partition(": ") for line in lines)
        return cls(int(first.split()[1]), {name.lower(): value for name, _, value in pairs}, body.strip())


@dataclass(frozen=True)
class Example:
    command: str
    answer: Answer

    @property
    def path(self) -> str:
        """The path in the command. It may contain shell variables."""
        found = CALL.search(self.command)
        assert found, f"no call of curl in: {self.command}"
        return found[1]

    @property
    def method(self) -> str:
        if found := re.search(r"-X (\w+)", self.command):
            return found[1]
        return "POST" if re.search(r" -[dF] ", self.command) else "GET"

    def run(self, variables: dict[str, str], folder: Path) -> Answer:
        """Run the command, and return the answer of the server at `$S`.

        folder: where the command finds the files that it names.
        """
        headers = folder / "headers.txt"
        silent = f'curl() {{ command curl -sS --max-time 300 -D "{headers}" "$@"; }}\n'
        done = subprocess.run(
            ["bash", "-euc", silent + self.command], cwd=folder, capture_output=True, env={**os.environ, **variables}
        )
        assert done.returncode == 0, (self.command, done.stderr.decode())
        *_, last = headers.read_text().strip().split("\n\n")  # a 100 Continue may come first
        return Answer.parse(f"{last.strip()}\n\n{done.stdout.decode(errors='replace')}")


def examples() -> list[Example]:
    found = [Example(command.strip(), Answer.parse(answer)) for command, answer in PAIR.findall(DOCUMENT.read_text())]
    fences = DOCUMENT.read_text().count("```sh")
    assert len(found) == fences, f"{fences} calls but {len(found)} with an answer"
    return found


def differences(said: Answer, found: Answer) -> list[str]:
    """Return the differences between the document and the server's answer. The list is empty if there are none."""
    wrong = [] if said.status == found.status else [f"status {found.status}, not {said.status}: {found.body[:500]}"]
    for name, value in said.headers.items():
        if name not in found.headers or not _alike(value, found.headers[name]):
            wrong.append(f"header {name}: {found.headers.get(name)!r}, not {value!r}")
    if not said.body.startswith(("{", "[")):
        return wrong + _lines(said.body.splitlines(), found.body.splitlines())
    return wrong + _shape(json.loads(said.body), json.loads(found.body), "")


def _alike(pattern: str, text: str) -> bool:
    """Return whether the text fits the pattern, in which REST stands for any characters."""
    parts = [re.sub(r"([*?\[])", r"[\1]", part) for part in pattern.split(REST)]
    return fnmatch.fnmatchcase(text, "*".join(parts))


def _lines(said: list[str], found: list[str]) -> list[str]:
    """Return the missing lines.

    Each line of the document must come, in the same order. Other lines may be between them.
    """
    left = iter(found)
    return [f"no line {line!r}" for line in said if line.strip() and not any(_alike(line, other) for other in left)]


def _shape(said: Any, found: Any, where: str) -> list[str]:
    """Compare names and kinds of values, and not the values. null fits any value."""
    if said is None or found is None:
        return []
    if isinstance(said, dict) and isinstance(found, dict):
        missing = said.keys() - found.keys() - {REST}
        more = set() if REST in said else found.keys() - said.keys()
        wrong = [f"{where}: missing {sorted(missing)}"] if missing else []
        wrong += [f"{where}: the document lacks {sorted(more)}"] if more else []
        return wrong + [
            w for key in said.keys() & found.keys() for w in _shape(said[key], found[key], f"{where}.{key}")
        ]
    if isinstance(said, list) and isinstance(found, list):
        if said and not found:
            return [f"{where}: empty"]
        return _shape(said[0], found[0], f"{where}[0]") if said and said[0] != REST else []
    kinds = {kind for value in (said, found) for kind in [_kind(value)]}
    return [] if len(kinds) == 1 else [f"{where}: {found!r} is not of the kind of {said!r}"]


def _kind(value: Any) -> str:
    """Return the kind of a value. Whole numbers and other numbers are one kind."""
    if isinstance(value, bool):
        return "bool"
    return "number" if isinstance(value, int | float) else type(value).__name__

"""A reader that splits a Dockerfile into its instructions."""

import json
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Instruction:
    """One instruction. `text` is what follows its name, with continued lines joined."""

    name: str
    text: str

    @property
    def exec_form(self) -> list[str]:
        """The command of CMD or HEALTHCHECK. It must be a JSON list, because then no shell starts it."""
        command = json.loads(self.text[self.text.index("[") :])
        assert isinstance(command, list) and all(isinstance(part, str) for part in command)
        return command


def read_dockerfile(path: Path) -> list[Instruction]:
    """Return all instructions in their order."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    parts = [line.strip().partition(" ") for line in joined.splitlines() if line.strip()]
    return [Instruction(name, text.strip()) for name, _, text in parts]

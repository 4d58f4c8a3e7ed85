"""The names of the inputs and outputs of ONNX files. Delivered files have the names of the file handed in."""

from collections.abc import Mapping
from dataclasses import dataclass

INPUT, OUTPUT = "images", "logits"
JUDGED = "vitfit.judged_output"
"""Metadata key of a file with several outputs: the name of the output that vitfit compares with the original."""


@dataclass(frozen=True)
class Signature:
    """The names in a file.

    outputs: all outputs, in the order of the file. judged: the place of the output that vitfit compares with the
    original.
    """

    input: str = INPUT
    outputs: tuple[str, ...] = (OUTPUT,)
    judged: int = 0

    @property
    def judged_output(self) -> str:
        return self.outputs[self.judged]

    def to_metadata(self) -> dict[str, str]:
        """Return the metadata that tell which of several outputs is judged."""
        return {JUDGED: self.judged_output} if len(self.outputs) > 1 else {}


def judged_output(names: list[str], metadata: Mapping[str, str]) -> str:
    """Return the name of the output that vitfit judges, from the names and the metadata of a file."""
    wanted = metadata.get(JUDGED)
    return wanted if wanted in names else names[0]

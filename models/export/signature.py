"""The names of the inputs and outputs of ONNX files. Delivered files have the names of the file handed in."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from torch import Tensor

INPUT, OUTPUT = "images", "logits"
JUDGED = "vitfit.judged_output"
"""Metadata key of a file with several outputs: the name of the output that vitfit compares with the original."""
JUDGED_AS = "vitfit.judged_as"
"""Metadata key of a file whose judged output holds no logits: what it holds (`Scores`)."""
Scores = Literal["logits", "probabilities", "sigmoids"]
"""What an output with one row for each image holds: logits or features, probabilities of classes that add up to 1 (a
softmax), or one probability for each class (a sigmoid)."""
SMALLEST = {"probabilities": 1e-20, "sigmoids": 1e-4}
"""Smallest probability that is told apart from 0, by `Scores`. Near 1, fp32 cannot tell smaller differences apart."""


@dataclass(frozen=True)
class Signature:
    """The names in a file.

    outputs: all outputs, in the order of the file. judged: the place of the output that vitfit compares with the
    original. scores: what this output holds.
    """

    input: str = INPUT
    outputs: tuple[str, ...] = (OUTPUT,)
    judged: int = 0
    scores: Scores = "logits"

    @property
    def judged_output(self) -> str:
        return self.outputs[self.judged]

    def to_metadata(self) -> dict[str, str]:
        """Return the metadata that tell which of several outputs is judged, and what it holds."""
        judged = {JUDGED: self.judged_output} if len(self.outputs) > 1 else {}
        return judged | ({JUDGED_AS: self.scores} if self.scores != "logits" else {})


def judged_output(names: list[str], metadata: Mapping[str, str]) -> str:
    """Return the name of the output that vitfit judges, from the names and the metadata of a file."""
    wanted = metadata.get(JUDGED)
    return wanted if wanted in names else names[0]


def judged_scores(metadata: Mapping[str, str]) -> Scores:
    """Return what the judged output of a file holds, from the metadata of the file."""
    scores = metadata.get(JUDGED_AS)
    return cast(Scores, scores) if scores in get_args(Scores) else "logits"


def as_logits(values: Tensor, scores: Scores) -> Tensor:
    """Return the logits (n, C) that stand for the values of an output.

    The softmax of log p is p, and the sigmoid of log(p / (1 - p)) is p.
    """
    if scores == "logits":
        return values
    smallest = SMALLEST[scores]
    if scores == "probabilities":
        return values.clamp(min=smallest).log()
    return torch.logit(values, eps=smallest)

"""Command-line options for a model, shared by all commands that take one."""

from pathlib import Path
from typing import Annotated

import typer

Checkpoint = Annotated[
    Path | None,
    typer.Option(help="Weights of the model: .safetensors or .pth, or a folder with shards.", metavar="FILE"),
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="Which weights to take if the checkpoint has several sets: `ema` (averaged weights), `model`, or the name "
        "of a set, such as `student`. Without it, the averaged weights.",
        metavar="NAME",
    ),
]
Options = Annotated[
    str | None, typer.Option(help="Arguments of timm's create_model: JSON, or @FILE with JSON.", metavar="JSON")
]
Preprocessing = Annotated[
    str | None,
    typer.Option(
        help="Preprocessing of images, if the model does not define it: size, mean, std, crop, interpolation. "
        "JSON, or @FILE with JSON.",
        metavar="JSON",
    ),
]
NoPretrained = Annotated[bool, typer.Option("--no-pretrained", help="Use random weights, not timm's weights.")]

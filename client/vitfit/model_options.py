"""Command-line options for a model, shared by all commands that take one."""

from pathlib import Path
from typing import Annotated

import typer

Checkpoint = Annotated[Path | None, typer.Option(help="Weights of the model: .safetensors or .pth.", metavar="FILE")]
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

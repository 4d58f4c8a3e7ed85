"""Command-line options for a model, shared by all commands that take one."""

from pathlib import Path
from typing import Annotated

import typer

Checkpoint = Annotated[Path | None, typer.Option(help="Weights: .safetensors or .pth.", metavar="FILE")]
Options = Annotated[str | None, typer.Option(help="Arguments of timm's create_model, JSON or @FILE.", metavar="JSON")]
Preprocessing = Annotated[
    str | None,
    typer.Option(
        help="size, mean, std, crop, interpolation, where the model does not say them: JSON or @FILE.", metavar="JSON"
    ),
]
NoPretrained = Annotated[bool, typer.Option("--no-pretrained", help="Random weights.")]

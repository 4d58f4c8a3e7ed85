"""Export of the pruned network as a PyTorch program: a .pt2 file that can run and be trained without vitfit."""

import io
from pathlib import Path

import torch
from torch import nn

from models.atomic_write import write_whole


def save_program(module: nn.Module, image: tuple[int, int, int], path: Path) -> None:
    """Save a module as a program.

    `torch.export.load(path).module()` returns a module with a free batch size, whose parameters can be trained.
    """
    example = torch.zeros(2, *image)
    program = torch.export.export(module.eval(), (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    content = io.BytesIO()
    torch.export.save(program, content)
    write_whole(path, content.getvalue())  # torch itself would end the process on a full disk

"""The pruned network as a PyTorch program: a .pt2 file that runs and trains on where vitfit is not installed."""

import io
from pathlib import Path

import torch
from torch import nn

from models.atomic_write import write_whole


def save_program(module: nn.Module, image: tuple[int, int, int], path: Path) -> None:
    """`torch.export.load(path).module()` gives a module with a free batch size; its parameters take gradients."""
    example = torch.zeros(2, *image)
    program = torch.export.export(module.eval(), (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    content = io.BytesIO()
    torch.export.save(program, content)
    write_whole(path, content.getvalue())  # given a path or a file, torch would end the process on a full disk

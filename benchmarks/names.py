"""Claim: how many of timm's names are taken, and why the others of the same files are not.

    python -m benchmarks.names                              about 1 minute
    python -m benchmarks.names pvt_v2 pit swin              some families only

Models are built without weights (meta device), asked and described as a job's validation does it.
"""

import argparse
import collections

import timm
import torch
from timm.models import model_entrypoint

from benchmarks.machine import machine
from models.describe import describe
from models.errors import UnsupportedModel
from models.families import family_of

FILES = {
    "plain": ("timm.models.vision_transformer", "timm.models.deit"),
    "pvt_v2": ("timm.models.pvt_v2",),
    "pit": ("timm.models.pit",),
    "swin": ("timm.models.swin_transformer",),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", default=list(FILES), choices=list(FILES))
    for family in parser.parse_args().families:
        count(FILES[family])
    print(", ".join(machine().values()))


def count(files: tuple[str, ...]) -> None:
    names = [name for name in timm.list_models() if model_entrypoint(name).__module__ in files]
    taken, reasons = [], collections.Counter[str]()
    for name in names:
        with torch.device("meta"):
            model = timm.create_model(name)
        try:
            describe(model.eval(), family_of(model), name)
            taken.append(name)
        except UnsupportedModel as error:
            reasons[str(error.facts["reasons"][0])] += 1
    print(f"{len(taken)} of {len(names)} names of {', '.join(files)} are taken; the others, by first reason:")
    for reason, number in reasons.most_common():
        print(f"  {number:3d}  {reason}")


if __name__ == "__main__":
    main()

"""Claim: how many of timm's names are taken, and why the others of the same files are not.

    python -m benchmarks.names                              about 1 minute

Models are built without weights (meta device) and asked as a job's validation asks them.
"""

import collections

import timm
import torch
from timm.models import model_entrypoint

from benchmarks.machine import machine
from models.errors import UnsupportedModel
from models.families import family_of

FILES = ("timm.models.vision_transformer", "timm.models.deit")


def main() -> None:
    names = [name for name in timm.list_models() if model_entrypoint(name).__module__ in FILES]
    taken, reasons = [], collections.Counter[str]()
    for name in names:
        with torch.device("meta"):
            model = timm.create_model(name)
        try:
            family_of(model)
            taken.append(name)
        except UnsupportedModel as error:
            reasons[str(error.facts["reasons"][0])] += 1
    print(f"{len(taken)} of {len(names)} names of {', '.join(FILES)} are taken; the others, by first reason:")
    for reason, count in reasons.most_common():
        print(f"  {count:3d}  {reason}")
    print(", ".join(machine().values()))


if __name__ == "__main__":
    main()

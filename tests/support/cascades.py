"""CP-ViT's cascade on the structure of a DeiT."""

import dataclasses

import timm
import torch

from models.families import family_of
from models.families.describe import describe
from models.structure import Structure
from search.methods import method_named
from search.ranking import Ranking
from search.spaces.cascade import CascadeSpace

MODEL = "deit_small_patch16_224"
METHOD = method_named("cp-vit")


def deit_structure(name: str = MODEL) -> Structure:
    """Return the structure of the model, without creating weights."""
    with torch.device("meta"):
        module = timm.create_model(name)
    return describe(module, family_of(module), name)


def space_with(structure: Structure, ranking: Ranking, depths: tuple[float, ...]) -> CascadeSpace:
    rule = dataclasses.replace(METHOD.tokens, depths=depths)
    return CascadeSpace(structure, ranking, METHOD.axes, rule)

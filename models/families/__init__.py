"""The registry of families, the architectures that vitfit knows by name."""

from torch import nn

from models.errors import UnsupportedModel
from models.families.family import Family
from models.families.pit import PIT
from models.families.pvt_v2 import PVT_V2
from models.families.swin import SWIN
from models.families.vision_transformer import VISION_TRANSFORMER

FAMILIES: dict[str, Family] = {}


def register(family: Family) -> None:
    if family.name in FAMILIES:
        raise ValueError(f"The family {family.name!r} is registered twice")
    FAMILIES[family.name] = family


def family_of(model: nn.Module) -> Family:
    """Return the family of a model.

    Raises: UnsupportedModel if the family cannot handle this model, with each reason, or if no family matches, with the
        list of known families.
    """
    for family in FAMILIES.values():
        if family.matches(model):
            reasons = family.refusals(model)
            if reasons:
                raise UnsupportedModel(
                    f"vitfit cannot prune this model as a {family.title}. Reasons: {'; '.join(reasons)}. Use a model"
                    " without these parts.",
                    reasons=reasons,
                )
            return family
    known = ", ".join(family.title for family in FAMILIES.values())
    raise UnsupportedModel(
        f"The architecture {type(model).__name__} is not a family that vitfit knows. Known families: {known}. Use a"
        " model of one of these families.",
        reasons=[f"architecture {type(model).__name__}"],
    )


register(VISION_TRANSFORMER)
register(PVT_V2)
register(PIT)
register(SWIN)

"""The arithmetic of a network: operations, blocks, structures and plans. Standard library only.

Other packages import these names from here, so they do not depend on the file that holds a class.
"""

from models.structure.block import (
    IN_GRAPH,
    LAYERS,
    PACKAGING,
    Attention,
    Block,
    Layer,
    Mlp,
    Reducer,
    Reduction,
    ReductionPoint,
    block_ops,
    selector_dims,
)
from models.structure.block_plan import BlockPlan, HeadPlan, PlanAxis, TokenPlan, TokenScore, selector_heads
from models.structure.op import BYTES_PER_VALUE, Op, OpKind, Precision
from models.structure.plan import Plan, check, identity
from models.structure.structure import Axis, RotatedAxis, Stage, Structure

__all__ = [
    "BYTES_PER_VALUE",
    "IN_GRAPH",
    "LAYERS",
    "PACKAGING",
    "Attention",
    "Axis",
    "Block",
    "BlockPlan",
    "HeadPlan",
    "Layer",
    "Mlp",
    "Op",
    "OpKind",
    "Plan",
    "PlanAxis",
    "Precision",
    "Reducer",
    "Reduction",
    "ReductionPoint",
    "RotatedAxis",
    "Stage",
    "Structure",
    "TokenPlan",
    "TokenScore",
    "block_ops",
    "check",
    "identity",
    "selector_dims",
    "selector_heads",
]

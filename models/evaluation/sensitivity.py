"""Measures how sensitive each linear layer is to quantisation.

The network runs with only this layer in int8, and its outputs are compared with those in fp32.
"""

import dataclasses
from collections.abc import Callable

from torch import Tensor

from models.evaluation.metrics import agreement, feature_agreement
from models.networks.network import Network
from models.structure import LAYERS, Block, Layer, identity

IMAGES = 32
"""Number of images. Each layer needs one pass over them.

The KL divergence varies smoothly, so more images would hardly change the order.
"""


def quantisation_order(network: Network, images: Tensor, check: Callable[[], None]) -> list[tuple[int, Layer]]:
    """Return all pairs (block, layer), starting with those whose quantisation does the least harm for its benefit.

    They are ordered by the divergence from the fp32 outputs per quantised MAC.
    images: (n, C, H, W). check: called before each pass; it may raise to stop.
    """
    images, structure = images[:IMAGES], network.structure
    whole, dense = network.pruned(identity(structure), None), network.outputs(images)
    differ = agreement if structure.classes else feature_agreement
    cost: dict[tuple[int, Layer], float] = {}
    for place, block in enumerate(structure.blocks):
        for layer in LAYERS:
            check()
            alone = -differ(dense, _with_one(whole, place, layer).outputs(images))
            cost[place, layer] = alone / max(1, _macs(block, layer))
    return sorted(cost, key=lambda member: cost[member])


def _with_one(whole: Network, place: int, layer: Layer) -> Network:
    """Return `whole`, the unpruned network, with one layer in int8."""
    assert whole.plan is not None
    others = tuple(other for other in LAYERS if other != layer)
    blocks = tuple(
        dataclasses.replace(block, exact=others if block.source == place else LAYERS) for block in whole.plan.blocks
    )
    return whole.with_plan(dataclasses.replace(whole.plan, blocks=blocks, precision="int8"))


def _macs(block: Block, layer: Layer) -> int:
    """Return the MACs of the block that become int8 if only this layer is quantised."""
    alone = dataclasses.replace(block, precision="int8", exact=tuple(other for other in LAYERS if other != layer))
    return sum(op.macs for op in alone.ops() if op.precision == "int8")

"""How much each linear layer suffers from quantisation, measured: the network with this layer alone in 8 bits."""

import dataclasses
from collections.abc import Callable

from torch import Tensor

from models.evaluation.metrics import agreement, feature_agreement
from models.networks.network import Network
from models.structure import LAYERS, Block, Layer, identity

IMAGES = 32
"""A divergence is smooth: more images change the order little. One pass over them for each layer."""


def quantisation_order(network: Network, images: Tensor, check: Callable[[], None]) -> list[tuple[int, Layer]]:
    """All (block, layer), those first whose quantisation costs least for the arithmetic that becomes cheaper: by the
    divergence from the fp32 answers per MAC. images (n, C, H, W); check is called before each pass, and may raise to stop."""
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
    """`whole` with one layer in int8."""
    assert whole.plan is not None
    others = tuple(other for other in LAYERS if other != layer)
    blocks = tuple(
        dataclasses.replace(block, exact=others if block.source == place else LAYERS) for block in whole.plan.blocks
    )
    return whole.with_plan(dataclasses.replace(whole.plan, blocks=blocks, precision="int8"))


def _macs(block: Block, layer: Layer) -> int:
    """Of the products that become 8-bit ones."""
    alone = dataclasses.replace(block, precision="int8", exact=tuple(other for other in LAYERS if other != layer))
    return sum(op.macs for op in alone.ops() if op.precision == "int8")

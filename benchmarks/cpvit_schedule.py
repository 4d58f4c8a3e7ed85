"""Claim: CP-ViT's cascade saves more than 40 % of DeiT-S's MACs when it removes half of the patches step by step.

    python -m benchmarks.cpvit_schedule                     about 20 seconds on 2 cores
    python -m benchmarks.cpvit_schedule --images 0          no range is measured: every layer removes the same share

The script prints the tokens and heads of each block, and the MACs, for schedules of the method `cp-vit`. The attention
range decides how much each layer removes. This script takes it from random weights and images of noise. The attention
range does not change how much is removed in total by the end of a span.
"""

import argparse

import numpy as np
import timm
import torch

from models.data.noise import noise_data
from models.data.preprocessing import Preprocessing
from models.networks.torch_network import TorchNetwork
from search.criteria import CRITERIA, rank
from search.policy import Policy
from search.ranking import Ranking, unranked
from search.spaces.cascade import CascadeSpace
from tests.support.cascades import MODEL, deit_structure, space_with

SCHEDULES = {
    "half of the patches by block 4": ((1 / 3, 1.0), Policy(tokens=(0.5, 1.0))),
    "half of the patches by block 4, heads down to half": ((1 / 3, 1.0), Policy(tokens=(0.5, 1.0), heads=0.5)),
    "half of the patches over all blocks, heads down to half": ((1.0,), Policy(tokens=(0.5,), heads=0.5)),
}
"""Title -> (depths at which spans end, policy). The policy gives the share of the tokens that is left at the end of
each span, and the share of the heads that is left in the last block."""


def measured_ranking(name: str, images: int) -> Ranking:
    """Rank a network with random weights by its statistics on images of noise."""
    torch.manual_seed(0)
    module = timm.create_model(name)
    network = TorchNetwork(module, name, Preprocessing.of_model(module))
    noise = noise_data(network.preprocessing, 4 * images, 0).take("calibration", images, 0)
    return rank("cumulative", network.weights(), network.statistics(noise.images, CRITERIA["cumulative"].needs))


def table(title: str, space: CascadeSpace, policy: Policy) -> str:
    """Return a table of the patch tokens, heads and MACs of each block. Blocks are counted from 1, as in the papers."""
    small, whole = space.sketch(policy), space.structure
    rows = [f"{title}", "| block | patches | heads | MACs of the block (M) |", "|---|---|---|---|"]
    for number, block in enumerate(small.blocks, start=1):
        assert block.attention is not None
        patches = block.tokens_attended - small.prefix
        macs = sum(op.macs for op in block.ops()) / 1e6
        rows.append(f"| {number} | {patches} | {block.attention.heads} | {macs:.1f} |")
    saved = 1 - small.macs / whole.macs
    rows.append(f"{small.macs / 1e9:.3f} G of {whole.macs / 1e9:.3f} G MACs: {100 * saved:.1f} % less\n")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--images", type=int, default=16, help="for the attention range; 0: none is measured")
    options = parser.parse_args()
    structure = deit_structure()
    ranking = measured_ranking(MODEL, options.images) if options.images else unranked(structure)
    if ranking.ranges is not None:
        print("attention range of each block:", np.round(ranking.ranges, 2).tolist(), "\n")
    for title, (depths, policy) in SCHEDULES.items():
        print(table(title, space_with(structure, ranking, depths), policy))


if __name__ == "__main__":
    main()

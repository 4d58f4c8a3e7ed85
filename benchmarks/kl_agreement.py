"""Claim: the gradient estimate of UP-ViTs' divergence ranks members as their exact leave-one-out scores do.

    python -m benchmarks.kl_agreement                       about 12 minutes on 1 core (3 with --images 16)

The script uses the trained digits model and images that the model has not seen. The score of a member is the divergence
of the outputs without it. The script computes this score exactly and by the estimate, for the members of each axis and
for each sublayer. The table shows Spearman's rank correlation over all members of an axis, and the lowest correlation
within one block. For comparison, it shows the correlation of the weights' norms, which need no images.
"""

import argparse
from pathlib import Path

import numpy as np
import scipy.stats
import torch
from torch import Tensor

from benchmarks.machine import machine
from benchmarks.train_digits import NAME, PREPROCESSING, load_split, load_stored
from models.networks.torch_network import TorchNetwork
from models.statistics.member_scores import MemberScores
from models.statistics.statistics import Statistics
from search.criteria import rank

FOLDER = Path(__file__).parent / "digits"
AXES = ("neurons", "dims", "qk", "v", "heads", "halves")
TITLES = {
    "neurons": "neurons",
    "dims": "attention dims (q, k, v)",
    "qk": "q/k dims",
    "v": "v dims",
    "heads": "heads",
    "halves": "halves",
    "embed": "embedding dims",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    network = TorchNetwork(load_stored(FOLDER), NAME, PREPROCESSING)
    with np.load(FOLDER / "digits.npz") as data:
        images, _ = load_split(dict(data), "selection")
    print(machine())
    print(table(network, images[: options.images]))


def table(network: TorchNetwork, images: Tensor) -> str:
    statistics = network.statistics(images, {"fisher", "deletion"})
    lines = [f"{len(images)} images", f"{'':26}{'members':>8}{'all blocks':>12}{'worst block':>13}{'norms':>8}"]
    for axis in (*AXES, "embed"):
        lines.append(row(axis, network, statistics))
    assert statistics.fisher is not None and statistics.deletion is not None
    for title, stream in (("estimate", statistics.fisher), ("exact", statistics.deletion)):
        passes, seconds = stream.cost.tolist()
        lines.append(f"{title}: {passes:,.0f} passes over the images, {seconds:.1f} s")
    return "\n".join(lines)


def row(axis: str, network: TorchNetwork, statistics: Statistics) -> str:
    if axis == "embed":
        assert statistics.fisher is not None and statistics.deletion is not None
        pairs, norms = [(statistics.fisher.embed, statistics.deletion.embed)], None
    else:
        pairs = [(of(axis, b.fisher), of(axis, b.deletion)) for b in statistics.blocks]
        blocks = rank("magnitude", network.weights(), None).blocks
        found = [getattr(block, axis) for block in blocks]
        norms = None if found[0] is None else torch.from_numpy(np.concatenate([f.ravel() for f in found]))
    estimate, exact = (torch.cat(side) for side in zip(*pairs, strict=True))
    worst = min(correlation(a, b) for a, b in pairs) if axis != "halves" else None
    plain = "" if norms is None else f"{correlation(norms, exact):.3f}"
    shown = "" if worst is None else f"{worst:.3f}"
    return f"{TITLES[axis]:26}{len(exact):8}{correlation(estimate, exact):12.3f}{shown:>13}{plain:>8}"


def of(axis: str, scores: MemberScores | None) -> Tensor:
    found: Tensor = getattr(scores, axis)
    return found.flatten()


def correlation(a: Tensor, b: Tensor) -> float:
    return float(scipy.stats.spearmanr(a, b).statistic)


if __name__ == "__main__":
    main()

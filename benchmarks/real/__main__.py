"""Claim: a trained network keeps its features when it is cut in rotated bases, without labels and without training.

    python -m benchmarks.real                         all budgets, both bases (about two hours on 2 cores)
    python -m benchmarks.real --keeps 0.7 --test 128  one budget, fewer pictures

The network is a trained DINOv2 ViT-S/14 at 224 pixels, and the pictures are clip art by subject. For each share of the
MACs, a search runs as in a job. The table shows the mean cosine of the features with those of the dense network, and
the share of pictures whose subject most of their 20 nearest neighbours have. It is measured on pictures that nothing
else has seen. The packages are fetched once, into the cache folder. Without a network the command says so and ends
with 2.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.machine import machine
from benchmarks.real import fetch
from benchmarks.real.backbone import MEAN, SIDE, STD, backbone
from benchmarks.real.pictures import Split, clip_art
from models.data.preprocessing import Preprocessing
from models.networks.network import Network
from models.networks.torch_network import TorchNetwork
from models.statistics.statistics import Kind
from search.budgets import Budget, Budgets
from search.criteria import rank
from search.criteria.rotated import with_bases
from search.loop.executor import LocalExecutor
from search.loop.search import Search, best
from search.methods import METHODS
from search.spaces.compact import CompactSpace
from service.pipeline.scoring import Answers, Scorer

CALIBRATION, SELECTION = 256, 96
NEIGHBOURS = 20


@dataclass(frozen=True)
class Pictures:
    """calibration, selection: for the bases and the search. known: labelled pictures. test: what nothing else sees."""

    calibration: Split
    selection: Split
    known: Split
    test: Split


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "vitfit" / "real")
    parser.add_argument("--keeps", type=float, nargs="+", default=[0.8, 0.7, 0.6, 0.5, 0.4])
    parser.add_argument("--bases", nargs="+", default=["rotated", "chosen"])
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--test", type=int, default=498, help="number of test pictures")
    options = parser.parse_args()
    try:
        file, folder = fetch.weights(options.cache), fetch.clip_art(options.cache)
    except fetch.NotFetched as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from error
    pictures = Pictures(*clip_art(folder, (CALIBRATION, SELECTION, 1000, options.test)))
    dense = TorchNetwork(backbone(file), "DINOv2 ViT-S/14", Preprocessing((3, SIDE, SIDE), MEAN, STD, 1.0, "bicubic"))
    known, features = dense.outputs(pictures.known.images), dense.outputs(pictures.test.images)
    print(f"dense: {_right(known, features, pictures):.1%} of {options.test} pictures by their neighbours")
    print("| MACs | basis | cosine | neighbours | minutes |\n|---|---|---|---|---|", flush=True)
    for basis in options.bases:
        searched = Searched.of(dense, pictures, basis)
        for keep in options.keeps:
            started = time.monotonic()
            network = searched.network(keep, options.trials)
            found = network.outputs(pictures.test.images)
            cosine = float(functional.cosine_similarity(found, features).mean())
            share = network.structure.macs / dense.structure.macs
            right = _right(network.outputs(pictures.known.images), found, pictures)
            minutes = (time.monotonic() - started) / 60
            print(f"| {share:.3f} | {basis} | {cosine:.3f} | {right:.1%} | {minutes:.1f} |", flush=True)
    print(", ".join(machine().values()))


def _right(known: Tensor, found: Tensor, pictures: Pictures) -> float:
    """Return the share of test pictures whose subject most of the nearest known pictures have."""
    nearest = (functional.normalize(found) @ functional.normalize(known).T).topk(NEIGHBOURS).indices
    voted = pictures.known.subjects[nearest].mode(1).values
    return float((voted == pictures.test.subjects).float().mean())


@dataclass(frozen=True)
class Searched:
    """A network in one basis, with what all searches in it share."""

    source: Network
    space: CompactSpace
    scorer: Scorer
    calibration: Tensor
    dense_macs: int

    @classmethod
    def of(cls, dense: TorchNetwork, pictures: Pictures, basis: str) -> "Searched":
        images = pictures.calibration.images
        bases = dense.bases(images) if basis == "rotated" else None
        source = dense if bases is None else dense.rotated(bases)
        kinds: tuple[Kind, ...] = ("inputs",)  # recovery fits the layers that read a narrower stream
        statistics = source.statistics(images, kinds)
        ranking = with_bases(rank("reconstruction", source.weights(), statistics), bases)
        space = CompactSpace(source.structure, ranking, METHODS["joint"].axes)
        answers = Answers(pictures.selection.images, None, dense.outputs(pictures.selection.images), 0)
        return cls(source, space, Scorer(source, statistics, space, answers), images, dense.structure.macs)

    def network(self, keep: float, trials: int) -> Network:
        """Return the best network of a search with at most this share of the MACs."""

        def price(structures: Any) -> Any:
            return np.array([[shape.macs] for shape in structures], dtype=float)

        budgets = Budgets((Budget("macs", keep * self.dense_macs),))
        executor = LocalExecutor(self.scorer)
        found = Search(self.space, budgets, price, executor, lambda _trial: None, 0).run([], trials)
        network = self.scorer.prune(self.space.plan(best(found)[0].policy))
        if not network.recovers_in_sequence:
            return network
        again = network.recovered_in_sequence(self.source, self.calibration)
        return max(network, again, key=lambda one: self.scorer.answers.score(one).agreement)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()

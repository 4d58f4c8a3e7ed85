"""Claim: a trained network keeps its features when it is cut in rotated bases, without labels and without training.

    python -m benchmarks.real                         all shares of the MACs, both bases (two to three hours on 2 cores)
    python -m benchmarks.real --keeps 0.7 --test 128  one budget, fewer pictures

The network is a trained DINOv2 ViT-S/14 at 224 pixels, and the pictures are clip art by subject. For each share of the
MACs or of the latency (--metric), a search runs as in a job. The table shows the mean cosine of the features with those
of the dense network, on clip art and on photographs, and the share of clip art whose subject most of its 20 nearest
neighbours have. Nothing else has seen these pictures. All files are measured in one interleaved run. The packages are
fetched once, into the cache folder. Without a network the command says so and ends with 2.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.machine import machine
from benchmarks.real import fetch
from benchmarks.real.backbone import MEAN, SIDE, STD, backbone
from benchmarks.real.pictures import Split, clip_art, photographs
from latency.devices.setting import Setting, runtime_version
from latency.measuring.meter import Effort, Meter
from latency.measuring.sampling import ratio
from models.data.preprocessing import Preprocessing
from models.networks.network import Network
from models.networks.torch_network import TorchNetwork
from models.statistics.statistics import Kind
from models.training.heal import Healing, heal
from search.criteria import rank
from search.criteria.rotated import with_bases
from search.loop.executor import LocalExecutor
from search.loop.local_search import LocalSearch
from search.loop.search import Search, best
from search.methods import METHODS
from search.spaces.compact import CompactSpace
from service.jobs.job_request import HealRequest, JobRequest
from service.pipeline.pricing import Pricing
from service.pipeline.profiling import profile
from service.pipeline.scoring import Answers, Scorer
from service.pipeline.verification import Verifier

CALIBRATION, SELECTION, KNOWN = 256, 96, 500
NEIGHBOURS = 20
TIMING = Effort(seconds=120.0, width=0.02, processes=2, rounds=4)


@dataclass(frozen=True)
class Pictures:
    """calibration, selection: for the bases and the search. known: labelled pictures. test, photographs: what nothing
    else sees."""

    calibration: Split
    selection: Split
    known: Split
    test: Split
    photographs: Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "vitfit" / "real")
    parser.add_argument("--keeps", type=float, nargs="+", default=[0.8, 0.7, 0.6, 0.5, 0.4])
    parser.add_argument("--bases", nargs="+", default=["rotated", "chosen"])
    parser.add_argument("--metric", choices=["macs_keep", "latency_keep"], default="macs_keep")
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--test", type=int, default=498, help="number of test pictures")
    parser.add_argument("--heal", type=int, default=0, help="steps of healing; 0: the networks are not healed")
    options = parser.parse_args()
    try:
        file, folder = fetch.weights(options.cache), fetch.clip_art(options.cache)
        backgrounds = fetch.photographs(options.cache)
    except fetch.NotFetched as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from error
    calibration, selection, known, test = clip_art(folder, (CALIBRATION, SELECTION, KNOWN, options.test))
    pictures = Pictures(calibration, selection, known, test, photographs(backgrounds))
    dense = TorchNetwork(backbone(file), "DINOv2 ViT-S/14", Preprocessing((3, SIDE, SIDE), MEAN, STD, 1.0, "bicubic"))
    judge = Judge(dense, pictures)
    share, count = judge.neighbours(dense), len(pictures.photographs)
    print(f"dense: {share:.1%} of {options.test} pictures by their neighbours; {count} squares of photographs")
    rows = []
    with tempfile.TemporaryDirectory() as work:
        for basis in options.bases:
            searched = Searched.of(dense, pictures, basis)
            for keep in options.keeps:
                pricing = priced(dense, options.metric, keep, Path(work))
                rows.append(judge.row(searched, pricing, trials=options.trials, steps=options.heal, work=Path(work)))
                print(rows[-1].line("not yet"), flush=True)
        latencies = measured(dense, [row.file for row in rows], Path(work))
    print("\n| MACs | latency, measured | basis | cosine | photographs | neighbours | after healing | minutes |")
    print("|---|---|---|---|---|---|---|---|")
    for row, latency in zip(rows, latencies, strict=True):
        print(row.line(f"{latency:.3f}"))
    print(", ".join(machine().values()))


def priced(dense: TorchNetwork, metric: str, keep: float, work: Path) -> Pricing:
    """Return the prices of a job with this budget. For a latency, they come from a table that is measured once."""
    budget = {"metric": metric, "limit": keep}
    if metric == "latency_keep":
        budget |= {"device": "cpu", "setting": {"threads": 1}}
    request = JobRequest.model_validate({"model": "model", "dataset": "data", "budgets": [budget]})
    pricing = Pricing(request, dense.structure)
    verifier = Verifier(dense, pricing, work, 0)
    profile(pricing, dense, verifier, work / "tables", work=work, precisions=request.precisions)
    return pricing


@dataclass(frozen=True)
class Row:
    """One network of the table. cosine, photographs, neighbours: before healing and, if it was healed, after it."""

    macs: float
    basis: str
    cosine: tuple[float, ...]
    photographs: tuple[float, ...]
    neighbours: tuple[float, ...]
    minutes: float
    file: Path

    def line(self, latency: str) -> str:
        before, *after = [
            f"{cosine:.3f} | {photographs:.3f} | {neighbours:.1%}"
            for cosine, photographs, neighbours in zip(self.cosine, self.photographs, self.neighbours, strict=True)
        ]
        healed = after[0].replace(" | ", ", ") if after else "-"
        return f"| {self.macs:.3f} | {latency} | {self.basis} | {before} | {healed} | {self.minutes:.1f} |"


class Judge:
    """Compares networks with the dense one on the test pictures."""

    def __init__(self, dense: TorchNetwork, pictures: Pictures) -> None:
        self.dense, self.pictures = dense, pictures
        self.features = dense.outputs(pictures.test.images)
        self.of_photographs = dense.outputs(pictures.photographs)

    def cosine(self, network: Network) -> float:
        return _cosine(network.outputs(self.pictures.test.images), self.features)

    def on_photographs(self, network: Network) -> float:
        return _cosine(network.outputs(self.pictures.photographs), self.of_photographs)

    def neighbours(self, network: Network) -> float:
        """Return the share of test pictures whose subject most of the nearest known pictures have."""
        known, found = (network.outputs(split.images) for split in (self.pictures.known, self.pictures.test))
        nearest = (functional.normalize(found) @ functional.normalize(known).T).topk(NEIGHBOURS).indices
        voted = self.pictures.known.subjects[nearest].mode(1).values
        return float((voted == self.pictures.test.subjects).float().mean())

    def row(self, searched: "Searched", pricing: Pricing, *, trials: int, steps: int, work: Path) -> Row:
        started = time.monotonic()
        networks = [searched.network(pricing, trials)]
        if steps:
            networks.append(searched.healed(networks[0], self.pictures, steps, work))
        file = work / f"{searched.basis}-{pricing.budgets.items[0].limit:g}.onnx"
        networks[-1].export(file, 1, "cpu")
        return Row(
            networks[0].structure.macs / self.dense.structure.macs,
            searched.basis,
            tuple(map(self.cosine, networks)),
            tuple(map(self.on_photographs, networks)),
            tuple(map(self.neighbours, networks)),
            (time.monotonic() - started) / 60,
            file,
        )


def _cosine(found: Tensor, wanted: Tensor) -> float:
    return float(functional.cosine_similarity(found, wanted).mean())


def measured(dense: TorchNetwork, files: Sequence[Path], work: Path) -> list[float]:
    """Measure all files beside the original in one interleaved run. Return the shares of its latency."""
    dense.export(work / "original.onnx", 1, "cpu")
    first, *found = Meter(Setting(runtime=runtime_version())).measure([work / "original.onnx", *files], TIMING, 1)
    return [ratio(one, first).value for one in found]


@dataclass(frozen=True)
class Searched:
    """A network in one basis, with what all searches in it share."""

    basis: str
    source: Network
    space: CompactSpace
    scorer: Scorer
    calibration: Tensor

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
        return cls(basis, source, space, Scorer(source, statistics, space, answers), images)

    def network(self, pricing: Pricing, trials: int) -> Network:
        """Return the best network of a search within the budget."""
        local = LocalSearch(self.space, pricing.price, LocalExecutor(self.scorer.on_a_part()))
        executor = LocalExecutor(self.scorer)
        search = Search(self.space, pricing.aims, pricing.price, executor, lambda _trial: None, 0, local=local)
        found = search.run([], trials)
        network = self.scorer.prune(self.space.plan(best(found)[0].policy))
        if not network.recovers_in_sequence:
            return network
        again = network.recovered_in_sequence(self.source, self.calibration)
        return max(network, again, key=lambda one: self.scorer.answers.score(one).agreement)

    def healed(self, network: Network, pictures: Pictures, steps: int, work: Path) -> Network:
        """Return the network after healing on the calibration and the known pictures, without their labels.

        If it agrees less with the dense network on the selection pictures, return it unhealed, as a job does.
        """
        images = torch.cat([pictures.calibration.images, pictures.known.images])
        healing = Healing(steps, HealRequest().learning_rate, HealRequest().batch, seed=0)
        checkpoint = work / "heal.pt"
        checkpoint.unlink(missing_ok=True)
        found = heal(network, self.source, images, healing, checkpoint=checkpoint, after_epoch=lambda *_: None)
        return max(found, network, key=lambda one: self.scorer.answers.score(one).agreement)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()

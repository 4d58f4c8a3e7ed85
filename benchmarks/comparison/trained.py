"""Rows after a short training. Every row gets the same processor time."""

import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.comparison.bench import Bench
from models.data.dataset import Batch
from models.networks.network import Network
from models.structure.selector_plan import merge_stages
from models.training.finetune import Recipe, distillation_loss, finetune
from models.training.train_gates import GateRecipe, train_gates
from models.training.train_selectors import train_selectors
from search.loop.search import best
from service.pipeline.ranked import better, rank_network
from service.pipeline.training import SELECTOR_RATE

BATCH, LEARNING_RATE, GATE_RATE, L1 = 64, 1e-4, 1e-2, 1e-4
"""Default values of a job."""
PROBE_STEPS = 4
TRIALS = 40
Train = Callable[[Bench, float], Network]
"""(bench, processor seconds) -> the trained network. Each function decides how to use the time."""


def finetuned(bench: Bench, network: Network, seconds: float) -> Network:
    """Fine-tune a network as a job does, with distillation from the original and with labels.

    seconds: processor time for the training, met approximately. If the network scored better on the selection split
    before the training, return the network from before the training, as a job does.
    """
    epochs, data = affordable(bench, network, seconds)
    recipe = Recipe(epochs, LEARNING_RATE, BATCH, distill=1.0, seed=bench.case.seed)
    with tempfile.TemporaryDirectory() as folder:
        trained = finetune(network, bench.original, data, recipe, checkpoint=Path(folder) / "c.pt", after_epoch=_ignore)
    score = bench.ranked.score_of
    return network if better(score(network), score(trained)) else trained


def gates(bench: Bench, seconds: float) -> Network:
    """Make a network by VTP.

    Half of the time is for the training of the gates. A search then chooses the only parameter, a threshold. The rest
    of the time is for fine-tuning.
    """
    epochs, data = affordable(bench, bench.original, seconds / 2)
    recipe = GateRecipe(epochs, L1, LEARNING_RATE, GATE_RATE, BATCH, bench.case.seed)
    with tempfile.TemporaryDirectory() as folder:
        trained = train_gates(bench.original, data, recipe, Path(folder) / "c.pt", after_epoch=_ignore)
        bench.ranked = rank_network(bench.evaluation, bench.request, Path(folder), trained)
    network, _ = bench.search(bench.ranked.space, True, trials=1)
    return finetuned(bench, network, seconds / 2)


def selectors(bench: Bench, seconds: float) -> Network:
    """Make a network by SPViT.

    A search chooses the keep ratios. During this search, the class token's attention scores the tokens instead of the
    selectors. Two thirds of the time are for the training of the selectors. The last third is for fine-tuning the
    network, which keeps the best tokens of each image.
    """
    space = bench.ranked.space
    found = bench.searching(space, recovery=True).run([], TRIALS)
    plan = merge_stages(space.plan(best(found)[0].policy))
    network = bench.ranked.prune(plan, True)
    epochs, data = affordable(bench, network, seconds * 2 / 3)
    rate = SELECTOR_RATE * LEARNING_RATE
    recipe = Recipe(epochs, rate, BATCH, distill=1.0, seed=bench.case.seed)
    with tempfile.TemporaryDirectory() as folder:
        network = train_selectors(
            network, bench.original, data, recipe, checkpoint=Path(folder) / "c.pt", after_epoch=_ignore
        )
    return finetuned(bench, network, seconds / 3)


def affordable(bench: Bench, network: Network, seconds: float) -> tuple[int, Batch]:
    """Return the number of epochs and the images of one epoch that fit into the time for this network."""
    module, count = network.module.train(), BATCH * PROBE_STEPS
    probe = bench.evaluation.data.take("train", count, bench.case.seed)
    assert probe.labels is not None
    began = time.process_time()
    targets = bench.original.outputs(probe.images)
    for images, labels, wanted in zip(
        probe.images.split(BATCH), probe.labels.split(BATCH), targets.split(BATCH), strict=True
    ):
        with torch.enable_grad():
            distillation_loss(module(images), wanted, labels, 1.0).backward()
    each = (time.process_time() - began) / count
    module.eval().zero_grad()
    total = max(BATCH, int(seconds / each))
    there = len(bench.train.images)
    epochs = math.ceil(total / there)
    chosen = torch.randperm(there, generator=torch.Generator().manual_seed(bench.case.seed))[: total // epochs]
    whole = bench.train
    assert whole.labels is not None
    return epochs, Batch(whole.images[chosen], whole.labels[chosen], whole.indices[chosen])


TRAINED: dict[str, Train | None] = {
    "joint": None,
    "mdc": None,
    "cp-vit": None,
    "up-vit": None,
    "vtp": gates,
    "spvit": selectors,
    "Torch-Pruning magnitude": None,
    "Torch-Pruning Taylor": None,
    "uniform magnitude": None,
    "token merging": None,
}
"""None means that the network from before the training is fine-tuned."""


def _ignore(_epoch: int, _loss: float) -> None:
    pass

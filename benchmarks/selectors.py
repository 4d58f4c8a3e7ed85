"""Claim: trained token selectors keep better tokens than the class token's attention or chance, at equal counts.

    python -m benchmarks.selectors                                            digits, a few minutes on 2 cores
    python -m benchmarks.selectors --model DIR --data DATA --keep 0.7 0.4 0.2 --output build/selectors

Each row is one way to choose tokens. All rows keep the same number of tokens, with the same reducer, before the blocks
at a quarter, a half and three quarters of the depth. The first column shows the original backbone. The second column
shows the backbone after fine-tuning. All rows get the same fine-tuning. The backbone is frozen while the selectors are
trained, so that no row gets more training of its backbone than another. For the row "random", a new random choice is
made for every image and pass. The table shows the accuracy on the test split: mean and standard deviation over seeds.
"""

import argparse
import dataclasses
import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.machine import machine
from models.data.dataset import Batch, Dataset
from models.data.open_dataset import open_data
from models.loading.load_model import open_model
from models.networks.network import Network
from models.structure import Plan, Structure, TokenPlan, TokenScore, identity
from models.training.finetune import Recipe, finetune
from models.training.train_selectors import train_selectors
from search.methods import method_named

DIGITS = Path(__file__).parent / "digits"
CHOOSERS = ("random", "attention", "selector")


class Chance(nn.Module):
    """Replacement for a selector: its scores are random, and new for every pass."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.rand(x.shape[:2], device=x.device)


@dataclasses.dataclass(frozen=True)
class Task:
    """A model, its data, and the shares of the patches that every chooser keeps.

    name: folders of the model and the data. It is part of the key under which rows are stored.
    """

    name: str
    dense: Network
    train: Batch
    test: Batch
    keeps: tuple[float, ...]

    def plan(self, score: TokenScore) -> Plan:
        return keeping(self.dense.structure, self.keeps, score)


def main() -> None:
    options = arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    task = open_task(options.model, options.data, tuple(options.keep), options.images, test_images=options.test_images)
    rows = []
    for seed in range(options.seeds):
        recipe = Recipe(options.epochs, options.learning_rate, options.batch, distill=1.0, seed=seed)
        rows += [run(task, chooser, recipe, options.selector_rate, output=options.output) for chooser in CHOOSERS]
    text = table(task, rows)
    print(text)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "selectors.json").write_text(json.dumps({"rows": rows, **machine()}, indent=1))
    (options.output / "selectors.md").write_text(text)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", type=Path, default=DIGITS, help="folder with model.json and weights")
    parser.add_argument("--data", type=Path, default=DIGITS / "digits.npz", help=".npz, archive or folder of pictures")
    parser.add_argument("--keep", type=float, nargs="+", default=[0.5, 0.25, 0.12], help="of all patches, per stage")
    parser.add_argument("--epochs", type=int, default=10, help="of the selectors, and again of the fine-tuning")
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--selector-rate", type=float, default=30.0, help="the selectors' learning rate over the other")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--images", type=int, default=20_000, help="at most so many to train on")
    parser.add_argument("--test-images", type=int, default=5_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0: torch's own choice")
    parser.add_argument("--output", type=Path, default=Path("build/selectors"))
    return parser.parse_args()


def open_task(model: Path, data: Path, keeps: tuple[float, ...], images: int, *, test_images: int) -> Task:
    dense = open_model(model)
    with tempfile.TemporaryDirectory() as folder:
        dataset = dataset_of(dense, data.resolve(), Path(folder))
        train, test = dataset.take("train", images, 0), dataset.take("test", test_images, 0)
    if test.labels is None:
        raise SystemExit(f"{data} has no labels: accuracy cannot be compared")
    return Task(f"{model.resolve()} {data.resolve()}", dense, train, test, keeps)


def dataset_of(dense: Network, data: Path, folder: Path) -> Dataset:
    source = "path" if data.is_dir() else "npz" if data.suffix == ".npz" else "archive"
    if source != "path":
        (folder / ("data.npz" if source == "npz" else f"data{data.suffix}")).symlink_to(data)
    document = {"source": source, "path": str(data) if source == "path" else None, "filename": data.name}
    (folder / "dataset.json").write_text(json.dumps(document))
    classes, names = dense.structure.classes or None, dense.class_names
    return open_data(folder, dense.preprocessing, classes, (data.parent, data), class_names=names)


def keeping(structure: Structure, keeps: Sequence[float], score: TokenScore) -> Plan:
    rule = dataclasses.replace(method_named("spvit").tokens, score=score)
    whole, patches = identity(structure), structure.tokens - structure.prefix
    blocks = list(whole.blocks)
    for place, keep in zip(rule.stages(structure), keeps, strict=True):
        count = max(1, round(keep * patches))
        blocks[place] = dataclasses.replace(blocks[place], tokens=TokenPlan(count, rule.reducer, rule.at, rule.score))
    return dataclasses.replace(whole, blocks=tuple(blocks))


def run(task: Task, chooser: str, recipe: Recipe, selector_rate: float, *, output: Path) -> dict[str, Any]:
    """Run one seed of one chooser. A finished row is not computed again."""
    key = f"{task.name} {chooser}-{task.plan('selector').key}-{recipe}-{selector_rate}-{len(task.train.images)}"
    store = output / "rows.json"
    known: dict[str, Any] = json.loads(store.read_text()) if store.exists() else {}
    if key not in known:
        torch.manual_seed(recipe.seed)
        network = with_chooser(task, chooser, recipe, selector_rate)
        frozen = accuracy(network, task.test)
        with tempfile.TemporaryDirectory() as folder:
            tuned = finetune(
                network,
                task.dense,
                task.train,
                recipe,
                checkpoint=Path(folder) / "c.pt",
                after_epoch=_said(chooser, "tuning"),
            )
        known[key] = {"chooser": chooser, "seed": recipe.seed, "frozen": frozen, "tuned": accuracy(tuned, task.test)}
        output.mkdir(parents=True, exist_ok=True)
        store.write_text(json.dumps(known, indent=1))
    row: dict[str, Any] = known[key]
    return row


def with_chooser(task: Task, chooser: str, recipe: Recipe, selector_rate: float) -> Network:
    if chooser == "attention":
        return task.dense.pruned(task.plan("attention"), None)
    network = task.dense.pruned(task.plan("selector"), None)
    if chooser == "random":
        for reduction in network.reductions():
            reduction.selector = Chance()
        return network
    learn = dataclasses.replace(recipe, learning_rate=selector_rate * recipe.learning_rate)
    with tempfile.TemporaryDirectory() as folder:
        said = _said(chooser, "selectors")
        return train_selectors(
            network, task.dense, task.train, learn, checkpoint=Path(folder) / "c.pt", after_epoch=said, frozen=1.0
        )


def _said(chooser: str, what: str) -> Callable[[int, float], None]:
    return lambda epoch, loss: print(f"  {chooser}, {what}: epoch {epoch}, loss {loss:.4f}", flush=True)


def accuracy(network: Network, data: Batch) -> float:
    assert data.labels is not None
    return float((network.outputs(data.images).argmax(1) == data.labels).double().mean())


def table(task: Task, rows: Sequence[dict[str, Any]]) -> str:
    """Return a Markdown table."""
    structure = task.dense.structure
    counts = [block.tokens.kept for block in task.plan("selector").blocks if block.tokens is not None]
    dense = accuracy(task.dense, task.test)
    lines = [
        f"{structure.name}, {structure.tokens - structure.prefix} patch tokens, {counts} kept; "
        f"{len(task.test.images)} test images, {len(task.train.images)} to train on; "
        f"dense accuracy {100 * dense:.2f} %.",
        "",
        "| tokens chosen by | backbone frozen | backbone fine-tuned |",
        "|---|---|---|",
    ]
    for chooser in CHOOSERS:
        mine = [row for row in rows if row["chooser"] == chooser]
        lines.append(f"| {chooser} | {_spread(mine, 'frozen')} | {_spread(mine, 'tuned')} |")
    chosen, attention = (
        task.plan(score).apply_to(structure).macs / structure.macs for score in ("selector", "attention")
    )
    lines += [
        "",
        f"MACs kept: {chosen:.3f} with selectors, {attention:.3f} by attention.",
        ", ".join(machine().values()),
    ]
    return "\n".join(lines)


def _spread(rows: Sequence[dict[str, Any]], column: str) -> str:
    values = [100 * row[column] for row in rows]
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.2f} % (standard deviation {spread:.2f}, {len(values)} seeds)"


if __name__ == "__main__":
    main()

"""Claim: the exported graph is faster than torch's two exports, and little slower than its matrix products alone.

    python -m benchmarks.exports                                about 10 minutes on 2 cores

The script writes five files of the same pruned model: by torch's TorchScript exporter, by torch's newer exporter,
`model.onnx`, `model.cpu.onnx`, and a graph that holds the same matrix products and nothing else. The model has random
weights and keeps two thirds of its heads and neurons. The script measures all files in turn in the same processes, at
ONNX Runtime's full optimisation level. Goals: at most 0.92 of the latency of the faster torch export, and at most 1.3
of the latency of the matrix products.
"""

import argparse
import dataclasses
import functools
import json
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from benchmarks.machine import machine
from latency.devices.setting import Setting, runtime_version
from latency.measuring.meter import Effort, Meter
from latency.measuring.sampling import Interval, ratio
from models.export.onnx_export import OPSET, run_onnx
from models.export.signature import INPUT, OUTPUT
from models.loading.load_model import untrained
from models.networks.network import Network
from models.structure import Plan, Structure, identity

EFFORT = Effort(seconds=40.0, width=0.01, processes=4, rounds=8)
KEEP = 2 / 3
FORMS = ("torchscript", "newer", "standard", "cpu", "products")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--models", nargs="+", default=["deit_tiny_patch16_224", "deit_small_patch16_224"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--output", type=Path, default=Path("build/exports.json"))
    options = parser.parse_args()
    rows = []
    for name in options.models:
        for batch in options.batches:
            with tempfile.TemporaryDirectory() as folder:
                rows.append({"model": name, "batch": batch, **compared(name, batch, Path(folder))})
            print(rows[-1], flush=True)
    print(table(rows))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"rows": rows, **machine()}, indent=1))


def compared(name: str, batch: int, folder: Path) -> dict[str, Any]:
    network = untrained(name)
    small = network.pruned(smaller(network.structure), None)
    files = {form: folder / f"{form}.onnx" for form in FORMS}
    plain_exports(small, batch, files["torchscript"], files["newer"])
    small.export(files["standard"], batch, "standard")
    small.export(files["cpu"], batch, "cpu")
    onnx.save(products(small.structure, batch), files["products"])
    images = torch.randn(batch, *small.structure.image, generator=torch.Generator().manual_seed(0))
    for form in FORMS[:-1]:
        torch.testing.assert_close(run_onnx(files[form], images, batch), small.outputs(images), rtol=1e-3, atol=1e-3)
    found = Meter(Setting(batch=batch, runtime=runtime_version())).measure(list(files.values()), EFFORT)
    times = dict(zip(FORMS, found, strict=True))
    faster = min(("torchscript", "newer"), key=lambda form: times[form].p50_ms.value)
    ours = {form: ratio(times[form], times[faster]) for form in ("standard", "cpu")}
    return {
        "ms": {form: measurement.p50_ms.value for form, measurement in times.items()},
        "of the faster": {form: value.to_json() for form, value in ours.items()},
        "of the products": ratio(times["cpu"], times["products"]).to_json(),
    }


def smaller(structure: Structure) -> Plan:
    whole = identity(structure)
    blocks = (
        dataclasses.replace(
            block,
            heads=block.heads[: round(KEEP * len(block.heads))],
            neurons=block.neurons[: round(KEEP * len(block.neurons))],
        )
        for block in whole.blocks
    )
    return Plan(whole.embed, tuple(blocks))


def plain_exports(network: Network, batch: int, torchscript: Path, newer: Path) -> None:
    example = (torch.zeros(batch, *network.structure.image),)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.module,
            example,
            str(torchscript),
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=OPSET,
            dynamo=False,
        )
    torch.onnx.export(
        network.module, example, str(newer), input_names=[INPUT], output_names=[OUTPUT], dynamo=True, verbose=False
    )


def products(structure: Structure, batch: int) -> onnx.ModelProto:
    """Return a graph of all matrix products of the structure, with random values and without any other layer.

    The patch embedding and the two products of attention are included. Each left factor is one value of the input
    image, repeated. If it were a constant, ONNX Runtime would compute the product before the run. The right factors
    differ. If they were equal, ONNX Runtime would compute equal products only once. One row of each product is an
    output of the graph, so that no product is left out.
    """
    graph = Products()
    for left, right in shapes(structure, batch):
        graph.multiply(graph.fed(left), graph.constant(right))
    return graph.model([batch, *structure.image])


class Products:
    def __init__(self) -> None:
        self._nodes = [helper.make_node("ReduceMax", [INPUT], ["pixel"], keepdims=0)]
        self._weights: list[TensorProto] = []
        self._random = np.random.default_rng(0)
        self._first_row = [self._named(np.asarray([value])) for value in (0, 1, -2)]

    def constant(self, shape: tuple[int, ...]) -> str:
        return self._named(self._random.standard_normal(shape, dtype=np.float32))

    @functools.cache  # noqa: B019  # the object lives for one graph, so the cache stays small
    def fed(self, shape: tuple[int, ...]) -> str:
        return self._node("Expand", "pixel", self._named(np.asarray(shape)))

    def multiply(self, left: str, right: str) -> None:
        self._node("Slice", self._node("MatMul", left, right), *self._first_row)

    def model(self, image: list[int]) -> onnx.ModelProto:
        outputs = [node.output[0] for node in self._nodes if node.op_type == "Slice"]
        infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        inputs = [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, image)]
        graph = helper.make_graph(self._nodes, "products", inputs, infos, self._weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)

    def _named(self, values: np.ndarray) -> str:
        self._weights.append(numpy_helper.from_array(values, f"w{len(self._weights)}"))
        return str(self._weights[-1].name)

    def _node(self, kind: str, *inputs: str) -> str:
        self._nodes.append(helper.make_node(kind, list(inputs), [f"x{len(self._nodes)}"]))
        return str(self._nodes[-1].output[0])


def shapes(structure: Structure, batch: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield the shapes of both factors of each product."""
    for op in structure.ops():
        if op.kind in ("matmul", "conv"):
            yield (batch * op.rows, op.inner), (op.inner, op.cols)
        if op.kind == "attention":
            count = batch * op.count
            yield (count, op.rows, op.inner), (count, op.inner, op.cols)
            yield (count, op.rows, op.cols), (count, op.cols, op.depth)


def table(rows: list[dict[str, Any]]) -> str:
    head = [
        "model",
        "batch",
        *(f"{form}, ms" for form in FORMS),
        "model.onnx / faster",
        "model.cpu.onnx / faster",
        "/ products",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        ratios = [row["of the faster"]["standard"], row["of the faster"]["cpu"], row["of the products"]]
        cells = [row["model"], str(row["batch"]), *(f"{row['ms'][form]:.2f}" for form in FORMS)]
        cells += [shown(Interval.from_json(value)) for value in ratios]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", ", ".join(machine().values())])


def shown(interval: Interval) -> str:
    return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"


if __name__ == "__main__":
    main()

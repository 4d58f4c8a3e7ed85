"""A fake device that anybody can use: `vitfit agent --measuring latency.measuring.fake_measuring`.

It reports times that it computes from the sizes of a network's products. Products of MLPs cost four times as much as
others. It is meant for trying out remote devices, and for tests: on such a device a search must remove neurons where it
would otherwise remove heads. Each network runs once, so that the sizes of its operators are known.
"""

import json
import math
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import onnxruntime
from vitfit.measuring import feeds

from latency.measuring.footprint import node_events

NS_PER_MAC, MLP_FACTOR, NS_PER_NODE = 0.02, 4.0, 100.0
NOISE = 0.002
RUNS = 4


def main() -> None:
    request = json.load(sys.stdin)
    draw = random.Random(request["seed"])
    times = [network_ms(Path(file), request["batch"]) for file in request["files"]]
    rounds = max(1, int(request["rounds"]))
    samples = [[[ms * draw.gauss(1, NOISE) for _ in range(RUNS)] for _ in range(rounds)] for ms in times]
    json.dump({"samples_ms": samples}, sys.stdout)


def network_ms(file: Path, batch: int = 1) -> float:
    """Milliseconds of one run of a network that `Network.export` wrote. Nodes of its MLPs have "mlp" in their names."""
    ns = 0.0
    for event in _events(file, batch):
        factor = MLP_FACTOR if "mlp" in event["name"] else 1.0
        ns += NS_PER_NODE + NS_PER_MAC * factor * _macs(event["args"])
    return ns / 1e6


def _events(file: Path, batch: int) -> list[dict[str, Any]]:
    """Name, operator and shapes of each node that ran."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.enable_profiling = 1, True
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # nodes keep their names
    options.add_session_config_entry("session.disable_prepacking", "1")  # packed weights have no shape
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = os.path.join(folder, "profile")
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        session.run(None, feeds(session, {"batch": batch, "seed": 0})[0])
        return node_events(session)


def _macs(node: dict[str, Any]) -> float:
    kind = node["op_name"]
    inputs: list[list[int]] = [next(iter(shape.values())) for shape in node["input_type_shape"]]
    outputs: list[list[int]] = [next(iter(shape.values())) for shape in node["output_type_shape"]]
    if kind == "Conv":
        return math.prod(outputs[0]) * math.prod(inputs[1][1:])
    if kind == "Gemm":
        return inputs[0][0] * math.prod(inputs[1])
    if kind == "MatMul":
        return math.prod(outputs[0]) * inputs[0][-1]
    if kind == "Attention":
        (images, tokens, width), columns, v = inputs[0], inputs[1][1], outputs[0][2]
        return images * tokens * (width * columns + tokens * ((columns - v) / 2 + v))
    return 0.0


if __name__ == "__main__":
    main()

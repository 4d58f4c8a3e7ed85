"""Claim: token reduction in a graph model lowers its latency, not only its MACs.

    python -m benchmarks.graph_tokens                1 to 2 minutes on one core

The models have random weights and run on one thread with batch 1. The script runs three files of each model in turn:
the original, one that drops tokens, and one that keeps a fused token for them (columns "package"). The pruned files
remove tokens in the blocks at a quarter, a half and three quarters of the depth. After these blocks, 0.7, 0.49 and 0.34
of the patches are left.
"""

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
import timm
import torch

from benchmarks.machine import machine
from models.data.preprocessing import Preprocessing
from models.graph.network import GraphNetwork
from models.structure import Plan, Reducer, Structure, TokenPlan, identity

NAMES = {
    "eva02_tiny_patch14_224": "rotary positions, gated MLP",
    "vit_small_patch16_dinov3": "rotary positions, registers",
    "beit_base_patch16_224": "tables of relative positions",
    "vit_base_patch16_siglip_224": "attention pooling",
}
STAYS = {0.25: 0.7, 0.5: 0.49, 0.75: 0.34}
"""Depth -> share of the patches that stays."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(NAMES))
    parser.add_argument("--runs", type=int, default=40)
    options = parser.parse_args()
    print("| model | has | ms | MACs, dropped | latency | MACs, package | latency |\n|---|---|---|---|---|---|---|")
    for name in options.names:
        print(row(name, options.runs), flush=True)
    print(", ".join(machine().values()))


def row(name: str, runs: int) -> str:
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    network = GraphNetwork(model, name, Preprocessing.of_model(model), 1000)
    whole, macs, sessions = identity(network.structure), {}, {}
    limit = onnxruntime.SessionOptions()
    limit.intra_op_num_threads = 1
    plans = {"whole": whole} | {reducer: reduced(whole, network.structure, reducer) for reducer in ("drop", "fuse")}
    with tempfile.TemporaryDirectory() as folder:
        for key, plan in plans.items():
            small = network.pruned(plan, None)
            small.export(Path(folder) / f"{key}.onnx", 1)
            macs[key] = small.structure.macs
            file = str(Path(folder) / f"{key}.onnx")
            sessions[key] = onnxruntime.InferenceSession(file, limit, providers=["CPUExecutionProvider"])
    image = {"images": np.random.default_rng(0).standard_normal((1, *network.structure.image)).astype(np.float32)}
    seconds: dict[str, list[float]] = {key: [] for key in sessions}
    for _ in range(runs):
        for key, session in sessions.items():
            start = time.perf_counter()
            session.run(None, image)
            seconds[key].append(time.perf_counter() - start)
    median = {key: float(np.median(found)) for key, found in seconds.items()}
    shares = (f"{macs[key] / macs['whole']:.2f} | {median[key] / median['whole']:.2f}" for key in ("drop", "fuse"))
    return f"| {name} | {NAMES.get(name, '')} | {1e3 * median['whole']:.1f} | {' | '.join(shares)} |"


def reduced(whole: Plan, structure: Structure, reducer: Reducer) -> Plan:
    blocks, patches = list(whole.blocks), structure.tokens - structure.prefix
    for depth, share in STAYS.items():
        place = int(depth * len(blocks))
        blocks[place] = dataclasses.replace(blocks[place], tokens=TokenPlan(round(share * patches), reducer))
    return dataclasses.replace(whole, blocks=tuple(blocks))


if __name__ == "__main__":
    main()

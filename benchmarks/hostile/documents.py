"""Hostile model.json documents and device tables: their values make no sense."""

import copy
import json
import random
from typing import Any

from benchmarks.hostile.checkpoints import MODEL, OPTIONS
from benchmarks.hostile.upload import Upload, damaged
from latency.devices.devices import PROFILES

JUNK: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 2**31, 2**63, 2**70, -(2**63), 10**400, 0.0, -0.5, 1e-320, 1e308, 7.5,
    "", "x", "\ud800", "\x00", "../../etc", "/etc/passwd", "x" * 5_000, "NaN",
    [], [[]], {}, {"a": 1}, [1, "a", None], [0] * 1_000, "2026-13-45", "1e999", "token", "avg",
)  # fmt: skip
MODEL_JSON: dict[str, Any] = {
    "name": MODEL,
    "options": OPTIONS,
    "pretrained": False,
    "classes": ["a", "b", "c"],
    "preprocessing": {
        "size": [3, 32, 32],
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "crop": 1.0,
        "interpolation": "bicubic",
    },
}
MORE_OPTIONS = (
    "class_token",
    "reg_tokens",
    "global_pool",
    "qkv_bias",
    "qk_norm",
    "init_values",
    "pre_norm",
    "fc_norm",
    "mlp_ratio",
    "no_embed_class",
    "dynamic_img_size",
    "final_norm",
    "window_size",
    "depths",
    "heads",
    "in_chans",
    "nonsense",
    "__class__",
)
NAMES = (
    MODEL,
    "pit_ti_224",
    "swin_tiny_patch4_window7_224",
    "pvt_v2_b0",
    "resnet18",
    "vit_nonsense",
    "hf-hub:a/b",
    "deit3_small_patch16_224",
)
RAW = (
    b"[" * 100_000,
    b'{"name":' * 5_000,
    b"\xff\xfe{}",
    b"",
    b"nul",
    b'{"name": NaN}',
    b"1" * 5_000,
    b'{"a": 1, "a": 2}',
    b'"\\ud800"',
)


def model_json(rng: random.Random) -> Upload:
    if rng.random() < 0.15:
        return Upload("model.json, no JSON", "/v1/models", rng.choice(RAW))
    document = copy.deepcopy(MODEL_JSON)
    document["name"] = rng.choice(NAMES) if rng.random() < 0.3 else MODEL
    if rng.random() < 0.6:
        key = rng.choice((*OPTIONS, *MORE_OPTIONS))
        document["options"][key] = rng.choice(JUNK)
        return Upload(f"model.json, option {key} = {str(document['options'][key])[:20]!r}", "/v1/models", document)
    return Upload(f"model.json, {_spoil(rng, document)}", "/v1/models", document)


def device(rng: random.Random) -> Upload:
    """Make a hostile device table from a profile that ships with vitfit, under the name of a user's device."""
    if rng.random() < 0.1:
        return Upload("device, no JSON", "/v1/devices", rng.choice(RAW))
    path = rng.choice(sorted(PROFILES.glob("*.json")))
    document = json.loads(path.read_text())
    document["name"] = rng.choice(("user-a", "user-b", f"user-{rng.randrange(10**9)}"))
    if rng.random() < 0.1:
        return Upload("device, damaged", "/v1/devices", damaged(rng, json.dumps(document).encode())[1])
    done = ", ".join(_spoil(rng, document) for _ in range(rng.choice((1, 1, 3))))
    return Upload(f"device {path.stem}, {done}", "/v1/devices", document)


def _spoil(rng: random.Random, document: dict[str, Any]) -> str:
    """Replace one value anywhere in the document by junk, or delete it. Return what was done."""
    place: Any = document
    while True:
        key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if isinstance(place[key], dict | list) and place[key] and rng.random() < 0.7:
            place = place[key]
            continue
        if rng.random() < 0.15 and len(place) > 1:
            del place[key]
            return f"{key} gone"
        place[key] = rng.choice(JUNK)
        return f"{key} = {str(place[key])[:20]!r}"

"""Command line of the package. The package's docstring describes it."""

import argparse
import datetime
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

import benchmarks.profiles as package
from latency.devices.profile_schema import UNITS, Check, MeasuredTable, Roofline, parse_profile
from latency.devices.setting import Setting
from latency.prediction.profile import ProfilePricer
from models.loading.load_model import untrained
from models.structure import Structure

Array = npt.NDArray[np.float64]
HERE = Path(__file__).parent
PROFILES = HERE.parents[1] / "latency" / "devices" / "profiles"
FITTED = {
    "deit_tiny_distilled_patch16_224",
    "deit_base_distilled_patch16_224",
    "vit_base_patch32_224",
    "vit_base_patch16_384",
    "swin_tiny_patch4_window7_224",
    "swin_base_patch4_window7_224",
}
COSTS = {"softmax": 2.0, "norm": 1.0, "activation": 3.0, "reduce": 1.0} | dict.fromkeys(("add", "scale", "pool"), 0.4)
COSTS |= {"move": 0.4, "gather": 0.8}
"""Costs in ns per value before the fit. The fit multiplies all of them by the same factor."""
START = {
    "peak_macs_per_s": (20e9, 3.0), "half_inner": (64.0, 0.7), "half_cols": (1.0, 1.0),
    "bandwidth_bytes_per_s": (8e9, 0.7), "costs": (1.0, 1.0), "overhead_s_per_operation": (5e-6, 1.0),
}  # fmt: skip
"""For each number: the value where the fit starts, and how far the fit may move from it (standard deviation of the
natural logarithm)."""
PRIOR_WEIGHT, ERROR_SCALE = 0.3, 1 / 30
LANES = {"fp32": 4, "int8": 16}
LEAST_UNCERTAINTY = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=package.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+")
    parser.add_argument("--output", type=Path, default=PROFILES)
    options = parser.parse_args()
    published = json.loads((HERE / "published.json").read_text())
    chosen = [core for core in published if not options.only or core["name"] in options.only]
    structures = {
        name: untrained(name).structure for name in sorted({n for core in chosen for n in core["latencies_ms"]})
    }
    options.output.mkdir(parents=True, exist_ok=True)
    print("| profile | checked models | median error | worst | of the fitted ones, worst |\n|---|---|---|---|---|")
    for core in chosen:
        document = calibrated(core, structures)
        profile = parse_profile(document)
        assert not isinstance(profile, MeasuredTable)
        checks = profile.checks
        (options.output / f"{core['name']}.json").write_text(json.dumps(document, indent=1) + "\n")
        errors = {fitted: [abs(c.error) for c in checks if c.fitted is fitted] for fitted in (True, False)}
        held = errors[False]
        print(
            f"| {core['name']} | {len(held)} | {100 * np.median(held):.1f} % | {100 * max(held):.1f} % "
            f"| {100 * max(errors[True]):.1f} % |",
            flush=True,
        )


def calibrated(core: dict[str, Any], structures: dict[str, Structure]) -> dict[str, Any]:
    """Return the profile of one core, with its checks."""
    latencies: dict[str, float] = core["latencies_ms"]
    fitted = [name for name in latencies if name in FITTED]
    shapes, truth = [structures[name] for name in fitted], np.asarray([latencies[name] for name in fitted])
    start, spread = (np.asarray(column) for column in zip(*START.values(), strict=True))

    def off(x: Array) -> Array:
        errors = np.log(prices(profile_of(core, np.exp(x)), shapes) / truth) / ERROR_SCALE
        return np.concatenate([errors, PRIOR_WEIGHT * (x - np.log(start)) / spread])

    numbers = np.exp(least_squares(off, np.log(start)).x)
    profile = profile_of(core, np.asarray([float(f"{number:.5g}") for number in numbers]))
    predicted = prices(profile, [structures[name] for name in latencies])
    checks = [
        Check(
            model=name,
            image_size=structures[name].image[1],
            published_ms=ms,
            predicted_ms=round(float(p), 3),
            fitted=name in fitted,
        )
        for (name, ms), p in zip(latencies.items(), predicted, strict=True)
    ]
    profile["checks"] = [check.model_dump() for check in checks]
    worst = max(abs(check.error) for check in checks if not check.fitted)
    profile["relative_uncertainty"] = math.ceil(1000 * max(worst, LEAST_UNCERTAINTY)) / 1000
    return profile


def profile_of(core: dict[str, Any], numbers: Array) -> dict[str, Any]:
    values = dict(zip(START, map(float, numbers), strict=True))
    costs = values.pop("costs")
    wanted = [name for name in UNITS if name in Roofline.model_fields]
    return {
        "name": core["name"],
        "model": "roofline",
        "precision": core["precision"],
        "threads": core["threads"],
        "description": f"{core['description']}, {core['runtime']}, {core['precision']}",
        "source": f"published latencies: {core['source']}; effective numbers fitted to half of them "
        "by python -m benchmarks.profiles, the others are checks",
        "date": datetime.date.today().isoformat(),
        "units": {name: UNITS[name] for name in wanted},
        "lanes": LANES[core["precision"]],
        "ns_per_value": {kind: ns * costs for kind, ns in COSTS.items()},
        "relative_uncertainty": LEAST_UNCERTAINTY,
        **values,
    }


def prices(profile: dict[str, Any], structures: list[Structure]) -> Array:
    pricer = ProfilePricer(profile["name"], Setting(profile["threads"], precision=profile["precision"]), profile)
    return pricer.price(structures).ms


if __name__ == "__main__":
    main()

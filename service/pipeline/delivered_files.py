"""Export the delivered network, and check that each file gives the network's outputs."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from models.errors import ParityFailure
from models.evaluation.parity import (
    ACCURACY,
    SAME_ANSWERS,
    ParityReport,
    check_parity,
    check_quantised,
    enough_same,
    same_clear_answers,
)
from models.export.onnx_export import compare_outputs, run_onnx
from models.export.onnx_store import copy_onnx
from models.export.torch_program import save_program
from models.loading.timm_target import to_timm
from models.networks.network import Network
from service.pipeline.delivery import Delivery

ORIGINAL = "original.onnx"
MEASURED = "model.cpu.onnx"
"""The form that runs fastest in ONNX Runtime on a CPU. `model.onnx` is the same network, with ONNX operators only."""
PARITY_IMAGES = 64
QUANTISED_IMAGES = 512
"""Number of test images on which an 8-bit file is compared with its fake quantisation."""
PLEASE_REPORT = "Nothing was delivered. This is a defect of vitfit or of the runtime: please report it."


def export_files(delivery: Delivery, folder: Path) -> ParityReport:
    """Write the files of the original and of the delivered network to `folder`, and check them.

    Raises: ParityFailure when a file disagrees with PyTorch, or with the file that was measured.
    """
    network, batch = delivery.network, delivery.pricing.report_place[1].batch
    # Copies of the measured files: a new export could differ from them.
    copy_onnx(delivery.verifier.file(network, delivery.name, batch), folder / MEASURED)
    copy_onnx(delivery.verifier.file(delivery.evaluation.network, "original", batch), folder / ORIGINAL)
    for other in {place[1].batch for place in delivery.pricing.measured_places} - {batch}:
        copy_onnx(delivery.verifier.file(network, delivery.name, other), folder / f"model.cpu.b{other}.onnx")
    network.export(folder / "model.onnx", batch)
    network.export(folder / "model.dynamic.onnx", None)
    save_file({k: v.contiguous() for k, v in network.module.state_dict().items()}, folder / "pruned.safetensors")
    if delivery.request.target is not None:
        loaded = to_timm(network, delivery.evaluation.network, delivery.request.target)
        save_file({k: v.contiguous() for k, v in loaded.state_dict().items()}, folder / "timm.safetensors")
    save_program(network.with_all_outputs, network.structure.image, folder / "program.pt2")
    write_json(folder / "plan.json", delivery.plan.to_json())
    parity = _parity(delivery, folder, batch)
    if not parity.passed:
        raise ParityFailure(
            f"The parity check of {MEASURED} failed. The outputs of ONNX Runtime and PyTorch differ by "
            f"{parity.free.max_relative:.2e} of the largest output (allowed: 1e-3)."
            f"{_disagreement(parity)} {PLEASE_REPORT}",
            parity=parity.to_json(),
        )
    return parity


def write_json(path: Path, value: Any) -> None:
    """Write JSON in the form that all delivered files have."""
    path.write_text(json.dumps(value, indent=1))


def _parity(delivery: Delivery, folder: Path, batch: int) -> ParityReport:
    """Compare the measured file with PyTorch, and the other files with the measured file.

    Returns: the comparison with PyTorch, which may have failed. Raises: ParityFailure when another file disagrees with
    the measured file.
    """
    network, data = delivery.network, delivery.evaluation.data
    images = data.take("test", PARITY_IMAGES, 0).images
    if network.rounding is not None:
        parity = check_quantised(network, folder / MEASURED, batch, data.take("test", QUANTISED_IMAGES, 0))
    else:
        parity = check_parity(network, folder / MEASURED, batch, images)
    answers = run_onnx(folder / MEASURED, images, batch)
    for name, together in (("model.onnx", batch), ("model.dynamic.onnx", 8 if network.rounding is None else batch)):
        others = run_onnx(folder / name, images, together)
        if not _agree(network, images, answers, others) and not parity.flipped_sets:
            raise ParityFailure(
                f"{name} and {MEASURED} give different outputs for the same {len(images)} images. {PLEASE_REPORT}",
                parity=compare_outputs(answers, others).to_json(),
            )
    return parity


def _agree(network: Network, images: Tensor, answers: Tensor, others: Tensor) -> bool:
    """Return whether the outputs of two files of the same network agree."""
    if network.rounding is None:
        return compare_outputs(answers, others).passed
    fp32 = network.exact().outputs(images)
    clear, same = same_clear_answers(answers, fp32, others, network.structure.classes)
    return enough_same(same, clear)


def _disagreement(parity: ParityReport) -> str:
    found = parity.quantised
    if found is None:
        return ""
    return (
        f" The quantised file and its fake quantisation: {found.same_answers:.3f} of {found.clear} clear answers are "
        f"the same (at least {SAME_ANSWERS} is required; with given tokens it is {found.forced_same_answers}). Their "
        f"accuracies are {found.accuracy_file} and {found.accuracy_emulated} (they may differ by at most {ACCURACY})."
    )

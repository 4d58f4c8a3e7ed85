"""Tests of 8-bit files.

They check what is quantised, that standard operators do it, and that the emulation in PyTorch gives the same outputs as
the file.
"""

import functools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from onnxruntime.quantization.quant_utils import quantize_data
from torch import Tensor

from models.data.dataset import Batch
from models.data.preprocessing import Preprocessing
from models.evaluation.kept_patches import kept_patches
from models.evaluation.metrics import correct
from models.evaluation.parity import check_quantised
from models.evaluation.sensitivity import quantisation_order
from models.export.inference_blocks import Form
from models.export.onnx_export import EXACT_PRODUCTS, run_onnx
from models.loading.load_model import open_model
from models.networks.torch_network import TorchNetwork
from models.quantization.fake_quantize import rounded_inputs, rounded_weight
from models.quantization.int8 import Quantiser, saturates
from models.structure import LAYERS, identity
from tests.support.families import family_plan, small_family
from tests.support.networks import VARIANTS, images_for, in_int8, random_plan, small_network

DIGITS = Path(__file__).parents[3] / "benchmarks" / "digits"


pytestmark = pytest.mark.usefixtures("one_thread")


def operators(file: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(file).graph.node)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / a.abs().max())


@pytest.fixture(scope="module")
def small() -> TorchNetwork:
    network = small_network()
    return network.pruned(in_int8(random_plan(network.structure, 1)), None)


def bits(network: TorchNetwork, weight_bits: int, together: int = 1) -> TorchNetwork:
    return network.with_quantiser(Quantiser(weight_bits, together))


@pytest.mark.parametrize("form", ["standard", "cpu"])
def test_a_file_has_every_linear_layer_of_the_blocks_in_8_bits_by_standard_operators(
    small: TorchNetwork, tmp_path: Path, form: Form
) -> None:
    small.export(tmp_path / "small.onnx", 1, form)
    model = onnx.load(tmp_path / "small.onnx")
    assert {node.domain for node in model.graph.node} == {""}
    assert operators(tmp_path / "small.onnx")["MatMulInteger"] == 6 * 4  # q, k, v, projection, fc1, fc2
    onnx.checker.check_model(model, full_check=True)
    assert Preprocessing.from_metadata({p.key: p.value for p in model.metadata_props}) == small.preprocessing


def test_layers_that_stay_exact_stay_in_fp32(tmp_path: Path) -> None:
    network = small_network()
    plan = in_int8(identity(network.structure), ("fc1",))
    network.pruned(plan, None).export(tmp_path / "file.onnx", 1)
    assert operators(tmp_path / "file.onnx")["MatMulInteger"] == 5 * 4
    weights = {tensor.name: tensor for tensor in onnx.load(tmp_path / "file.onnx").graph.initializer}
    assert any("fc1" in name and tensor.data_type == onnx.TensorProto.FLOAT for name, tensor in weights.items())
    counted = Counter(op.precision for op in plan.apply_to(network.structure).ops() if op.kind == "matmul")
    assert counted == {"int8": 3 * 4, "fp32": 4 + 1}  # qkv, proj and fc2 of four blocks; fc1s and the classifier


NETWORKS: dict[str, Callable[[], TorchNetwork]] = {
    **{name: functools.partial(small_network, **VARIANTS[name]) for name in VARIANTS},
    **{name: functools.partial(small_family, name) for name in ("pvt_v2", "pit", "swin, padded windows")},
}


@pytest.mark.parametrize(
    ("name", "weight_bits"), [*((name, 8) for name in NETWORKS), ("class token", 7), ("swin, padded windows", 7)]
)
def test_the_emulation_gives_what_the_file_gives(name: str, weight_bits: int, tmp_path: Path) -> None:
    """The test holds on every processor: 7 bits run with the default products, 8 bits run with exact products."""
    network = NETWORKS[name]()
    structure = network.structure
    plan = random_plan(structure, 2) if name in VARIANTS else family_plan(structure, 0)
    small = bits(network.pruned(in_int8(plan), None), weight_bits)
    images = images_for(small, 24)
    small.export(tmp_path / "file.onnx", 1)
    file, emulated, exact = (
        run_onnx(tmp_path / "file.onnx", images, 1, exact_products=weight_bits == 8),
        small.outputs(images),
        small.exact().outputs(images),
    )
    assert operators(tmp_path / "file.onnx")["MatMulInteger"] >= 4 * len(plan.blocks)
    apart, lost = (emulated - file).abs().mean(), (exact - file).abs().mean()
    assert apart < 0.3 * lost  # at most, a value falls on the other side of a step of 256
    assert torch.equal(emulated.argmax(1), file.argmax(1))


def test_images_of_one_run_share_the_ranges_of_their_activations(tmp_path: Path) -> None:
    network = small_network()
    small = bits(network.pruned(in_int8(identity(network.structure)), None), 8)
    images = images_for(small, 8) * torch.logspace(0, 1, 8).reshape(-1, 1, 1, 1)  # ranges that differ
    small.export(tmp_path / "pairs.onnx", 4)
    file = run_onnx(tmp_path / "pairs.onnx", images, 4, exact_products=True)
    alone, runs = small.outputs(images), bits(small, 8, together=4).outputs(images)
    assert (runs - file).abs().mean() < 0.2 * (alone - file).abs().mean()


def test_weights_are_rounded_as_the_runtimes_quantiser_rounds_them() -> None:
    weight = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    weight[1] = 0
    for bits in (7, 8):
        for row, rounded in zip(weight, rounded_weight(weight, bits), strict=True):
            zero, scale, values = quantize_data(row.numpy(), onnx.TensorProto.INT8, True, reduce_range=bits == 7)
            assert zero == 0 and abs(values).max() <= (127 if bits == 8 else 64)
            assert np.allclose(rounded.numpy(), values * scale, atol=1e-6)


def test_rounded_inputs_are_256_values_that_hold_zero() -> None:
    x = torch.rand(2, 500, 4, generator=torch.Generator().manual_seed(0)) + torch.tensor([1.0, -3.0]).reshape(2, 1, 1)
    rounded = rounded_inputs(x, 2)
    for before, after in zip(x, rounded, strict=True):
        assert (before - after).abs().max() <= max(float(before.max()), -float(before.min())) / 255 * 0.51
    assert rounded_inputs(torch.zeros(2, 3), 2).abs().max() == 0


def test_seven_bits_where_products_saturate(tmp_path: Path) -> None:
    network = small_network()
    small = bits(network.pruned(in_int8(identity(network.structure)), None), 7)
    small.export(tmp_path / "seven.onnx", 1)
    weights = [onnx.numpy_helper.to_array(t) for t in onnx.load(tmp_path / "seven.onnx").graph.initializer]
    largest = [int(abs(w.astype(int)).max()) for w in weights if w.dtype == np.int8 and w.ndim == 2]
    assert len(largest) == 6 * 4 and set(largest) == {64}
    images = images_for(small, 16)
    file = run_onnx(tmp_path / "seven.onnx", images, 1)
    apart, lost = ((one - file).abs().mean(1) for one in (small.outputs(images), small.exact().outputs(images)))
    assert apart.median() < 0.01 * lost.median()  # equal, except where a value rounds the other way
    assert apart.mean() < 0.3 * lost.mean()


def product(a: np.ndarray, b: np.ndarray, exact: bool) -> np.ndarray:
    """Return a (rows, inner) uint8 times b (inner, columns) int8, computed by ONNX Runtime.

    exact: use exact products instead of the runtime's defaults.
    """
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "b"], ["y"])],
        "product",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, a.shape)],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [len(a), b.shape[1]])],
        [onnx.numpy_helper.from_array(b, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    options = onnxruntime.SessionOptions()
    if exact:
        options.add_session_config_entry(EXACT_PRODUCTS, "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {"a": a})[0]
    return found


def saturated(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the same product as a processor that adds pairs of products in 16 bits (x86's PMADDUBSW)."""
    pairs = a.astype(int).reshape(len(a), -1, 2, 1) * b.astype(int).reshape(1, -1, 2, b.shape[1])
    found: np.ndarray = pairs.sum(2).clip(-(2**15), 2**15 - 1).sum(1)
    return found


@pytest.mark.parametrize("most", [64, 127])
def test_products_are_exact_or_saturate_by_pairs_and_never_with_seven_bits(most: int) -> None:
    draw = np.random.default_rng(0)
    a = draw.integers(128, 256, (8, 64)).astype(np.uint8)
    b = draw.integers(-most, most + 1, (64, 16)).astype(np.int8)
    whole, lost = a.astype(int) @ b.astype(int), saturated(a, b)
    assert (whole == lost).all() == (most == 64)
    assert (product(a, b, exact=True) == whole).all()
    assert (product(a, b, exact=False) == (lost if saturates() else whole)).all()


def test_a_processor_with_instructions_for_8_bit_products_does_not_saturate() -> None:
    assert not (saturates() and "vnni" in Path("/proc/cpuinfo").read_text())
    assert Quantiser.here().weight_bits == (7 if saturates() else 8)


def test_the_file_is_as_large_as_the_structure_says(tmp_path: Path) -> None:
    network = small_network(embed_dim=192, depth=6)
    small = network.pruned(in_int8(identity(network.structure), ("fc2",)), None)
    small.export(tmp_path / "int8.onnx", 1)
    small.exact().export(tmp_path / "fp32.onnx", 1)
    saved = (tmp_path / "fp32.onnx").stat().st_size - (tmp_path / "int8.onnx").stat().st_size
    expected = network.structure.weight_bytes - small.structure.weight_bytes
    assert network.structure.weight_bytes == 4 * network.structure.params
    assert saved == pytest.approx(expected, rel=0.05)


def test_the_order_puts_what_suffers_most_last() -> None:
    """One layer has a weight so large that the other weights of its row round to zero."""
    network = small_network(depth=3)
    mlp: Any = network.blocks()[1].get_submodule("mlp")
    with torch.no_grad():
        mlp.fc2.weight[:, 0] = 50.0
        mlp.fc1.weight[0] = 0.0
        mlp.fc1.bias[0] = 0.0  # the input of that weight is always 0
    order = quantisation_order(network, images_for(network, 16), lambda: None)
    assert sorted(order) == sorted((block, layer) for block in range(3) for layer in LAYERS)
    assert order[-1] == (1, "fc2")


def test_the_emulation_leaves_the_network_as_it_was_and_its_choices_of_tokens_are_seen() -> None:
    network = small_network()
    small = network.pruned(in_int8(random_plan(network.structure, 1)), None)
    before = {name: value.clone() for name, value in small.module.state_dict().items()}
    parameters = list(small.module.parameters())
    images = images_for(small, 3)
    first = small.outputs(images)
    assert all(torch.equal(value, before[name]) for name, value in small.module.state_dict().items())
    assert all(now is then for now, then in zip(small.module.parameters(), parameters, strict=True))
    assert torch.equal(small.outputs(images), first)
    assert [found.block for found in kept_patches(small, images)] == [1, 2]


def test_exact_is_the_same_network_in_fp32(small: TorchNetwork) -> None:
    network = small_network()
    same = network.pruned(random_plan(network.structure, 1), None)
    exact = small.exact()
    images = images_for(small, 4)
    assert exact.plan == same.plan and exact.structure == same.structure
    assert torch.equal(exact.outputs(images), same.outputs(images))
    assert relative(exact.outputs(images), small.outputs(images)) > 1e-3


def test_on_the_digits_the_emulation_is_within_a_third_of_a_point_of_the_file(tmp_path: Path) -> None:
    network = open_model(DIGITS)
    with np.load(DIGITS / "digits.npz", allow_pickle=False) as data:
        rows = data["split"] == "test"
        images, labels = network.preprocessing.apply(data["images"][rows]), torch.from_numpy(data["labels"][rows])
    small = network.pruned(in_int8(identity(network.structure)), None)  # in the form for this machine
    small.export(tmp_path / "digits.onnx", 1)
    file, emulated = run_onnx(tmp_path / "digits.onnx", images, 1), small.outputs(images)
    assert abs(correct(file, labels) - correct(emulated, labels)) <= 0.003 * len(images)
    assert correct(network.outputs(images), labels) - correct(file, labels) <= 0.01 * len(images)


def test_the_quantised_file_is_checked_with_its_own_tokens_and_with_given_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = small_network()
    small = network.pruned(in_int8(random_plan(network.structure, 7)), None).with_quantiser(Quantiser.here(together=2))
    small.export(tmp_path / "file.onnx", 2)
    data = Batch(images_for(small, 33), None, torch.arange(33))
    found = check_quantised(small, tmp_path / "file.onnx", 2, data).quantised
    assert found is not None and found.forced_same_answers is not None and found.flipped_sets is not None
    assert found.passed and found.forced_same_answers >= 0.97 and found.flipped_sets <= 8
    monkeypatch.setattr(
        "models.quantization.fake_quantize.rounded_weight", lambda weight, _: weight.round()
    )  # the quantiser does not round so
    wrong = check_quantised(small, tmp_path / "file.onnx", 2, data).quantised
    assert wrong is not None and wrong.flipped_sets is not None and wrong.flipped_sets > found.flipped_sets
    dense = network.pruned(in_int8(identity(network.structure)), None)
    dense.export(tmp_path / "dense.onnx", 1)
    whole = check_quantised(dense, tmp_path / "dense.onnx", 1, data).quantised
    assert whole is not None and whole.forced_same_answers is None and whole.flipped_sets is None

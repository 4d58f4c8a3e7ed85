"""Tests of rotated bases in networks that go by their graph: q/k and v dims inside heads, and the embedding width."""

import copy
import dataclasses
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
from torch import Tensor
from torch.fx import GraphModule

from models.data.preprocessing import Preprocessing
from models.errors import InvalidRequest
from models.graph.frequency_factors import multiply_frequencies
from models.graph.head_maps import map_dims
from models.graph.network import GraphNetwork
from models.graph.rotation import turn
from models.graph.tracing.atoms import Atom
from models.graph.tracing.inner_dims import InnerDims
from models.graph.watching import Values, Watcher
from models.statistics.statistics import Statistics
from models.structure import BlockPlan, HeadPlan, Plan, RotatedAxis, TokenPlan, identity
from tests.support.counted import differs

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES: dict[str, tuple[RotatedAxis, ...]] = {
    "eva02_tiny_patch14_224": ("qk", "v", "embed"),  # rotary positions
    "vit_small_patch16_dinov3": ("qk", "v", "embed"),
    "beit_base_patch16_224": ("qk", "v", "embed"),
    "vit_relpos_small_patch16_224": ("qk", "v", "embed"),
}
SMALL: dict[str, Any] = {"num_classes": 3, "depth": 2, "embed_dim": 48, "num_heads": 3}


def network_of(name: str) -> GraphNetwork:
    """Return a small network in float64, with weights that are large enough to make every part matter."""
    torch.manual_seed(0)
    module = timm.create_model(name, img_size=28 if "14" in name else 32, **SMALL).eval()
    preprocessing = Preprocessing.of_model(module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return GraphNetwork(module, name, preprocessing, 3)


def images(network: GraphNetwork, count: int = 24) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(count, *network.structure.image, generator=draw)


def rotated(network: GraphNetwork) -> GraphNetwork:
    bases = network.bases(images(network))
    assert bases is not None
    return network.rotated(bases)


def cut(network: GraphNetwork, qk: int | None, v: int | None) -> Plan:
    """Return a plan that keeps the leading dims of every head. None: all of them."""
    whole = identity(network.structure)

    def head(one: HeadPlan) -> HeadPlan:
        return HeadPlan(one.qk[:qk], one.v[:v])

    blocks = tuple(dataclasses.replace(b, heads=tuple(map(head, b.heads))) for b in whole.blocks)
    return dataclasses.replace(whole, blocks=blocks, rotated=network.rotation.axes if network.rotation else ())


@pytest.fixture
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", list(NAMES))
def test_at_full_rank_it_is_the_same_network(name: str) -> None:
    network = network_of(name)
    assert network.rotatable == NAMES[name]
    found = rotated(network)
    torch.testing.assert_close(found.outputs(images(network)), network.outputs(images(network)), rtol=1e-9, atol=1e-9)
    assert found.structure.macs == network.structure.macs
    assert found.structure.params < network.structure.params  # the biases of norms and the layer scales are folded
    assert differs(found, found.module) == []


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", list(NAMES))
def test_a_cut_is_the_rotated_network_with_its_last_dims_silent(name: str) -> None:
    """Slicing equals zeros: whatever the weights of the other dims are, nothing of them is left."""
    found = rotated(network_of(name))
    small = found.pruned(cut(found, 5, 6), None)
    for i, (block, inside) in enumerate(zip(found._blocks, found._inside, strict=True)):
        assert inside.v is not None and inside.qk is not None and found.rotation is not None
        frequencies = found.rotation.blocks[i].frequencies
        if frequencies is None:
            for node in (inside.qk.makers[0].args[1], *inside.qk.biases[0]):
                silence(found, block.heads.atom, inside.qk, node, 5)
        else:  # the first five frequencies have their factors, and all others have the factor 0
            factors = torch.zeros(block.heads.atom.size, inside.qk.atom.size, 2)
            factors[:, frequencies.order[:5]] = frequencies.of_rank(5)
            multiply_frequencies(found._traced, block, inside.qk, [factors], kept={})
        silence(found, block.heads.atom, inside.v, block.heads.reader.args[1], 6)
    torch.testing.assert_close(small.outputs(images(found)), found.outputs(images(found)), rtol=1e-9, atol=1e-9)
    assert differs(small, small.module) == []


def silence(network: GraphNetwork, heads: Atom, dims: InnerDims, weight: object, kept: int) -> None:
    """Set the weights of all dims but the first ones to zero, in place."""
    mask = torch.diag((torch.arange(dims.atom.size) < kept).double()).expand(heads.size, -1, -1)
    map_dims(network._traced, weight, heads, dims.atoms, maps=mask)


@pytest.mark.usefixtures("float64")
def test_planted_dims_are_found() -> None:
    """Values that lie in three directions of each head: three dims are enough, whatever basis they lie in."""
    network = network_of("beit_base_patch16_224")
    parted = network._parted
    for block, inside in zip(parted.blocks, parted.inside, strict=True):
        assert inside.v is not None and inside.qk is not None
        for dims, maker in ((inside.v, inside.v.makers[0]), (inside.qk, inside.qk.makers[1])):
            size = dims.atom.size
            planted = torch.randn(block.heads.atom.size, size, 3) @ torch.randn(block.heads.atom.size, 3, size)
            for node in (maker.args[1], *dims.biases[dims.makers.index(maker)]):
                map_dims(parted.traced, node, block.heads.atom, dims.atoms, maps=planted)
    found = rotated(network)
    whole = found.outputs(images(found))
    small = found.pruned(cut(found, 3, 3), found.statistics(images(found)))
    torch.testing.assert_close(small.outputs(images(found)), whole, rtol=1e-7, atol=1e-7)
    less = found.pruned(cut(found, 2, 2), found.statistics(images(found)))
    assert float((less.outputs(images(found)) - whole).abs().max()) > 1e-4


def narrow(network: GraphNetwork, width: int) -> Plan:
    """Return a plan that keeps the first dims of the stream, and everything else."""
    whole = cut(network, None, None)
    return dataclasses.replace(whole, embed=whole.embed[:width])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", list(NAMES))
def test_a_stream_of_few_directions_is_found(name: str) -> None:
    """All that is written to the stream lies in six directions: a width of seven computes the same."""
    network = network_of(name)
    parted = network._parted
    assert parted.stream is not None
    size = parted.stream.atom.size
    directions = torch.linalg.qr(torch.randn(size, 6)).Q
    readers = {reader.args[1] for some in parted.stream.norms.values() for reader in some}
    for table in (table for table in parted.stream.tables if table not in readers):
        turn(parted.traced, parted.stream, table, directions @ directions.T)
    found = rotated(network)
    whole = found.outputs(images(found))
    small = found.pruned(narrow(found, 7), found.statistics(images(found)))
    torch.testing.assert_close(small.outputs(images(found)), whole, rtol=1e-7, atol=1e-7)
    assert differs(small, small.module) == [] and small.structure.width == 7
    less = found.pruned(narrow(found, 5), None)
    assert float((less.outputs(images(found)) - whole).abs().max()) > 1e-4


@pytest.mark.usefixtures("float64")
def test_the_first_dims_of_the_stream_carry_most() -> None:
    network = network_of("beit_base_patch16_224")
    found, dense = rotated(network), network.outputs(images(network))

    def error(width: int) -> float:
        return float((found.pruned(narrow(found, width), None).outputs(images(network)) - dense).square().mean())

    assert error(48) < 1e-15 < error(44) < error(32) < error(16)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", list(NAMES))
def test_recovery_fits_the_layers_that_read_a_narrower_stream(name: str) -> None:
    """What the first layer gives is nearer to what it gave, because its weights know which dims it reads."""
    found = rotated(network_of(name))
    seen = images(found, 96)

    def first(width: int, statistics: Statistics | None) -> Tensor:
        small, given = found.pruned(narrow(found, width), statistics), list[Tensor]()
        layer = small.module.get_submodule(small._placed[found._blocks[0].heads.makers[0].name])
        layer.register_forward_hook(lambda _module, _inputs, outputs: given.append(outputs))
        small.outputs(seen, batch=96)
        return given[0]

    dense, fitted = first(48, None), found.statistics(seen, found.input_kinds)
    errors = [float((first(24, one) - dense).square().mean()) for one in (None, fitted)]
    assert errors[1] < 0.97 * errors[0]


def test_why_a_width_is_fixed_is_said() -> None:
    """The features of a model without a classifier are the stream itself."""
    module = timm.create_model("eva02_tiny_patch14_224", img_size=28, depth=2, num_classes=0).eval()
    network = GraphNetwork(module, "eva", Preprocessing.of_model(module), 0)
    assert "embed" not in network.rotatable
    assert network.not_rotated["embed"].startswith("the residual stream is an output")


def test_a_narrow_network_can_be_sent_to_another_process() -> None:
    found = rotated(network_of("vit_small_patch16_dinov3"))
    again = pickle.loads(pickle.dumps(found))
    plan = narrow(found, 24)
    sent, here = (one.pruned(plan, None).outputs(images(found)) for one in (again, found))
    assert torch.equal(sent, here)


def test_what_has_no_free_basis_is_left_alone() -> None:
    """LeViT puts an activation between its values and the projection."""
    module = timm.create_model("levit_128s", num_classes=3).eval()
    network = GraphNetwork(module, "levit_128s", Preprocessing.of_model(module), 3)
    assert network.rotatable == () and network.bases(images(network, 2)) is None


def test_heads_that_keep_different_dims_are_refused() -> None:
    found = rotated(network_of("beit_base_patch16_224"))
    plan = cut(found, None, 6)
    first, *others = plan.blocks[0].heads
    moved = HeadPlan(first.qk, tuple(i + 1 for i in first.v))
    block: BlockPlan = dataclasses.replace(plan.blocks[0], heads=(moved, *others))
    with pytest.raises(InvalidRequest, match="different v dims"):
        found.pruned(dataclasses.replace(plan, blocks=(block, *plan.blocks[1:])), None)


def test_dims_of_a_fixed_kind_are_refused() -> None:
    """Norms on q and k work in their own basis."""
    torch.manual_seed(0)
    module = timm.create_model("eva02_tiny_patch14_224", img_size=28, **SMALL, qk_norm=True).eval()
    network = GraphNetwork(module, "eva", Preprocessing.of_model(module), 3)
    assert network.rotatable == ("v", "embed")
    found = rotated(network)
    with pytest.raises(InvalidRequest, match="all 16 q/k dims"):
        found.pruned(cut(found, 5, None), None)


ROTARY = ("eva02_tiny_patch14_224", "vit_small_patch16_dinov3")


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ROTARY)
def test_frequencies_that_say_nothing_go_first(name: str) -> None:
    """q is 0 in five of eight frequencies: three are enough, whichever they are."""
    network = network_of(name)
    parted = network._parted
    silent = ([0, 2, 3, 5, 6], [1, 2, 4, 5, 7])
    for block, inside, gone in zip(parted.blocks, parted.inside, silent, strict=True):
        assert inside.qk is not None
        factors = torch.stack([torch.ones(3, 8), torch.zeros(3, 8)], -1)
        factors[:, gone] = 0
        multiply_frequencies(parted.traced, block, inside.qk, [factors], kept={})
    found = rotated(network)
    assert found.structure.blocks[0].attention.qk_dim == 8  # type: ignore[union-attr]  # frequencies of two dims
    whole = found.outputs(images(found))
    small = found.pruned(cut(found, 3, None), None)
    torch.testing.assert_close(small.outputs(images(found)), whole, rtol=1e-9, atol=1e-9)
    assert differs(small, small.module) == []
    less = found.pruned(cut(found, 2, None), None)
    assert float((less.outputs(images(found)) - whole).abs().max()) > 1e-4


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ROTARY)
def test_factors_make_up_for_frequencies_that_go(name: str) -> None:
    """With its factors, the attention of the first block is nearer to what it was."""
    found = rotated(network_of(name))
    seen, basis = images(found, 64), found.rotation
    assert basis is not None
    blocks = []
    for one in basis.blocks:
        assert one.frequencies is not None
        ones = torch.tensor([1.0, 0.0]).expand_as(one.frequencies.factors)
        blocks.append(dataclasses.replace(one, frequencies=dataclasses.replace(one.frequencies, factors=ones)))
    without = copy.copy(found)
    without.rotation = dataclasses.replace(basis, blocks=tuple(blocks))
    dense = first_logits(found.module, seen)
    errors = [
        float((first_logits(one.pruned(cut(found, 3, None), None).module, seen) - dense).square().mean())
        for one in (found, without)
    ]
    assert errors[0] < errors[1]


def first_logits(module: torch.nn.Module, seen: Tensor) -> Tensor:
    """Return q . k of the first attention of a graph without the mean over the keys, which softmax ignores."""
    assert isinstance(module, GraphModule)
    mixture = next(node for node in module.graph.nodes if "scaled_dot_product" in str(node.target))
    found: list[Tensor] = []

    def keep(values: Values) -> None:
        q, k = (values[node] for node in mixture.args[:2])
        found.append(q @ (k - k.mean(-2, keepdim=True)).mT)

    Watcher(module, {mixture: keep}).run(seen)
    return found[0].detach()


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ROTARY)
def test_tokens_take_their_angles_with_them(name: str) -> None:
    """The rotated network without some tokens is the original without the same tokens."""
    network = network_of(name)
    found, patches = rotated(network), network.structure.tokens - network.structure.prefix
    outputs = []
    for one in (network, found):
        plan = cut(one, None, None)
        block = dataclasses.replace(plan.blocks[0], tokens=TokenPlan(patches - 1, "drop"))
        small = one.pruned(dataclasses.replace(plan, blocks=(block, *plan.blocks[1:])), None)
        outputs.append(small.outputs(images(network)))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-9, atol=1e-9)
    assert float((outputs[0] - network.outputs(images(network))).abs().max()) > 1e-3


def test_another_process_cuts_the_same() -> None:
    found = rotated(network_of("vit_small_patch16_dinov3"))
    again = pickle.loads(pickle.dumps(found))
    plan, statistics = cut(found, None, 6), found.statistics(images(found))
    small, other = (one.pruned(plan, statistics).outputs(images(found)) for one in (found, again))
    assert torch.equal(small, other)

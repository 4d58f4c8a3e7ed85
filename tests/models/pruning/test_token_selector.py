"""Tests of token selectors: what they compute, what they cost, and that masking and slicing agree."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from models.errors import InvalidRequest
from models.evaluation.parity import check_parity
from models.export.onnx_export import run_onnx
from models.networks.torch_network import TorchNetwork
from models.pruning import token_reducers as tokens
from models.pruning.token_selector import TokenSelector
from models.structure import Plan, Reducer, ReductionPoint, TokenPlan, identity
from models.training.masked_blocks import choose_best, mask_tokens, unmask_tokens
from tests.models.structure.test_structure import counted_macs, counted_params
from tests.support.networks import VARIANTS, images_for, random_plan, small_network


def selecting(
    network: TorchNetwork,
    reducer: Reducer = "weighted",
    keeps: tuple[float, ...] = (0.6, 0.25),
    at: ReductionPoint = "start",
    base: Plan | None = None,
) -> TorchNetwork:
    """Return a network with selectors before blocks 1 and 2. Their weights are large enough to distinguish tokens."""
    plan = base or identity(network.structure)
    blocks = list(plan.blocks)
    for place, keep in enumerate(keeps, start=1):
        count = round(keep * (network.structure.tokens - network.structure.prefix))
        blocks[place] = dataclasses.replace(blocks[place], tokens=TokenPlan(count, reducer, at, "selector"))
    small = network.pruned(dataclasses.replace(plan, blocks=tuple(blocks)), None)
    with torch.no_grad():
        for reduction in small.reductions():
            assert reduction.selector is not None
            for parameter in reduction.selector.parameters():
                parameter.mul_(2)
    return small


def test_the_score_of_a_token_by_hand() -> None:
    """Compute the score of each token of one image, head by head, as the paper does.

    The first product is over [local, global].
    """
    selector = TokenSelector(width=24, heads=3, seed=1)
    x = torch.randn(1, 5, 24)
    heads = x[0].split(8, dim=-1)
    local = [functional.gelu(selector.feature(selector.norm(head))) for head in heads]
    wide = torch.cat([selector.local.weight, selector.everywhere.weight], dim=1)
    for token in range(5):
        votes = []
        for feature in local:
            joined = torch.cat([feature[token], feature.mean(0)])
            hidden = functional.gelu(functional.linear(joined, wide, selector.local.bias))
            votes.append(torch.softmax(selector.vote(functional.gelu(selector.middle(hidden))), 0)[0])
        means = torch.stack([head[token].mean() for head in heads])
        weights = torch.sigmoid(selector.weigh(functional.gelu(selector.squeeze(means))))
        expected = (weights * torch.stack(votes)).sum() / weights.sum()
        torch.testing.assert_close(selector(x)[0, token], expected)


def test_absent_tokens_do_not_change_the_scores_of_those_that_are_there() -> None:
    selector, x = TokenSelector(24, 3, seed=1), torch.randn(2, 6, 24)
    present = torch.tensor([[1.0, 1, 0, 1, 0, 1], [1, 0, 1, 1, 1, 0]])
    masked = selector(x, present)
    for image in range(2):
        rows = present[image].bool()
        torch.testing.assert_close(masked[image, rows], selector(x[image : image + 1, rows])[0])


def test_the_seed_decides_the_initial_weights() -> None:
    torch.manual_seed(1)
    first = TokenSelector(24, 3, seed=1).feature.weight
    torch.manual_seed(2)
    assert TokenSelector(24, 3, seed=1).feature.weight.equal(first)
    assert not TokenSelector(24, 3, seed=2).feature.weight.equal(first)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("embed", [False, True])
@pytest.mark.parametrize("reducer", ["weighted", "fuse", "drop"])
def test_macs_and_parameters_with_selectors(variant: str, embed: bool, reducer: Reducer) -> None:
    network = small_network(**VARIANTS[variant])
    small = selecting(network, reducer, base=random_plan(network.structure, 3, embed=embed, tokens=False))
    assert small.structure.macs == counted_macs(small.module, small.structure)
    assert small.structure.params == counted_params(small.module)


def test_a_width_that_the_heads_do_not_divide_gets_fewer_heads() -> None:
    network = small_network()
    whole = identity(network.structure)
    small = selecting(network, base=dataclasses.replace(whole, embed=tuple(range(44))))
    selector = small.reductions()[0].selector
    assert selector is not None and selector.heads == 2
    assert small.structure.macs == counted_macs(small.module, small.structure)


def test_the_best_tokens_by_the_selector_stay_and_the_others_leave_as_their_weighted_mean() -> None:
    network = small_network(depth=2)
    small, images = selecting(network, keeps=(6 / 36,)), images_for(network, 2)
    reduction = small.reductions()[0]
    seen: dict[str, Tensor] = {}
    reduction.register_forward_hook(lambda _m, inputs, output: seen.update(x=inputs[0], out=output))
    with reduction.recorded() as chosen:
        small.outputs(images)
    with torch.inference_mode():
        assert reduction.selector is not None
        scores = reduction.selector(seen["x"][:, 1:])
    for image in range(2):
        order = scores[image].argsort(descending=True)
        assert sorted(chosen[0][image].tolist()) == sorted(order[:6].tolist())
        weights, gone = scores[image, order[6:]], seen["x"][image, 1:][order[6:]]
        package = (weights[:, None] * gone).sum(0) / weights.sum()
        torch.testing.assert_close(seen["out"][image, -1], package, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(seen["out"][image, 1:7], seen["x"][image, 1:][order[:6]])


@pytest.mark.parametrize("tiny", [1e-7, 0.0])
def test_a_package_of_tokens_with_tiny_scores_is_still_their_mean(tiny: float) -> None:
    """Trained selectors saturate: the removed tokens have tiny scores beside the kept tokens.

    Among the removed tokens, the scores still differ.
    """
    x, kept = torch.randn(1, 9, 4), torch.tensor([[0, 1, 2, 3]])
    weights = torch.tensor([[1.0, 1, 1, 1, tiny, tiny, tiny, tiny]])
    package = tokens.fuse(x, kept, prefix=1, patches=8, packaged=0, weights=weights)[:, -1]
    torch.testing.assert_close(package, x[:, 5:].mean(1))


@pytest.mark.parametrize(
    "variant", ["class token", "average pooling", "average pooling, norm before", "registers", "oblong"]
)
@pytest.mark.parametrize("reducer", ["weighted", "fuse", "drop"])
@pytest.mark.parametrize("at", ["start", "middle"])
def test_masking_and_slicing_agree(variant: str, reducer: Reducer, at: ReductionPoint) -> None:
    """Compare the masked network, in which selectors are trained, with the sliced network that a job delivers.

    The masks keep the best tokens. The arithmetic is float64.
    """
    network = small_network(**VARIANTS[variant])
    small, images = selecting(network, reducer, at=at), images_for(network, 3).double()
    module, kept = small.module.double(), [[float(r.kept)] * 3 for r in small.reductions()]
    with torch.no_grad():
        sliced = module(images)
        if reducer == "drop" and "pooling" in variant:
            with pytest.raises(InvalidRequest, match="pool"):
                mask_tokens(small, choose_best)
            return
        masked = mask_tokens(small, choose_best)
        assert (module(images) - sliced).abs().max() < 1e-9
        assert masked.masks is not None
        assert [stage.sum(1).tolist() for stage in masked.masks.stages] == kept
        unmask_tokens(small)
        assert (module(images) - sliced).abs().max() == 0


def test_masking_needs_selectors() -> None:
    network = small_network()
    small = network.pruned(random_plan(network.structure, 1), None)
    with pytest.raises(InvalidRequest, match="selector"):
        mask_tokens(small, choose_best)


def test_a_selector_needs_no_attention_before_it() -> None:
    """The first block may begin with a selector, and then nothing records the attention of this block."""
    network = small_network(depth=2)
    whole = identity(network.structure)
    first = dataclasses.replace(whole.blocks[0], tokens=TokenPlan(5, "weighted", "start", "selector"))
    small = network.pruned(Plan(whole.embed, (first, whole.blocks[1])), None)
    assert all(block.watch is None for block in small.pruned_blocks())
    assert small.structure.blocks[0].tokens_attended == 7
    with pytest.raises(InvalidRequest, match="no attention before"):
        attention = dataclasses.replace(first, tokens=TokenPlan(5, "weighted", "start", "attention"))
        network.pruned(Plan(whole.embed, (attention, whole.blocks[1])), None)


@pytest.mark.parametrize("variant", ["class token", "average pooling"])
@pytest.mark.parametrize("batch", [1, 4])
def test_the_exported_file_agrees_with_selectors(variant: str, batch: int, tmp_path: Path) -> None:
    network = small_network(**VARIANTS[variant])
    small, images = selecting(network), images_for(network, 8)
    small.export(tmp_path / "m.onnx", batch)
    report = check_parity(small, tmp_path / "m.onnx", batch, images)
    assert (
        report.passed and report.forced is not None and report.forced.max_relative < 1e-4 and report.flipped_sets == 0
    )
    small.export(tmp_path / "free.onnx", None)
    torch.testing.assert_close(run_onnx(tmp_path / "free.onnx", images, 5), small.outputs(images), rtol=1e-3, atol=1e-3)

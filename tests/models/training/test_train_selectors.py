"""Tests of the training of selectors.

Trained selectors find the tokens that matter. The training resumes after an interruption, and its loss is that of the
paper.
"""

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from models.data.dataset import Batch
from models.errors import InvalidRequest
from models.networks.torch_network import TorchNetwork
from models.training.finetune import Recipe
from models.training.masked_blocks import Masks, choose_best, choose_by_gumbel, mask_tokens
from models.training.train_selectors import answer_loss, feature_loss, first_in_use, keep_loss, train_selectors
from tests.models.training.test_finetune import Diary, weights
from tests.support.networks import images_for, random_plan, small_network
from tests.support.planted_tokens import PATCHES, PLANTED, choosing, chosen_tokens, planted_images, planted_network

RECIPE = Recipe(epochs=3, learning_rate=1e-2, batch=16, distill=1.0, seed=5)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def teacher() -> TorchNetwork:
    return small_network(depth=3, img_size=32)


@pytest.fixture(scope="module")
def student(teacher: TorchNetwork) -> TorchNetwork:
    return choosing(teacher, "selector", (10, 5), first=1)


@pytest.fixture(scope="module")
def data(teacher: TorchNetwork) -> Batch:
    images = images_for(teacher, 40)
    return Batch(images, teacher.outputs(images).argmax(1), torch.arange(40))


def test_trained_selectors_find_the_tokens_that_carry_the_class(tmp_path: Path) -> None:
    """Compare trained and untrained selectors, with equal counts and the same unchanged backbone.

    Trained selectors keep far more of the planted tokens, and the network gives far more right answers.
    """
    seen, _ = planted_images(512, seed=1)
    held_out, planted = planted_images(300, seed=2)
    labels = held_out.labels
    assert labels is not None
    dense, kept = planted_network(seen, tmp_path), 3
    untrained = choosing(dense, "selector", (kept,))
    recipe = Recipe(epochs=5, learning_rate=1e-2, batch=32, distill=1.0, seed=0)
    trained = train_selectors(
        untrained, dense, seen, recipe, checkpoint=tmp_path / "c.pt", after_epoch=lambda *_: None, frozen=1.0
    )

    def right(network: TorchNetwork) -> float:
        return float((network.outputs(held_out.images, 300).argmax(1) == labels).float().mean())

    by_chance = torch.rand(300, PATCHES, generator=torch.Generator().manual_seed(0)).argsort(1)[:, :kept]
    found = float((chosen_tokens(trained, held_out.images) & planted).sum()) / (PLANTED * 300)
    assert found > 0.8 > 2 * kept / PATCHES
    with untrained.reductions()[0].forced_to(by_chance):
        assert right(trained) > right(untrained) + 0.3


def test_the_share_kept_approaches_the_plan(teacher: TorchNetwork, data: Batch, tmp_path: Path) -> None:
    """Check the share of tokens that training draws in each stage.

    Untrained selectors keep about a half in each stage. The plan keeps 5 and 2 of 16 tokens.
    """
    student = choosing(teacher, "selector", (5, 2), first=1)
    recipe = dataclasses.replace(RECIPE, epochs=15, batch=8, learning_rate=2e-2)
    trained = train_selectors(student, teacher, data, recipe, checkpoint=tmp_path / "c.pt", after_epoch=lambda *_: None)
    before, after = drawn_shares(student, data.images), drawn_shares(trained, data.images)
    for drawn, wanted, earlier in zip(after, (5 / 16, 2 / 16), before, strict=True):
        assert abs(drawn - wanted) < 0.5 * abs(earlier - wanted)


def drawn_shares(network: TorchNetwork, images: Tensor) -> list[float]:
    """Return the share of patch tokens that is left after each stage, when T_keep draws every token."""
    network = network.with_module(copy.deepcopy(network.module))
    masked = mask_tokens(network, choose_by_gumbel)
    torch.manual_seed(0)
    network.outputs(images)
    assert masked.masks is not None
    return [float(stage.mean()) for stage in masked.masks.stages]


def test_without_labels_the_teacher_alone_is_followed(
    teacher: TorchNetwork, student: TorchNetwork, data: Batch, tmp_path: Path
) -> None:
    diary, unlabelled = Diary(), dataclasses.replace(data, labels=None)
    trained = train_selectors(student, teacher, unlabelled, RECIPE, checkpoint=tmp_path / "c.pt", after_epoch=diary)
    assert diary.epochs == [1, 2, 3]
    assert not weights(trained)["blocks.1.reduction.selector.vote.weight"].equal(
        weights(student)["blocks.1.reduction.selector.vote.weight"]
    )
    assert trained.plan == student.plan and trained.structure == student.structure and not trained.module.training


@pytest.mark.parametrize(("frozen", "moves"), [(1.0, False), (0.5, True)])
def test_the_backbone_is_frozen_at_first_and_then_moves_a_little(
    teacher: TorchNetwork, student: TorchNetwork, data: Batch, tmp_path: Path, frozen: float, moves: bool
) -> None:
    before = weights(student)
    trained = train_selectors(
        student, teacher, data, RECIPE, checkpoint=tmp_path / "c.pt", after_epoch=lambda *_: None, frozen=frozen
    )
    change: dict[bool, float] = {True: 0.0, False: 0.0}
    for name, value in weights(trained).items():
        own = "selector" in name
        change[own] = max(change[own], float((value - before[name]).abs().max()))
    assert change[True] > 1e-3 and (change[False] > 0) == moves
    assert change[False] < 0.05 * change[True]
    assert all(parameter.requires_grad for parameter in trained.module.parameters())
    assert all(value.equal(before[name]) for name, value in weights(student).items())


def test_an_interrupted_training_ends_with_the_same_weights(
    teacher: TorchNetwork, student: TorchNetwork, data: Batch, tmp_path: Path
) -> None:
    undisturbed = weights(
        train_selectors(student, teacher, data, RECIPE, checkpoint=tmp_path / "whole.pt", after_epoch=Diary())
    )
    with pytest.raises(InterruptedError):
        train_selectors(student, teacher, data, RECIPE, checkpoint=tmp_path / "c.pt", after_epoch=Diary(stop_after=1))
    rest = Diary()
    resumed = weights(train_selectors(student, teacher, data, RECIPE, checkpoint=tmp_path / "c.pt", after_epoch=rest))
    assert rest.epochs == [2, 3]
    for name, value in undisturbed.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=1e-6, msg=name)


def test_selectors_come_into_use_from_the_last_stage_to_the_first() -> None:
    assert [first_in_use(progress, 3) for progress in (0.0, 0.09, 0.11, 0.21, 0.5, 0.99)] == [2, 2, 1, 0, 0, 0]
    assert first_in_use(0.0, 1) == 0


def test_a_stage_that_is_not_in_use_removes_nothing(student: TorchNetwork, data: Batch) -> None:
    network = student.with_module(copy.deepcopy(student.module))
    masked = mask_tokens(network, choose_best)
    masked.first = 1
    network.outputs(data.images[:3])
    assert masked.masks is not None
    assert [stage.sum(1).tolist() for stage in masked.masks.stages] == [[5.0] * 3]


def test_the_loss_by_hand() -> None:
    outputs, answers, labels = torch.randn(4, 5), torch.randn(4, 5), torch.arange(4)
    p, q = torch.log_softmax(answers, 1), torch.log_softmax(outputs, 1)
    divergence = (p.exp() * (p - q)).sum(1).mean()
    torch.testing.assert_close(answer_loss(outputs, answers, None, 1.0), 0.5 * divergence)
    with_labels = functional.cross_entropy(outputs, labels) + 0.5 * 3 * divergence
    torch.testing.assert_close(answer_loss(outputs, answers, labels, 3.0), with_labels)


def test_the_terms_on_tokens_by_hand(student: TorchNetwork) -> None:
    """Compute both terms for two images of 16 patch tokens and one class token.

    The kept shares are 3/4 and 1/4. The term on features uses kept tokens only.
    """
    network = student.with_module(copy.deepcopy(student.module))
    masked = mask_tokens(network, choose_best)
    first, second = torch.zeros(2, 16), torch.zeros(2, 16)
    first[:, :12], second[0, :8] = 1, 1
    tokens = torch.randn(2, 17, 48)
    masked.masks = Masks(second, stages=[first, second], tokens=tokens)
    torch.testing.assert_close(keep_loss(masked, [0.5, 0.5]), torch.tensor(2 * 0.25**2))
    features = torch.randn(2, 17, 48)
    mine, theirs = (functional.layer_norm(x[0, 1:9], (48,)) for x in (tokens, features))
    torch.testing.assert_close(feature_loss(masked, features), ((mine - theirs) ** 2).mean())


def test_gradients_reach_the_selectors_through_the_masks(student: TorchNetwork, data: Batch) -> None:
    """The loss is the answer alone, and tokens are dropped. Only the masks then connect the loss and the selectors."""
    network = student.with_module(copy.deepcopy(student.module))
    mask_tokens(network, choose_by_gumbel)
    torch.manual_seed(0)
    assert data.labels is not None
    functional.cross_entropy(network.module(data.images[:4]), data.labels[:4]).backward()
    for name, parameter in network.module.named_parameters():
        if "selector" in name:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_only_networks_with_selectors_can_be_trained(teacher: TorchNetwork, data: Batch, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="selector"):
        other = teacher.pruned(random_plan(teacher.structure, 1, tokens=False), None)
        train_selectors(other, teacher, data, RECIPE, checkpoint=tmp_path / "c.pt", after_epoch=lambda *_: None)


def test_a_narrower_network_is_compared_in_the_dims_that_it_keeps(
    teacher: TorchNetwork, data: Batch, tmp_path: Path
) -> None:
    dense = choosing(teacher, "selector", (10,), first=1).plan
    assert dense is not None
    small = teacher.pruned(dataclasses.replace(dense, embed=tuple(range(0, 42))), None)
    diary = Diary()
    train_selectors(
        small, teacher, data, dataclasses.replace(RECIPE, epochs=1), checkpoint=tmp_path / "c.pt", after_epoch=diary
    )
    assert diary.epochs == [1]

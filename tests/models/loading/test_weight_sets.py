"""Tests of prefixes and sets of weights in checkpoints: which one is taken, and that it is said."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from models.errors import CheckpointMismatch, InvalidRequest
from models.loading.load_model import open_model
from tests.support.checkpoints import agrees, opened, prefixed, vit


@pytest.mark.parametrize("prefix", ["net.", "module._orig_mod.model.", "student.", "my_own.name."])
def test_any_prefix_is_left_out_and_said(tmp_path: Path, prefix: str) -> None:
    model = vit(1)
    network = opened(tmp_path, {"state_dict": prefixed(prefix, model), "hyper_parameters": {"lr": 0.1}})
    assert agrees(network, model)
    assert network.assumptions == (f"The names of the weights begin with {prefix!r}: vitfit leaves this prefix out.",)


@pytest.mark.parametrize(
    "name", ["state_dict", "model", "model_state_dict", "net", "ema", "model_ema", "state_dict_ema", "ema_state_dict"]
)
def test_weights_lie_in_an_entry_of_the_file(tmp_path: Path, name: str) -> None:
    model = vit(1)
    network = opened(tmp_path, {name: model.state_dict(), "epoch": 3})
    assert agrees(network, model) and network.assumptions == ()


def student_and_teacher(form: str, student: Any, teacher: Any) -> dict[str, Any]:
    if form == "entries":  # as DINO saves them
        return {
            "student": prefixed("module.backbone.", student),
            "teacher": prefixed("backbone.", teacher),
            "dino_loss": {"center": torch.zeros(1, 8)},
        }
    return {"state_dict": {**prefixed("student.", student), **prefixed("teacher.", teacher)}}


@pytest.mark.parametrize("form", ["entries", "prefixes"])
@pytest.mark.parametrize(("wanted", "taken"), [(None, 1), ("ema", 1), ("teacher", 1), ("model", 0), ("student", 0)])
def test_of_student_and_teacher_the_wanted_one_is_taken(
    tmp_path: Path, form: str, wanted: str | None, taken: int
) -> None:
    models = vit(1), vit(2)
    network = opened(tmp_path, student_and_teacher(form, *models), weights=wanted)
    assert agrees(network, models[taken]) and not agrees(network, models[1 - taken])
    assert "several sets of weights" in network.assumptions[0]
    other = ("teacher", "student")[taken]
    assert f"vitfit takes '{('student', 'teacher')[taken]}" in network.assumptions[0]
    assert f"--weights {other}" in network.assumptions[0]


@pytest.mark.parametrize(("wanted", "seed"), [(None, 2), ("ema", 2), ("model", 1), ("state_dict", 1)])
def test_averaged_weights_come_first_and_the_others_can_be_chosen(
    tmp_path: Path, wanted: str | None, seed: int
) -> None:
    content = {"state_dict": vit(1).state_dict(), "state_dict_ema": vit(2).state_dict()}
    assert agrees(opened(tmp_path, content, weights=wanted), vit(seed))


def test_torchs_averaged_model_beside_the_model(tmp_path: Path) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(vit(2))
    network = opened(tmp_path, {"model": vit(1).state_dict(), "model_ema": averaged.state_dict()})
    assert agrees(network, vit(2))
    assert any("leaves out 1 other tensors" in said and "n_averaged" in said for said in network.assumptions)


def test_a_teacher_of_another_shape_is_not_taken(tmp_path: Path) -> None:
    larger = vit(2, embed_dim=96)
    network = opened(tmp_path, {"student": vit(1).state_dict(), "teacher": larger.state_dict()})
    assert agrees(network, vit(1))


@pytest.mark.parametrize(("wanted", "there"), [("ema", "It has: model"), ("momentum", "It has: model")])
def test_a_set_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path, wanted: str, there: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"no set of weights '{wanted}'.*{there}"):
        opened(tmp_path, {"model": vit(1).state_dict()}, weights=wanted)


def test_averaged_weights_alone_are_not_what_training_changed(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="no set of weights 'model'"):
        opened(tmp_path, {"state_dict_ema": vit(1).state_dict()}, weights="model")


def test_a_choice_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text('{"name": "vit_tiny_patch16_224", "weights": "ema"}')
    with pytest.raises(InvalidRequest, match="--weights"):
        open_model(tmp_path)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_weights_in_16_bits_are_taken_as_float32_and_it_is_said(tmp_path: Path, kind: torch.dtype) -> None:
    model = vit(1).to(kind)
    network = opened(tmp_path, model.state_dict())
    assert agrees(network, model.float())
    assert network.assumptions == (
        f"The weights are stored as {str(kind).removeprefix('torch.')}: vitfit takes them as float32.",
    )


def optimizer_state() -> dict[str, Any]:
    model = vit(1)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(1, 3, 32, 32)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


@pytest.mark.parametrize("is_nested", [False, True])
def test_the_state_of_an_optimizer_is_refused_as_that(tmp_path: Path, is_nested: bool) -> None:
    state = optimizer_state()
    with pytest.raises(CheckpointMismatch, match=r"state of an optimizer.*model\.safetensors"):
        opened(tmp_path, {"optimizer": state, "epoch": 3} if is_nested else state)
    assert agrees(opened(tmp_path, {"model": vit(1).state_dict(), "optimizer": state}), vit(1))


def test_a_file_without_weights_names_its_entries(tmp_path: Path) -> None:
    with pytest.raises(CheckpointMismatch, match=r"no weights\. Its entries: epoch, metric"):
        opened(tmp_path, {"epoch": 3, "metric": 0.5})


def test_weights_of_another_architecture_are_refused_as_that(tmp_path: Path) -> None:
    with pytest.raises(CheckpointMismatch, match="another architecture or depth: it has only 0 of"):
        opened(tmp_path, timm.create_model("resnet18").state_dict())
    with pytest.raises(CheckpointMismatch, match="names are those of the package transformers"):
        opened(tmp_path, {"vit.encoder.layer.0.attention.attention.query.weight": torch.zeros(2, 2)})


def test_an_adapter_is_refused_with_the_way_to_merge_it(tmp_path: Path) -> None:
    content = {**vit(1).state_dict(), "base_model.model.blocks.0.attn.qkv.lora_A.default.weight": torch.zeros(2, 2)}
    with pytest.raises(CheckpointMismatch, match=r"(?s)adapter.*merge_and_unload\(\).*save_pretrained"):
        opened(tmp_path, content)

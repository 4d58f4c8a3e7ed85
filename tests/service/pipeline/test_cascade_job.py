"""Tests of complete jobs in the papers' own spaces.

One space is CP-ViT's cascade, with and without fine-tuning. The other is MDC's space with one number for each block and
axis.
"""

from itertools import pairwise
from pathlib import Path

import onnx
import pytest

from models.errors import InvalidRequest
from models.export.onnx_export import run_onnx
from models.loading.load_model import open_model
from models.structure import Plan
from tests.support.small_jobs import Ran, Workshop, budget, random_images

LIMIT = budget("macs_keep", 0.65)


pytestmark = pytest.mark.usefixtures("brief")


@pytest.fixture(scope="module")
def cascaded(workshop: Workshop) -> Ran:
    return workshop.run(LIMIT, method="cp-vit", trials=3)


def nodes(path: Path) -> set[str]:

    return {node.op_type for node in onnx.load(path).graph.node}


def test_cp_vit_delivers_a_smaller_file_that_agrees_with_pytorch(cascaded: Ran) -> None:
    report = cascaded.report
    assert report["method"] == "cp-vit" and report["parity"]["passed"]
    assert 0.5 < report["delivered"]["macs"] / report["original"]["macs"] <= 0.65
    assert not any("Scatter" in name for name in nodes(cascaded.path("model.onnx")))
    assert run_onnx(cascaded.path("model.onnx"), random_images()[:4], 1).shape == (4, 5)


def test_its_tokens_and_heads_leave_block_by_block_and_stay_away(cascaded: Ran) -> None:
    plan = Plan.from_json(cascaded.json("plan.json"))
    structure = plan.apply_to(open_model(cascaded.files.model).structure)
    tokens = [block.tokens_attended for block in structure.blocks]
    assert tokens[0] == 17 and tokens == sorted(tokens, reverse=True) and len(set(tokens)) > 2
    for before, after in pairwise(plan.blocks):
        assert set(after.heads) <= set(before.heads)
    assert {row["axis"] for row in cascaded.report["axes"]} <= {"heads", "tokens"}
    for row in cascaded.report["blocks"]:
        assert row["neurons"] == [192, 192]


@pytest.mark.slow
def test_cp_vit_with_fine_tuning(workshop: Workshop) -> None:
    ran = workshop.run(LIMIT, method="cp-vit", trials=1, finetune={"epochs": 1, "batch": 16})
    assert "finetuning" in ran.journal.stages and ran.report["parity"]["passed"]


@pytest.mark.slow
def test_mdc_in_the_space_of_its_paper(workshop: Workshop) -> None:
    ran = workshop.run(LIMIT, method="mdc", space="paper", trials=4)
    rows = ran.journal.trials()
    assert {len(row["direction"]) for row in rows} == {9}, "two for each of four blocks, and the tokens"
    assert all(len(row["policy"]["neurons_by_block"]) == 4 for row in rows)
    assert len({keep for row in rows for keep in row["policy"]["neurons_by_block"]}) > 4
    assert ran.report["parity"]["passed"] and ran.report["request"]["space"] == "paper"
    assert ran.report["delivered"]["macs"] <= 0.65 * ran.report["original"]["macs"]


def test_a_space_of_another_method_is_refused_without_a_server_too(workshop: Workshop) -> None:
    with pytest.raises(InvalidRequest, match="spaces: compact"):
        workshop.run(LIMIT, space="paper")

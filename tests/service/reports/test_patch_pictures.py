"""Tests of the patches that a job shows.

Their number is that of the plan. The job stores pictures of them, and the report shows the same pictures.
"""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.structure import Plan
from tests.support.small_jobs import Ran, Workshop, budget, digits

pytestmark = pytest.mark.usefixtures("brief")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    root = tmp_path_factory.mktemp("patches")
    return Workshop(root, *digits(root)).run(budget("macs_keep", 0.7), method="cp-vit", trials=1)


@pytest.mark.slow
def test_each_image_keeps_as_many_patches_as_the_plan_says(ran: Ran) -> None:
    found, plan = ran.json("patches.json"), Plan.from_json(ran.json("plan.json"))
    planned = [(f"blocks.{block.source}", block.tokens.kept) for block in plan.blocks if block.tokens is not None]
    assert planned and [(block["block"], block["kept"]) for block in found["blocks"]] == planned
    assert (found["grid"], found["patches"], len(found["images"])) == ([8, 8], 64, 8)
    for image in found["images"]:
        assert [len(set(places)) for places in image["kept"]] == [kept for _, kept in planned]
        for early, late in zip(image["kept"], image["kept"][1:], strict=False):
            assert set(late) <= set(early) <= set(range(64))


@pytest.mark.slow
def test_pictures_are_small_and_are_digits(ran: Ran) -> None:
    for image in ran.json("patches.json")["images"]:
        picture = Image.open(io.BytesIO(base64.b64decode(image["png"], validate=True)))
        assert picture.format == "PNG" and max(picture.size) <= 64
        assert np.ptp(np.asarray(picture.convert("L"))) > 100


@pytest.mark.slow
def test_the_report_shows_them_and_loads_nothing_from_elsewhere(ran: Ran) -> None:
    text, found = ran.path("report.html").read_text(), ran.json("patches.json")
    assert text.count('<svg class="patches"') == len(found["images"]) * len(found["blocks"])
    for image in found["images"]:
        assert text.count(image["png"]) == 1
    gone = [len(re.findall("M", path)) for path in re.findall(r'class="removed" d="([^"]*)"', text)]
    assert gone == [64 - block["kept"] for block in found["blocks"] for _ in found["images"]]
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', text)


@pytest.mark.slow
def test_the_report_has_the_trials_with_their_front_and_what_each_block_keeps(ran: Ran) -> None:
    text = ran.path("report.html").read_text()
    for words in ("Pareto front", "limit", "delivered", "score on the selection split"):
        assert words in text, words
    assert all(f"<th>{block['name']}</th>" in text for block in ran.report["blocks"])


@pytest.mark.slow
def test_a_job_without_images_has_none(tmp_path: Path) -> None:
    model, _ = digits(tmp_path)
    bare = Workshop(tmp_path, model, None).run(budget("macs_keep", 0.7), method="cp-vit", trials=1)
    assert not bare.path("patches.json").exists() and "Which patches" not in bare.path("report.html").read_text()

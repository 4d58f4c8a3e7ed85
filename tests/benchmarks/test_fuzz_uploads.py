"""Tests of hostile uploads.

They do a short run of benchmarks/fuzz_uploads.py and check what the script reports when something is wrong.
"""

import functools
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.fuzz_uploads import KINDS, Fuzzer, fuzzer, judged
from benchmarks.hostile import checkpoints, documents
from benchmarks.hostile.upload import Upload
from latency.devices.profile_schema import parse_profile
from models.errors import VitfitError
from models.loading.load_model import untrained
from service.api.routes.bodies import parse
from service.api.schemas import ModelRequest
from tests.support.checkpoints import load_checkpoint

SEED = 20261121
QUICK = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def fuzz() -> Iterator[Fuzzer]:
    with fuzzer() as found:
        yield found


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_uploads_of_every_kind_are_answered_in_time_and_leave_nothing(fuzz: Fuzzer, kind: str) -> None:
    numbers = range(8 if kind == "device" else 2)
    wrong = {number: fuzz.send(fuzz.make(SEED, number, (kind,))) for number in numbers}
    assert not any(wrong.values()), wrong


@pytest.mark.slow
def test_two_hundred_hostile_uploads(fuzz: Fuzzer) -> None:
    wrong = {number: found for number in range(200) if (found := fuzz.send(fuzz.make(SEED + 1, number, KINDS)))}
    assert not wrong
    assert fuzz.answers["201"] >= 10, "some are taken: the others are refused for what is wrong with them"


def test_the_same_number_is_the_same_upload(fuzz: Fuzzer) -> None:
    for kind in ("archive", "npz", "model", "device"):
        assert fuzz.make(1, 7, (kind,)) == fuzz.make(1, 7, (kind,)) != fuzz.make(1, 8, (kind,))


def test_a_file_that_is_left_is_told(fuzz: Fuzzer) -> None:
    class Leaky(Fuzzer):
        def _post(self, upload: Upload) -> Any:
            (self.outside / "escaped.png").touch()
            return super()._post(upload)

    leaky = Leaky(fuzz.web, fuzz.root, fuzz.model)
    (wrong,) = leaky.send(Upload("empty", "/v1/devices", {}))
    (fuzz.outside / "escaped.png").unlink()
    assert wrong == "it left ['outside/escaped.png']"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (httpx.Response(500, json={"type": "/problems/internal-error"}), "status 500"),
        (httpx.Response(422, json={"detail": "no"}), "without a problem"),
        (
            httpx.Response(404, text="not here", headers={"Content-Type": "application/problem+json"}),
            "without a problem",
        ),
    ],
)
def test_answers_that_are_no_problem_are_told(answer: httpx.Response, words: str) -> None:
    (wrong,) = judged(answer)
    assert words in wrong


@QUICK
@given(st.integers(0, 2**32))
def test_device_tables_of_junk_are_refused_or_taken(seed: int) -> None:
    upload = documents.device(random.Random(seed))
    if isinstance(upload.json, dict):
        _refused_or_taken(lambda: parse_profile(upload.json))


@QUICK
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    )
)
def test_any_json_is_no_device_and_no_model(value: object) -> None:
    for text in (
        json.dumps(value),
        json.dumps({"name": "vit_tiny_patch16_224", "options": value, "preprocessing": value}),
    ):
        _refused_or_taken(functools.partial(parse, ModelRequest, text))
    if isinstance(value, dict):
        _refused_or_taken(lambda: parse_profile(value))


@settings(QUICK, max_examples=25)
@given(st.integers(0, 2**32))
def test_checkpoints_of_junk_are_refused_or_taken_and_run_nothing(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("junk")
    upload = checkpoints.checkpoint(random.Random(seed), str(folder / "code-ran"))
    path = folder / ("weights.safetensors" if upload.filename.endswith(".safetensors") else "weights.pth")
    path.write_bytes(upload.content)
    module = untrained(checkpoints.MODEL, **checkpoints.OPTIONS).module
    _refused_or_taken(lambda: load_checkpoint(module, path))
    assert not (folder / "code-ran").exists()


def _refused_or_taken(call: Callable[[], object]) -> None:
    """Check that the call succeeds or raises an error of vitfit, which has a code."""
    try:
        call()
    except VitfitError as error:
        assert error.code and error.detail

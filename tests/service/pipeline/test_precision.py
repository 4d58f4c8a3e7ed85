"""Tests of jobs that may use int8: which jobs are refused, and what a job delivers."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
import torch

from latency.devices.devices import describe_devices
from latency.measuring.meter import Effort
from latency.prediction.features import FEATURES, features
from latency.prediction.probes import probe_plans
from latency.prediction.table import Table
from models.data.dataset import Batch
from models.errors import InvalidRequest, ParityFailure
from models.evaluation.parity import check_quantised
from models.export.onnx_export import run_onnx
from models.loading.load_model import open_model
from models.networks.network import Network
from models.quantization.int8 import saturates
from models.structure import Op, Plan, Precision
from service.pipeline.evaluation import Evaluation
from service.pipeline.precision import check_precisions, check_quantisable, quantiser_of
from service.pipeline.pricing import Pricing
from service.pipeline.profiling import profile
from service.pipeline.ranked import rank_network
from service.pipeline.verification import Verifier
from tests.support.small_jobs import (
    FEW_PROBES,
    Ran,
    Workshop,
    briefly,
    budget,
    data_folder,
    delivered_network,
    digits,
    job_request,
    model_folder,
    random_images,
)

MACS = budget("macs_keep", 0.6)


def test_int8_is_refused_where_the_device_does_not_know_it() -> None:
    profiles = {device["name"]: device["precision"] for device in describe_devices() if device["kind"] == "profile"}
    fp32 = next(name for name, precision in profiles.items() if precision == "fp32")
    int8 = next(name for name, precision in profiles.items() if precision == "int8")
    for wanted in (["int8"], ["fp32", "int8"]):
        with pytest.raises(InvalidRequest, match=r"describes fp32 only. Use \['fp32'\]"):
            check_precisions(job_request(budget("latency_keep", 0.5, fp32), precisions=wanted))
    check_precisions(job_request(budget("latency_keep", 0.5, int8), precisions=["int8"]))
    with pytest.raises(
        InvalidRequest, match=f"'fp32', which this job cannot use: the profile '{int8}' describes int8 only"
    ):
        check_precisions(job_request(budget("latency_keep", 0.5, int8), precisions=["fp32", "int8"]))
    check_precisions(
        job_request(budget("latency_keep", 0.5, int8))
    )  # still allowed: an fp32 file with the price of int8
    check_precisions(job_request(budget("latency_keep", 0.5), precisions=["fp32", "int8"]))


def test_a_profile_of_int8_devices_gets_networks_that_are_int8_throughout(workshop: Workshop) -> None:
    int8 = next(d["name"] for d in describe_devices() if d["kind"] == "profile" and d["precision"] == "int8")
    found = {}
    for device in (int8, "cpu"):
        request = job_request(budget("latency_keep", 0.5, device), precisions=["int8"])
        files = workshop.files()
        files.work.mkdir(parents=True)
        evaluation = Evaluation.open(request, files)
        space = rank_network(evaluation, request, files.work).space
        found[device] = space.along([0.0] * len(space.dimensions), 0.0).int8
    assert found[int8] == 1.0 > found["cpu"]


def test_what_no_device_runs_or_no_method_delivers_is_refused_with_the_reason() -> None:
    with pytest.raises(
        InvalidRequest, match=r"fp16.*cpu is a CPU, which converts fp16 to fp32.*Use \['fp32', 'int8'\]"
    ):
        check_precisions(job_request(budget("latency_keep", 0.5), precisions=["fp16"]))
    with pytest.raises(InvalidRequest, match=r"must be the only precision.*Use \['fp16'\]"):
        check_precisions(job_request(MACS, precisions=["fp16", "fp32"]))
    with pytest.raises(InvalidRequest, match="spvit"):
        check_precisions(job_request(MACS, precisions=["fp16"], method="spvit"))
    with pytest.raises(InvalidRequest, match="spvit"):
        check_precisions(job_request(MACS, precisions=["int8"], method="spvit"))
    for wrong in (["int4"], [], ["int8", "int8"]):
        with pytest.raises(ValueError, match="precisions"):
            job_request(MACS, precisions=wrong)


def test_fp16_is_for_gpus_and_profiles_that_know_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("latency.devices.devices.gpus", lambda: {"cuda:0": "a GPU"})
    check_precisions(job_request(budget("latency_keep", 0.5, "cuda:0"), precisions=["fp16"]))
    check_precisions(job_request(MACS, precisions=["fp16"]))
    fp32 = next(d["name"] for d in describe_devices() if d["kind"] == "profile" and d["precision"] == "fp32")
    with pytest.raises(InvalidRequest, match=r"describes fp32 only. Use \['fp32'\]"):
        check_precisions(job_request(budget("latency_keep", 0.5, fp32), precisions=["fp16"]))


@pytest.mark.slow
def test_an_fp16_job_delivers_fp16_files_and_says_so(workshop: Workshop) -> None:
    ran = workshop.run(MACS, budget("file_keep", 0.45), precisions=["fp16"], trials=4)
    assert ran.report["precision"]["name"] == "fp16" and ran.report["parity"]["quantised"]["same_answers"] >= 0.97
    for name in ("model.onnx", "model.cpu.onnx", "model.dynamic.onnx"):
        kinds = {tensor.data_type for tensor in onnx.load(ran.path(name)).graph.initializer}
        assert onnx.TensorProto.FLOAT16 in kinds and onnx.TensorProto.FLOAT not in kinds
    share = ran.path("model.cpu.onnx").stat().st_size / ran.path("original.onnx").stat().st_size
    assert share <= 0.45
    assert any("fp16 file gives the same answers as its fake quantisation" in note for note in ran.result.notes)


def test_probes_in_fp16_are_priced_as_such(workshop: Workshop) -> None:
    structure = open_model(workshop.model).structure
    half, whole = (
        [plan.apply_to(structure) for plan in probe_plans(structure, 3, precision)] for precision in ("fp16", "fp32")
    )
    assert [shape.macs for shape in half] == [shape.macs for shape in whole]
    rows = dict(zip(FEATURES, features(half).sum(axis=0), strict=True))
    assert rows["half_macs"] == sum(shape.macs for shape in half) and rows["matmul_macs"] == rows["norm_values"] == 0


def test_networks_whose_blocks_have_no_linear_layers_are_refused(workshop: Workshop) -> None:
    structure = open_model(workshop.model).structure
    block = structure.blocks[0]
    assert block.mlp is not None
    parts = dataclasses.replace(block.mlp, parts=(Op("conv", "mix", 4, 1, inner=9, members="cols"),))
    stage = dataclasses.replace(structure.stages[0], blocks=(dataclasses.replace(block, attention=None, mlp=parts),))
    found = dataclasses.replace(structure, stages=(stage,))
    check_quantisable(job_request(MACS, precisions=["fp32", "int8"]), structure)
    check_quantisable(job_request(MACS), found)
    with pytest.raises(InvalidRequest, match=r"are convolutions.*Use \['fp32'\]"):
        check_quantisable(job_request(MACS, precisions=["fp32", "int8"]), found)


def test_files_for_other_processors_have_seven_bits_and_runs_share_their_ranges(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = quantiser_of(job_request(budget("latency_keep", 0.5, batch=4), precisions=["int8"]))
    assert here.together == 4
    monkeypatch.setattr("service.pipeline.precision.is_here", lambda name: name == "cpu")
    assert quantiser_of(job_request(budget("latency_keep", 0.5, "agent-x"), precisions=["int8"])).weight_bits == 7
    assert here.weight_bits == (7 if saturates() else 8)
    for loses, weight_bits in ((True, 7), (False, 8)):
        monkeypatch.setattr("models.quantization.int8.saturates", lambda loses=loses: loses)
        assert quantiser_of(job_request(MACS, precisions=["int8"])).weight_bits == weight_bits


@pytest.fixture(scope="module")
def brief() -> Iterator[None]:
    with briefly():
        yield


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, brief: None) -> Workshop:
    root = tmp_path_factory.mktemp("workshop")
    model = model_folder(root / "model")
    return Workshop(root, model, data_folder(root / "data", model))


@pytest.fixture(scope="module")
def ran(workshop: Workshop) -> Ran:
    return workshop.run(MACS, budget("file_keep", 0.5), precisions=["int8"], trials=6)


def test_an_int8_job_delivers_int8_files_and_says_so(ran: Ran) -> None:
    plan = Plan.from_json(ran.json("plan.json"))
    assert plan.precision == "int8" and ran.report["precision"]["name"] == "int8"
    for name in ("model.onnx", "model.cpu.onnx", "model.dynamic.onnx"):
        model = onnx.load(ran.path(name))
        assert {node.domain for node in model.graph.node} == {""}
        assert any(node.op_type == "MatMulInteger" for node in model.graph.node)
    assert not any(node.op_type == "MatMulInteger" for node in onnx.load(ran.path("original.onnx")).graph.node)
    rows = {row[0]: row[1:] for row in ran.result.rows}
    assert rows["precision"][0] == "fp32" and rows["precision"][1].startswith("int8")
    assert any("int8 file gives the same answers as its fake quantisation" in note for note in ran.result.notes)


def test_the_reports_accuracy_is_the_quantised_files_own(ran: Ran) -> None:
    images = random_images()[-40:]
    labels = open_model(ran.files.model).outputs(random_images()).argmax(1)[-40:]
    right = int((run_onnx(ran.path("model.cpu.onnx"), images, 1).argmax(1) == labels).sum())
    assert ran.report["delivered"]["correct"] == right


def test_the_size_of_the_quantised_file_counts_for_the_budget(ran: Ran) -> None:
    share = ran.path("model.cpu.onnx").stat().st_size / ran.path("original.onnx").stat().st_size
    row = next(row for row in ran.report["budgets"] if row["metric"] == "file_keep")
    assert share <= 0.5 and row["share"] == pytest.approx(share / 0.5, rel=0.02)


def test_parity_is_checked_exactly_before_and_by_answers_after_quantisation(ran: Ran) -> None:
    parity = ran.report["parity"]
    assert parity["passed"] and parity["max_relative"] <= 1e-3
    assert (
        20 <= parity["quantised"]["clear"] <= parity["quantised"]["images"] == 40
        and parity["quantised"]["same_answers"] >= 0.97
    )


@pytest.mark.slow
def test_an_fp32_job_says_nothing_of_int8(workshop: Workshop) -> None:
    ran = workshop.run(MACS)
    assert ran.report["parity"]["quantised"] is None and ran.report["precision"]["name"] == "fp32"
    assert "precision" not in {row[0] for row in ran.result.rows}
    assert all("int8" not in trial["policy"] for trial in ran.report["trials"])


def test_a_file_with_other_answers_than_its_emulation_fails(ran: Ran, tmp_path: Path) -> None:
    network = delivered_network(ran)
    images = random_images(64)
    data = Batch(images, open_model(ran.files.model).outputs(images).argmax(1), torch.arange(64))
    network.export(tmp_path / "right.onnx", 1)
    assert check_quantised(network, tmp_path / "right.onnx", 1, data).passed
    with torch.no_grad():
        for block in network.pruned_blocks():
            if block.mlp is not None:
                block.mlp.fc2.weight.mul_(-1)
    report = check_quantised(network, tmp_path / "right.onnx", 1, data)
    assert report.free.passed and report.quantised is not None and not report.quantised.passed and not report.passed


def test_a_delivery_that_fails_parity_delivers_nothing(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "models.quantization.fake_quantize.rounded_inputs", lambda x, *_: x.round()
    )  # the quantiser does not round so
    files = workshop.files()
    with pytest.raises(ParityFailure, match=r"of \d+ clear answers are the same"):
        workshop.run(MACS, precisions=["int8"], files=files)
    assert not (files.artifacts / "model.onnx").exists()


@pytest.mark.slow
def test_both_precisions_are_tried_when_both_are_allowed(workshop: Workshop) -> None:
    ran = workshop.run(MACS, precisions=["fp32", "int8"], trials=8)
    shares = {trial["policy"].get("int8", 0.0) for trial in ran.report["trials"]}
    assert {0.0, 1.0} <= shares


def test_a_stored_table_is_kept_and_gets_probes_in_int8(workshop: Workshop) -> None:
    network, tables = open_model(workshop.model), workshop.root / "probed"
    stored = _profiled(network, tables, workshop.root / "first", ["fp32"])
    grown = _profiled(network, tables, workshop.root / "second", ["fp32", "int8"])
    assert not stored.knows("int8") and grown.knows("int8")
    assert grown.samples[: len(stored.samples)] == stored.samples and grown.original_ms == stored.original_ms
    added = [sample.structure for sample in grown.samples[len(stored.samples) :]]
    plans = probe_plans(network.structure, count=len(added), precision="int8")
    assert len(added) == FEW_PROBES and added == [plan.apply_to(network.structure) for plan in plans]
    assert _profiled(network, tables, workshop.root / "third", ["int8"]) == grown  # the job measures nothing again


def _profiled(network: Network, tables: Path, work: Path, precisions: list[Precision]) -> Table:
    """Return the table of a new job."""
    work.mkdir()
    pricing = Pricing(job_request(budget("latency_keep", 0.9)), network.structure)
    profile(pricing, network, Verifier(network, pricing, work, 0), tables, work=work, precisions=precisions)
    table = pricing.table(pricing.measured_places[0])
    assert table is not None
    return table


VERIFY = Effort(seconds=6.0, width=0.04, processes=3, rounds=10)


@pytest.mark.slow
def test_on_the_digits_int8_keeps_what_fp32_must_prune(tmp_path: Path) -> None:
    """The budget is 0.4 of the latency. The precision alone pays for a part of it, so pruning pays for less."""
    with briefly(VERIFY):
        model, data = digits(tmp_path)
        ran = Workshop(tmp_path, model, data).run(budget("latency_keep", 0.4), precisions=["int8"], trials=10)
    report = ran.report
    assert ran.result.guarantee == "measured" and report["ratio"]["high"] <= 0.4
    assert report["original"]["correct"] - report["delivered"]["correct"] <= 0.02 * 500
    assert any(row["axis"] == "precision" and row["latency_fall"] > 0.1 for row in report["axes"])

"""Tests of the form of the page: it hands in everything that changes the result, and uploads nothing twice."""

import json
import zipfile
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, Request, expect

from tests.service.api.conftest import PATIENCE_MS
from tests.support.running import Server

PREPROCESSING = {"size": [3, 32, 32], "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5], "interpolation": "bilinear"}


def form(page: Page) -> None:
    page.goto("/web/#/submit")
    page.get_by_label("Metric").select_option("macs_keep")
    page.get_by_label("Trials").fill("1")
    page.get_by_text("More options").click()


def posts(page: Page, path: str) -> list[Request]:
    """Return a list that grows with each POST to `path` from now on."""
    found: list[Request] = []
    page.on("request", lambda r: found.append(r) if r.method == "POST" and r.url.endswith(path) else None)
    return found


def submit(page: Page) -> str:
    """Submit the form, and return the id of the job."""
    page.get_by_role("button", name="Submit").click()
    page.wait_for_url(lambda url: "#/jobs/job_" in url, timeout=PATIENCE_MS)
    return page.url.rpartition("/")[2]


def body(request: Request) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(request.post_data or "")
    return found


def test_everything_that_changes_the_result_is_sent(page: Page, server: Server) -> None:
    form(page)
    models = posts(page, "/v1/models")
    page.get_by_label("Model: the name of a timm model").fill("fake_tiny_patch4_32")
    page.get_by_label("Arguments of timm").fill('{"num_classes": 10, "img_size": 32}')
    page.get_by_label("Preprocessing of an image").fill(json.dumps(PREPROCESSING))
    page.get_by_label("Without a file, download timm's weights").uncheck()
    page.get_by_label("Metric").select_option("latency_keep")
    page.get_by_label("Images in one run").fill("4")
    page.get_by_label("Precision").select_option("fp32,int8")
    page.get_by_label("Seed").fill("7")
    more = {"keep_spatial": True, "budgets": [{"metric": "params_keep", "limit": 0.7}]}
    page.get_by_label("Other fields of the request").fill(json.dumps(more))
    request = server.job(submit(page))["request"]
    assert body(models[0]) == {
        **{"name": "fake_tiny_patch4_32", "options": {"num_classes": 10, "img_size": 32}},
        **{"preprocessing": PREPROCESSING, "pretrained": False},
    }
    assert (request["seed"], request["precisions"], request["keep_spatial"]) == (7, ["fp32", "int8"], True)
    assert [budget["metric"] for budget in request["budgets"]] == ["latency_keep", "params_keep"]
    assert request["budgets"][0]["setting"] == {"threads": 1, "batch": 4}


def test_a_file_that_holds_the_model_is_taken_and_names_it(page: Page, server: Server, tmp_path: Path) -> None:
    onnx, packed = tmp_path / "fake net.onnx", tmp_path / "fake-folder.zip"
    onnx.write_bytes(b"onnx")
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("config.json", "{}")
    for file, name in ((onnx, "fake-net"), (packed, "fake-folder")):
        form(page)
        chooser = page.get_by_label("Weights: a .safetensors or .pth file")
        assert file.suffix in (chooser.get_attribute("accept") or "").split(",")
        chooser.set_input_files(file)
        page.get_by_label("Preprocessing of an image").fill(json.dumps(PREPROCESSING))
        model = server.job(submit(page))["request"]["model"]
        assert server.client.get(f"/v1/models/{model}").json()["name"] == name
        assert json.loads((server.data / "models" / model / "model.json").read_text())["preprocessing"]["crop"] == 1.0
        assert (server.data / "models" / model / f"model{file.suffix}").read_bytes() == file.read_bytes()


def test_an_uploaded_model_and_data_set_are_used_again(page: Page, server: Server, tmp_path: Path) -> None:
    model, data = server.model(), tmp_path / "data.zip"
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("cat/a.png", b"")
    with data.open("rb") as file:
        dataset = server.client.post("/v1/datasets", files={"file": ("data.zip", file)}).json()["id"]
    form(page)
    uploads = [posts(page, path) for path in ("/v1/models", "/v1/datasets")]
    page.get_by_label("Which model").select_option(model)
    page.get_by_label("Which data set").select_option(dataset)
    expect(page.get_by_label("Model: the name of a timm model")).to_be_hidden()
    request = server.job(submit(page))["request"]
    assert (request["model"], request["dataset"]) == (model, dataset)
    assert uploads == [[], []]


def test_a_second_attempt_does_not_upload_again(page: Page, server: Server) -> None:
    form(page)
    uploads = posts(page, "/v1/models")
    page.get_by_label("Model: the name of a timm model").fill("fake_tiny_patch4_32")
    page.get_by_label("Other fields of the request").fill('{"trails": 3}')
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_role("alert")).to_contain_text("trails")
    page.get_by_label("Other fields of the request").fill("")
    submit(page)
    assert len(uploads) == 1

"""Tests of the page in a real browser (Debian's Chromium).

A user submits a job, watches it, chooses a trial and downloads files. The tests also use the keyboard alone, and the
screen of a phone.
"""

import json
from pathlib import Path

import httpx
import onnx
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.service.api.conftest import PATIENCE_MS
from tests.support.agents import token
from tests.support.running import Server, job_body
from tests.support.served import served
from tests.support.small_jobs import DIGITS


def fill(page: Page, model: str, **fields: str) -> None:
    page.get_by_role("link", name="Submit", exact=True).click()
    page.get_by_label("Model: the name of a timm model").fill(model)
    page.get_by_label("Metric").select_option("macs_keep")
    for label, value in fields.items():
        page.get_by_label(label.replace("_", " "), exact=True).fill(value)


def test_a_job_is_submitted_watched_and_downloaded(page: Page, tmp_path: Path) -> None:
    page.goto("/")
    fill(page, "fake_tiny_patch4_32", Trials="5", Name_of_the_job="from the page")
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_role("heading", name="from the page")).to_be_visible()
    expect(page.locator("#content")).to_have_attribute("data-finished", "succeeded", timeout=PATIENCE_MS)
    expect(page.get_by_role("button", name="trial 0: score")).to_be_visible()
    assert page.locator("circle.trial").count() == 5 and page.locator("line.limit").count() == 1
    with page.expect_download() as started:
        page.get_by_role("button", name="model.onnx").click()
    started.value.save_as(tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").stat().st_size == 102_400
    page.get_by_role("link", name="Jobs", exact=True).click()
    expect(page.get_by_role("link", name="from the page").first).to_be_visible()


def test_another_trial_is_delivered_by_keyboard(page: Page, server: Server, finished_job: str) -> None:
    page.goto(f"/web/#/jobs/{finished_job}")
    expect(page.locator("#content")).to_have_attribute("data-finished", "succeeded")
    delivered = server.job(finished_job)["result"]["delivered_trial"]
    other = next(number for number in range(4) if number != delivered)
    page.get_by_role("button", name=f"trial {other}: score").focus()
    page.keyboard.press("Enter")
    page.get_by_role("button", name=f"Deliver trial {other} instead").press("Enter")
    page.wait_for_url(lambda url: "#/jobs/job_" in url and finished_job not in url)
    expect(page.locator("#content")).to_have_attribute("data-finished", "succeeded")
    child = server.job(page.url.rpartition("/")[2])
    assert child["parent"] == finished_job and child["result"]["delivered_trial"] == other


def test_the_patches_that_images_keep_are_seen_block_by_block_by_keyboard(page: Page, finished_job: str) -> None:
    page.goto(f"/web/#/jobs/{finished_job}")
    expect(page.locator("#content")).to_have_attribute("data-finished", "succeeded")
    pictures = page.locator("svg.patches")
    expect(pictures).to_have_count(2)
    assert (
        page.locator("svg.patches image").first.evaluate(
            "async (i) => { const p = new Image(); p.src = i.href.baseVal; await p.decode(); return p.width }"
        )
        == 1
    )
    slider = page.get_by_role("slider", name="Block")
    expect(page.get_by_text("after blocks.1: 2 of 4 patches")).to_be_visible()
    assert [pictures.nth(i).get_attribute("data-gone") for i in range(2)] == ["2", "2"]
    assert pictures.nth(0).locator(".removed").get_attribute("d") == "M0 1h1v1h-1zM1 1h1v1h-1z"
    slider.press("ArrowLeft")
    expect(page.get_by_text("after blocks.0: 3 of 4 patches")).to_be_visible()
    assert pictures.nth(1).locator(".removed").get_attribute("d") == "M1 1h1v1h-1z"
    slider.press("Home")
    expect(page.get_by_text("before the first block: 4 patches")).to_be_visible()
    assert pictures.nth(0).get_attribute("data-gone") == "0"


def test_a_refusal_is_shown_where_it_happened(page: Page) -> None:
    page.goto("/web/#/submit")
    fill(page, "fake_tiny_patch4_32")
    page.get_by_label("Metric").select_option("latency_ms")
    page.get_by_label("Threads").fill("0")
    page.get_by_role("button", name="Submit").click()
    assert page.url.endswith("#/submit"), "the browser itself refuses 0 threads"
    page.get_by_label("Threads").fill("1")
    page.get_by_text("More options").click()
    page.get_by_label("Arguments of timm").fill("{")
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_role("alert")).to_contain_text("Arguments of timm's create_model: { is not a JSON object. Give")


def test_names_of_users_are_text_and_never_markup(page: Page, server: Server) -> None:
    job = server.submit(server.model(), name="<img src=x onerror=alert(1)>", trials=1)
    page.goto(f"/web/#/jobs/{job}")
    expect(page.get_by_role("heading", name="<img src=x onerror=alert(1)>")).to_be_visible()
    assert page.locator("main img").count() == 0


def test_devices_and_their_checks_are_listed(page: Page) -> None:
    page.goto("/web/#/devices")
    expect(page.get_by_role("cell", name="generic-mobile", exact=True)).to_be_visible()


@pytest.mark.parametrize("view", ["jobs", "submit", "devices", "token"])
def test_a_phone_shows_everything_without_scrolling_sideways(browser: Browser, server: Server, view: str) -> None:
    context = browser.new_context(base_url=str(server.client.base_url), viewport={"width": 360, "height": 700})
    page = context.new_page()
    page.goto(f"/web/#/{view}")
    expect(page.locator("h1")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    context.close()


def test_a_server_with_tokens_asks_for_one(browser: Browser, tmp_path: Path) -> None:
    with served(tmp_path, "--data", str(tmp_path / "data"), "--port", "0", VITFIT_ANONYMOUS="0") as address:
        secret = token(tmp_path / "data", "submit")
        with httpx.Client(base_url=address, headers={"Authorization": f"Bearer {secret}"}) as client:
            model = client.post("/v1/models", json={"name": "fake_tiny_patch4_32"}).json()["id"]
            job = client.post("/v1/jobs", json=job_body(model, name="linked")).json()["id"]
        for address_of_view, heading in (("/", "Jobs"), (f"/web/#/jobs/{job}", "linked"), ("/web/#/token", "Jobs")):
            context = browser.new_context(base_url=address)
            page = context.new_page()
            page.goto(address_of_view)
            page.get_by_label("Access token from `vitfit token create").fill(secret)
            page.get_by_role("button", name="Use this token").click()
            expect(page.get_by_role("heading", name=heading, exact=True)).to_be_visible()
            assert secret not in page.url
            context.close()


@pytest.mark.slow
def test_the_digits_job_from_the_browser(browser: Browser, tmp_path: Path) -> None:
    document = json.loads((DIGITS / "model.json").read_text())
    with served(tmp_path, "--data", str(tmp_path / "data"), "--port", "0", VITFIT_ENGINE="pipeline") as address:
        page = browser.new_context(base_url=address).new_page()
        page.goto("/")
        fill(page, document["name"], Trials="4")
        page.get_by_text("More options").click()
        page.get_by_label("Arguments of timm").fill(json.dumps(document["options"]))
        page.get_by_label("Preprocessing of an image").fill(json.dumps(document["preprocessing"]))
        page.get_by_label("Method").select_option("cp-vit")
        page.get_by_label("Weights:").set_input_files(DIGITS / "weights.safetensors")
        page.get_by_label("Data:").set_input_files(DIGITS / "digits.npz")
        page.get_by_role("button", name="Submit").click()
        expect(page.locator("#content")).to_have_attribute("data-finished", "succeeded", timeout=900_000)
        models = page.request.get(f"{address}/v1/models").json()["models"]
        assert models[0]["description"]["preprocessing"]["mean"] == document["preprocessing"]["mean"]
        expect(page.locator("rect.kept")).to_have_count(6 * 5)
        expect(page.locator("svg.patches")).to_have_count(8)
        assert int(page.locator("svg.patches").first.get_attribute("data-gone") or 0) > 0
        with page.expect_download() as started:
            page.get_by_role("button", name="model.cpu.onnx").click()
        started.value.save_as(tmp_path / "model.cpu.onnx")
        onnx.checker.check_model(onnx.load(tmp_path / "model.cpu.onnx"), skip_opset_compatibility_check=True)

"""Tests of what the page does while jobs run and when the server goes: it keeps focus and selection, and says so."""

import re
import signal
import socket
from pathlib import Path

from playwright.sync_api import Browser, Page, expect

from latency.measuring.machine_lock import measuring_lease
from tests.service.api.conftest import PATIENCE_MS
from tests.support.running import Server
from tests.support.served import served

LOST = re.compile(r"^Connection lost at \d\d:\d\d\. Trying again\.$")
FOCUSED = "document.activeElement.getAttribute('href')"
SELECT = "(element) => getSelection().selectAllChildren(element)"
SELECTED = "getSelection().toString()"


def polls(page: Page, count: int) -> None:
    """Wait until the list of jobs was asked for this many times."""
    for _ in range(count):
        with page.expect_response(lambda response: "/v1/jobs?" in response.url) as answer:
            pass
        answer.value.finished()


def test_the_list_of_jobs_keeps_focus_and_selection_while_a_job_changes(page: Page, server: Server) -> None:
    model = server.model()
    job = server.submit(model, name="deaf", trials=300)
    page.goto("/web/#/jobs")
    row = page.locator(f"tr[data-key={job}]")
    row.get_by_role("link").focus()
    row.locator("td").nth(4).evaluate(SELECT)
    before = row.locator("progress").get_attribute("value")
    newer = server.submit(model, name="newer", trials=1)  # its row comes above the focused one
    polls(page, 2)
    expect(page.locator(f"tr[data-key={newer}]")).to_be_visible()
    expect(row.locator("progress")).not_to_have_attribute("value", before or "")
    assert page.evaluate(FOCUSED) == f"#/jobs/{job}"
    assert page.evaluate(SELECTED) == "macs_keep 0.6"
    server.client.post(f"/v1/jobs/{job}/cancel")


def test_a_job_page_keeps_the_focused_trial_and_the_selection_while_trials_arrive(page: Page, server: Server) -> None:
    job = server.submit(server.model(), name="watched", trials=300)
    page.goto(f"/web/#/jobs/{job}")
    page.get_by_role("button", name="trial 0: score").focus()
    page.get_by_role("heading", name="watched").evaluate(SELECT)
    page.evaluate("window.seen = document.activeElement")
    seen = page.locator("circle.trial").count()
    expect(page.locator("circle.trial").nth(seen + 20)).to_be_attached()
    assert page.evaluate("document.activeElement === window.seen && window.seen.isConnected")
    assert page.evaluate(SELECTED) == "watched"
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#content")).to_have_attribute("data-finished", "canceled")


def test_one_live_region_says_one_sentence(page: Page, finished_job: str) -> None:
    page.goto(f"/web/#/jobs/{finished_job}")
    expect(page.get_by_role("status")).to_have_text("Job mine: succeeded.")
    assert page.locator("[aria-live], [role=status]").count() == 1 and page.locator("progress").count() == 0
    page.get_by_role("link", name="Jobs", exact=True).click()
    expect(page.get_by_role("status")).to_have_text(re.compile(r"^Jobs: .*\d+ succeeded"))


def test_an_ended_job_has_no_bar_and_no_time_left(page: Page, server: Server, finished_job: str) -> None:
    """A job that needs no pruning ends before its last trial, and its row may still hold an estimate."""
    said = {"succeeded": "1 trial", "failed": "1 of 4", "canceled": "1 of 4"}
    progress = {"trials_done": 1, "trials_total": 4, "best_score": -0.1, "seconds_left": 6678.4}
    common = {**server.job(finished_job), "stage": "verifying", "progress": progress}
    body = {"jobs": [{**common, "id": f"job_{status}", "status": status} for status in said], "next_page_token": None}
    page.route("**/v1/jobs?*", lambda route: route.fulfill(json=body))
    page.goto("/web/#/jobs")
    for status, trials in said.items():
        cells = page.locator(f"tr[data-key=job_{status}] td")
        expect(cells.nth(3)).to_have_text(trials)
        expect(cells.nth(2)).to_have_text("")
    assert page.locator("progress").count() == 0


def test_a_job_says_what_it_measures_and_for_whom_it_waits(browser: Browser, tmp_path: Path) -> None:
    server = Server(tmp_path / "data", VITFIT_FAKE_MEASURE_S="600").start()
    page = browser.new_context(base_url=str(server.client.base_url)).new_page()
    with measuring_lease():
        job = server.submit(server.model(), trials=1)
        page.goto(f"/web/#/jobs/{job}")
        waits = page.get_by_text("running, verifying: waiting: another job measures on this machine")
        expect(waits).to_be_visible(timeout=PATIENCE_MS)
    measures = "measuring candidate 1 of 1, process 1 of 1"
    expect(page.get_by_text(f"running, verifying: {measures}")).to_be_visible(timeout=PATIENCE_MS)
    assert server.job(job)["progress"]["note"] == measures
    page.get_by_text("Log", exact=True).click()
    expect(page.locator("pre")).to_contain_text(measures)
    page.context.close()
    server.end(signal.SIGKILL)


def test_a_lost_server_is_said_and_its_return_too(browser: Browser, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serving = ("--data", str(tmp_path / "data"), "--port", str(port))
    page = browser.new_context().new_page()
    page.set_default_timeout(PATIENCE_MS)
    with served(tmp_path, *serving) as address:
        page.goto(f"{address}/web/#/submit")
        expect(page.get_by_role("button", name="Submit")).to_be_visible()
        page.goto(f"{address}/web/#/jobs")
        expect(page.get_by_text("No jobs yet.")).to_be_visible()
        assert page.locator("#banner").is_hidden()
    expect(page.locator("#banner")).to_have_text(LOST)
    expect(page.get_by_role("status")).to_have_text(LOST)
    assert float(page.locator(".data").evaluate("(data) => getComputedStyle(data).opacity")) < 1
    expect(page.get_by_text("No jobs yet.")).to_be_visible()
    page.get_by_role("link", name="Devices", exact=True).click()
    expect(page.get_by_role("heading", name="Devices cannot be shown")).to_be_visible()
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer. Check that it runs")
    assert page.get_by_text("No jobs yet.").count() == 0
    (tmp_path / "ready").unlink()
    with served(tmp_path, *serving):
        expect(page.get_by_role("cell", name="generic-mobile", exact=True)).to_be_visible()
        expect(page.locator("#banner")).to_be_hidden()
        assert page.locator(".stale").count() == 0
    page.context.close()


def test_submit_and_cancel_say_that_the_server_does_not_answer(browser: Browser, own_server: Server) -> None:
    job = own_server.submit(own_server.model(), trials=300)
    context = browser.new_context(base_url=str(own_server.client.base_url))
    form, view = context.new_page(), context.new_page()
    form.goto("/web/#/submit")
    view.goto(f"/web/#/jobs/{job}")
    expect(form.get_by_role("button", name="Submit")).to_be_visible()
    expect(view.get_by_role("button", name="Cancel")).to_be_visible()
    own_server.end()
    expect(view.locator("#banner")).to_have_text(LOST, timeout=PATIENCE_MS)
    for page, button in ((form, "Submit"), (view, "Cancel")):
        page.get_by_role("button", name=button).click()
        expect(page.get_by_role("alert")).to_contain_text("The server does not answer. Check that it runs")
    expect(form.locator("#banner")).to_have_text(LOST)
    context.close()

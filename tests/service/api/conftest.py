"""Fixtures of the tests of the page: a real browser (Debian's Chromium) without a screen."""

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.support.running import Server

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PATIENCE_MS = 40_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser for one file of tests. Playwright's event loop must not run during other tests."""
    if CHROMIUM is None:
        pytest.skip("needs Debian's chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    """A browser page at the server's address. No script may fail, and the page may load nothing from other servers."""
    context = browser.new_context(base_url=str(server.client.base_url))
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if "Content Security" in message.text else None)
    page.on(
        "request",
        lambda r: None if r.url.startswith((str(server.client.base_url), "blob:", "data:")) else wrong.append(r.url),
    )
    page.set_default_timeout(PATIENCE_MS)
    yield page
    context.close()
    assert not wrong, wrong

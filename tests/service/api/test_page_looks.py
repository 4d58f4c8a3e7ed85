"""Tests of the colours of the page: all text can be read, in the light and in the dark scheme."""

from typing import Literal

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.running import Server

WCAG_AA = 4.5
CONTRASTS = """() => {
  const rgba = (text) => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let place = element; place; place = place.parentElement) {
      const colour = rgba(getComputedStyle(place).backgroundColor);
      if (colour[3] === 1) return colour;
    }
    return null;
  };
  const found = {};
  for (const element of document.body.querySelectorAll("*")) {
    const isText = [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
    if (!isText || !element.checkVisibility() || element.matches("option, title, script, noscript")) continue;
    const style = getComputedStyle(element), back = behind(element);
    const front = rgba(element instanceof SVGElement ? style.fill : style.color);
    const [dark, bright] = [light(front), back === null ? light(front) : light(back)].sort((a, b) => a - b);
    const name = `${element.tagName}.${element.getAttribute("class") ?? element.id}`;
    found[name] = Math.min(found[name] ?? 99, (bright + 0.05) / (dark + 0.05));
  }
  return found;
}"""
"""Return the smallest contrast for each kind of element with text. It is 1 where no element has a background colour."""


def contrasts(page: Page) -> dict[str, float]:
    found: dict[str, float] = page.evaluate(CONTRASTS)
    assert all(contrast >= WCAG_AA for contrast in found.values()), found
    return found


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_enough_contrast(
    browser: Browser, server: Server, finished_job: str, scheme: Literal["light", "dark"]
) -> None:
    failed = server.submit(server.model(), name="impossible")
    server.wait(failed)
    context = browser.new_context(base_url=str(server.client.base_url), color_scheme=scheme)
    page = context.new_page()
    page.goto("/web/#/jobs")
    expect(page.locator("span.succeeded").first).to_be_visible()
    found = contrasts(page)
    assert {"A.", "SPAN.succeeded", "SPAN.failed", "TD.", "TH."} <= set(found)
    page.goto(f"/web/#/jobs/{failed}")
    expect(page.locator("p.error")).to_be_visible()
    assert {"P.error", "SPAN.failed"} <= set(contrasts(page))
    page.goto(f"/web/#/jobs/{finished_job}")
    expect(page.locator("#content")).to_have_attribute("data-finished", "succeeded")
    assert {"text.", "BUTTON."} <= set(contrasts(page))
    page.goto("/web/#/submit")
    page.get_by_text("More options").click()
    assert "LEGEND." in contrasts(page)
    page.goto("/docs")
    assert {"CODE.", "PRE.", "A."} <= set(contrasts(page))
    page.goto("/web/#/submit")
    page.route("**/livez", lambda route: route.abort())
    expect(page.locator("#banner")).to_be_visible(timeout=20_000)
    assert "P.banner" in contrasts(page)
    assert luminance_is_low(page) == (scheme == "dark")
    context.close()


def luminance_is_low(page: Page) -> bool:
    colour: str = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(int(part) for part in colour.removeprefix("rgb(").rstrip(")").split(",")[:3]) < 128

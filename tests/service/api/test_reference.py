"""Tests of /docs: it describes the whole interface, and it needs neither a script nor another host."""

import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from html import unescape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from fastapi.testclient import TestClient
from playwright.sync_api import Browser, Page, expect

from service.api.reference import limits, prose
from tests.support.running import Server


def test_the_page_holds_every_operation_parameter_and_schema(web: TestClient) -> None:
    document, answer = web.get("/openapi.json").json(), web.get("/docs")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
    assert "script-src 'self'" in answer.headers["content-security-policy"]
    page = answer.text
    count = 0
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            count += 1
            section = page.partition(f'<section class="operation" id="{operation["operationId"]}">')[2]
            section = section.partition("</section>")[0]
            assert f"<code>{method.upper()} {path}</code>" in section
            for parameter in operation.get("parameters", []):
                assert f"<td><code>{parameter['name']}</code>" in section, (path, parameter["name"])
            for status in operation["responses"]:
                assert f"<td>{status}</td>" in section, (path, status)
            for media in operation.get("requestBody", {}).get("content", {}):
                assert f"<code>{media}</code>" in section, (path, media)
    assert count == page.count('<section class="operation"') > 30
    for name, schema in document["components"]["schemas"].items():
        section = page.partition(f'<section class="schema" id="{name}">')[2].partition("</section>")[0]
        assert section, name
        for field in schema.get("properties", {}):
            assert f"<td><code>{field}</code>" in section, (name, field)


def test_every_link_on_the_page_leads_somewhere(web: TestClient) -> None:
    page = web.get("/docs").text
    for target in set(re.findall(r'href="#([^"]+)"', page)):
        assert f'id="{target}"' in page, target
    for address in set(re.findall(r'(?:href|src)="(?!#|data:)([^"]+)"', page)):
        assert address.startswith("/"), address
        assert web.get(address).status_code == 200, address


def test_the_page_needs_no_other_host_and_no_script(browser: Browser, server: Server) -> None:
    context = browser.new_context(base_url=str(server.client.base_url), java_script_enabled=False)
    page, asked = context.new_page(), list[str]()
    page.on("request", lambda request: asked.append(request.url))
    page.goto("/docs")
    expect(page.get_by_role("heading", name="POST /v1/jobs", exact=True)).to_be_visible()
    page.get_by_role("navigation", name="Operations").get_by_role("link", name="GET /v1/devices", exact=True).click()
    assert page.url.endswith("/docs#list_devices_v1_devices_get")
    assert len(asked) >= 2 and all(url.startswith((str(server.client.base_url), "data:")) for url in asked), asked
    context.close()


def test_the_page_fits_on_a_phone(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 700})
    page.goto("/docs")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_the_web_page_leads_to_it(page: Page) -> None:
    page.goto("/")
    page.get_by_role("link", name="API", exact=True).click()
    expect(page.get_by_role("heading", name="API of vitfit")).to_be_visible()


@contextmanager
def listening() -> Iterator[tuple[str, list[tuple[str, str, bytes]]]]:
    """A server that takes down what it is sent: method, address and body."""
    taken: list[tuple[str, str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            taken.append((self.command, self.path, self.rfile.read(length)))
            self.send_response(204)
            self.end_headers()

        do_GET = do_POST = do_DELETE = answer

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", taken
        server.shutdown()


def test_the_examples_are_calls_that_a_shell_runs(web: TestClient) -> None:
    page = web.get("/docs").text
    examples = [unescape(found) for found in re.findall(r'<pre tabindex="0">(curl .*?)</pre>', page, re.DOTALL)]
    assert len(examples) >= 31
    wanted = [text for text in examples if "@" not in shlex.split(text)[-1]]  # an upload needs a file
    with listening() as (address, taken):
        variables = {"S": address, "VITFIT_TOKEN": "vft_x", "JOB_ID": "job_1", "MODEL_ID": "mdl_1", "DATASET_ID": "d"}
        variables |= {"NAME": "n", "DEVICE": "agent-a", "TASK": "t", "SHA256": "0", "SESSION": "s"}
        for text in wanted:
            subprocess.run(["sh", "-euc", text], check=True, capture_output=True, env={**os.environ, **variables})
    assert len(taken) == len(wanted)
    assert ("POST", "/v1/jobs/job_1/deliver", b'{"trial": 7}') in taken
    jobs = [json.loads(body) for method, path, body in taken if (method, path) == ("POST", "/v1/jobs")]
    assert jobs[0]["budgets"][0]["metric"] == "latency_keep"


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"default": 50, "minimum": 1}, "<p>Default: <code>50</code>. At least <code>1</code>.</p>"),
        (
            {"anyOf": [{"type": "string", "maxLength": 9}, {"type": "null"}]},
            "<p>At most <code>9</code> characters.</p>",
        ),
        ({}, ""),
    ],
)
def test_limits_are_sentences(schema: dict[str, object], text: str) -> None:
    assert limits(schema) == text


def test_descriptions_are_text_and_never_markup() -> None:
    assert prose("<b> and `x < y`\n\nmore") == "<p>&lt;b&gt; and <code>x &lt; y</code></p><p>more</p>"

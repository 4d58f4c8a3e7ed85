"""Tests of requests that nobody sends by accident: odd page tokens, methods, headers and origins."""

import base64
import json
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from service.middleware.rate_limit import RateLimit
from service.middleware.same_origin import SameOrigin
from tests.support.rest import problem

ODD: list[list[Any]] = [
    ["jobs ", "0001-01-01T00:00:00+14:00", "x"],
    ["jobs ", "9999-12-31T23:59:59-14:00", "x"],
    ["jobs ", "2026-11-30T00:00:00+00:00", "\ud800"],
    ["jobs ", "2026-11-30T00:00:00+00:00", 5],
    ["jobs ", ["2026"], "x"],
    ["jobs ", None, None],
    ["jobs "],
    ["jobs ", "2026-11-30T00:00:00+00:00", "x", "more"],
]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.datetimes().map(str),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


def token(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode()


@pytest.mark.parametrize("value", ODD, ids=lambda value: repr(value)[:40])
def test_a_made_up_page_token_is_refused(web: TestClient, value: list[Any]) -> None:
    problem(web.get("/v1/jobs", params={"page_token": token(value)}), 400, "bad-page-token")


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(after=st.lists(VALUES, max_size=3))
def test_no_page_token_is_an_unexpected_error(web: TestClient, after: list[Any]) -> None:
    for listing in ("jobs ", "models"):
        address = "/v1/jobs" if listing == "jobs " else "/v1/models"
        answer = web.get(address, params={"page_token": token([listing, *after])[:500]})
        assert answer.status_code in (200, 400), answer.text


def test_invented_methods_are_one_label(web: TestClient) -> None:
    for number in range(30):
        web.request(f"METHOD{number}", "/livez")
    text = web.get("/metrics").text
    assert "METHOD" not in text and 'method="other"' in text


@pytest.mark.parametrize("name", ["Content-Type", "Content-Length", "Transfer-Encoding"])
def test_a_header_that_says_two_things_is_refused(web: TestClient, name: str) -> None:
    """The check of a body's size and the parser of the body could read different ones."""
    values = {"Content-Type": ("application/json", "multipart/form-data; boundary=x")}.get(name, ("2", "3"))
    headers = [(name, value) for value in values]
    found = problem(web.post("/v1/models", content=b"{}", headers=headers), 400, "malformed-upload")
    assert name in found["detail"]


async def _fine(scope: Scope, receive: Receive, send: Send) -> None:
    forged = dict(scope["headers"]).get(b"authorization", b"").startswith(b"Bearer forged")
    await PlainTextResponse("", 401 if forged else 200)(scope, receive, send)


def test_forged_tokens_do_not_pass_the_rate_limit() -> None:
    web = TestClient(RateLimit(_fine, 5))
    answers = [web.get("/", headers={"Authorization": f"Bearer forged{n}"}).status_code for n in range(8)]
    assert answers == [401] * 5 + [429] * 3


def test_people_behind_one_address_have_limits_of_their_own() -> None:
    web = TestClient(RateLimit(_fine, 5))
    for person in ("ann", "bob"):
        headers = {"Authorization": f"Bearer {person}"}
        answers = [web.get("/", headers=headers).status_code for _ in range(7)]
        assert answers == [200] * 6 + [429]  # the first request counts for the address, because nobody knew the token


PAGE = {"Sec-Fetch-Site": "same-origin", "Origin": "http://127.0.0.1"}
EVIL = {"Sec-Fetch-Site": "cross-site", "Origin": "http://evil.test"}
LINK = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("POST", PAGE, 200),
        ("POST", {}, 200),
        ("POST", EVIL, 403),
        ("GET", EVIL, 403),
        ("GET", {"Sec-Fetch-Site": "same-site"}, 403),
        ("GET", LINK, 200),
        ("POST", LINK, 403),
        ("POST", {"Origin": "http://evil.test"}, 403),
        ("POST", {"Origin": "null"}, 403),
        ("POST", {"Origin": "http://127.0.0.1"}, 200),
        ("GET", {"Sec-Fetch-Site": "none"}, 200),
    ],
)
@pytest.mark.parametrize("anonymous", [True, False])
def test_pages_of_other_origins_are_refused(method: str, headers: dict[str, str], status: int, anonymous: bool) -> None:
    web = TestClient(SameOrigin(_fine, anonymous), base_url="http://127.0.0.1")
    assert web.request(method, "/v1/jobs", headers=headers).status_code == status


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1:8000", 200), ("localhost", 200), ("[::1]:8000", 200), ("rebind.test", 403), ("", 403)],
)
def test_without_tokens_only_names_of_this_machine_are_answered(host: str, status: int) -> None:
    answer = TestClient(SameOrigin(_fine, True)).get("/", headers={"Host": host})
    assert answer.status_code == status
    assert TestClient(SameOrigin(_fine, False)).get("/", headers={"Host": host}).status_code == 200

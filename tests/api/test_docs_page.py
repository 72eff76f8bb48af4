"""/docs in a real browser: Swagger UI that needs no other server and works after one Authorize."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Request, Response, expect

from mail.kinds import KINDS
from support.api import TestClient
from support.browser import chromium
from support.processes import Api
from support.smtp_server import SmtpServer

KEY = "all-key"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def api(env: Mapping[str, str], tmp_path: Path, smtp: SmtpServer) -> Iterator[Api]:
    with Api(env, tmp_path) as api:
        yield api


@pytest.fixture
def docs(browser: Browser, api: Api) -> Iterator[Page]:
    """The page as it first comes up. Fails the test when it asks another host, or complains on the console."""
    page = browser.new_page()
    elsewhere: list[str] = []
    complaints: list[str] = []

    def note(request: Request) -> None:
        if not request.url.startswith((f"{api.url}/", "data:", "blob:")):
            elsewhere.append(request.url)

    page.on("request", note)
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(f"{api.url}/")
    yield page
    page.close()
    assert elsewhere == []
    assert complaints == []


def authorize(page: Page, scheme: str) -> None:
    page.get_by_role("button", name="Authorize").click()
    dialog = page.locator(".auth-container").filter(has_text=scheme)
    dialog.locator("input").fill(KEY)
    dialog.get_by_role("button", name="Apply credentials").click()
    page.get_by_role("button", name="Close", exact=True).first.click()


def open_operation(page: Page, summary: str) -> Any:
    operation = page.locator(".opblock").filter(has=page.get_by_text(summary, exact=True))
    operation.locator(".opblock-summary").click()
    return operation


def execute(page: Page, operation: Any) -> Response:
    with page.expect_response(lambda answer: "/api/" in answer.url) as caught:
        operation.get_by_role("button", name="Execute").click()
    return caught.value


@pytest.mark.parametrize("scheme", ["HTTPBearer", "X-API-Key"])
def test_after_one_authorize_every_kind_is_sent_with_its_example(docs: Page, scheme: str) -> None:
    authorize(docs, scheme)
    operation = open_operation(docs, "Send an email")
    ids = {}
    for kind in KINDS:
        if kind != next(iter(KINDS)):  # the first example is there already
            operation.locator(".examples-select-element").first.select_option(kind)
        answer = execute(docs, operation)
        assert answer.status == 202, answer.text()
        assert json.loads(answer.request.post_data or "")["kind"] == kind
        ids[kind] = answer.json()["id"]
        expect(operation.locator(".live-responses-table .response-col_status").last).to_contain_text("202")
        expect(operation.locator(".live-responses-table")).to_contain_text(ids[kind])
    operation = open_operation(docs, "One email with its timeline")
    operation.get_by_placeholder("email_id").fill(ids["welcome"])
    assert execute(docs, operation).json()["kind"] == "welcome"


def test_the_key_is_still_there_after_a_reload(docs: Page) -> None:
    authorize(docs, "HTTPBearer")
    docs.reload()
    assert execute(docs, open_operation(docs, "List emails")).status == 200


def test_nothing_from_elsewhere_is_allowed(client: TestClient) -> None:
    answer = client.get("/docs")
    assert "http" not in answer.text
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert client.get("/docs/files/nothing.js").status_code == 404

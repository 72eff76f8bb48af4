"""Errors that no field causes: wrong address, wrong method, too large, our own fault; and CORS."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi import FastAPI

from support.api import MARK, TestClient, problem
from support.service import WELCOME


@pytest.mark.parametrize(
    "path", ["/nope", "/docs/nope", f"/{MARK}", "/api", "/api/nope", "/health", "/api/emails/a/b/c", "/%ff"]
)
def test_unknown_path(client: TestClient, stranger: TestClient, path: str) -> None:
    for somebody in (client, stranger):
        problem(somebody.get(path), 404)


def test_no_redirect_to_whatever_host_was_named(client: TestClient) -> None:
    answer = client.get("/api/emails/", headers={"Host": "evil.example"}, follow_redirects=False)
    problem(answer, 404)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/api/emails", "GET, POST"),
        ("PUT", "/api/emails", "GET, POST"),
        ("OPTIONS", "/api/emails", "GET, POST"),
        ("DELETE", "/api/emails/some-id", "GET"),
        ("GET", "/api/batches/some-id/pause", "POST"),
        ("POST", "/api/tasks/some-id", "GET"),
        ("POST", "/health/live", "GET"),
        ("BREW", "/api/emails", "GET, POST"),
    ],
)
def test_wrong_method(client: TestClient, method: str, path: str, allowed: str) -> None:
    answer = client.request(method, path)
    problem(answer, 405)
    assert answer.headers["Allow"] == allowed


class TestTooLarge:
    LIMIT = 2_000

    @pytest.fixture
    def narrow(self, open_api: Callable[..., TestClient]) -> TestClient:
        return open_api(MAX_BODY_BYTES=str(self.LIMIT))

    def body(self, size: int) -> bytes:
        content = b'{"kind":"custom","to":"ada@example.com","subject":"x","text":"%s"}'
        return content.replace(b"%s", b"x" * (size - len(content) + 2))

    def post(self, client: TestClient, content: bytes | Iterator[bytes]) -> Any:
        return client.post("/api/emails", content=content, headers={"Content-Type": "application/json"})

    def test_one_byte_decides(self, narrow: TestClient, untouched: Callable[[], None]) -> None:
        answer = self.post(narrow, self.body(self.LIMIT + 1))
        assert "MAX_BODY_BYTES" in problem(answer, 413)["detail"]
        untouched()
        assert self.post(narrow, self.body(self.LIMIT)).status_code == 202

    def test_in_chunks(self, narrow: TestClient, untouched: Callable[[], None]) -> None:
        def chunks(size: int) -> Iterator[bytes]:
            whole = self.body(size)
            yield from (whole[start : start + 100] for start in range(0, size, 100))

        problem(self.post(narrow, chunks(self.LIMIT + 1)), 413)
        untouched()
        assert self.post(narrow, chunks(self.LIMIT)).status_code == 202

    @pytest.mark.parametrize("length", [b"2001", b"9" * 5000, b"many", b"-1", "²".encode("latin-1")])
    def test_refused_before_it_is_read(self, narrow: TestClient, length: bytes) -> None:
        assert isinstance(narrow.app, FastAPI)
        app, sent = narrow.app, []

        async def receive() -> Any:
            raise AssertionError("the body was read")

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/api/emails", "headers": [(b"content-length", length)]}
        asyncio.run(app(scope, receive, send))
        assert sent[0]["status"] == 413


def test_our_own_fault(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> Any:
        raise RuntimeError(f"{MARK} in a trace")

    monkeypatch.setattr("api.emails.get_outbox", fails)
    monkeypatch.setattr("api.emails.enqueue", fails)
    monkeypatch.setattr("api.emails.send", fails)
    for method, path, body in [
        ("GET", "/api/emails", None),
        ("GET", "/api/emails/some-id", None),
        ("POST", "/api/emails", WELCOME),
        ("POST", "/api/emails?wait=true", WELCOME),
    ]:
        assert "log" in problem(client.request(method, path, json=body), 500)["detail"]


ORIGIN = "https://lms.example.com"
PREFLIGHT = {
    "Origin": ORIGIN,
    "Access-Control-Request-Method": "GET",
    "Access-Control-Request-Headers": "authorization",
}


class TestCors:
    def test_off_by_default(self, client: TestClient) -> None:
        problem(client.options("/api/emails", headers=PREFLIGHT), 405)
        answer = client.get("/api/emails", headers={"Origin": ORIGIN})
        assert not [name for name in answer.headers if name.startswith("access-control")]

    def test_for_one_origin(self, open_api: Callable[..., TestClient]) -> None:
        client = open_api(CORS_ORIGINS=ORIGIN)
        answer = client.options("/api/emails", headers=PREFLIGHT)
        assert answer.status_code == 200
        assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
        answer = client.get("/api/emails", headers={"Origin": ORIGIN})
        assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
        answer = client.get("/api/emails", headers={"Origin": "https://evil.example"})
        assert "Access-Control-Allow-Origin" not in answer.headers

"""Keys and scopes: who may do what, and what a stranger learns."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI

from support.api import MARK, TestClient, bearer, problem
from support.batches import MAIL, people
from support.service import WELCOME

CUSTOM = {"kind": "custom", "to": "ada@example.com", "subject": "News", "text": "Hello"}
# Method, path, body, scope.
ROUTES: list[tuple[str, str, Any, str]] = [
    ("POST", "/api/emails", WELCOME, "send"),
    ("POST", "/api/emails", CUSTOM, "custom"),
    ("POST", "/api/emails?wait=true", WELCOME, "send"),
    ("POST", "/api/emails?wait=true", CUSTOM, "custom"),
    ("GET", "/api/emails", None, "read"),
    ("GET", "/api/emails/{email_id}", None, "read"),
    ("POST", "/api/emails/{email_id}/cancel", None, "admin"),
    ("POST", "/api/emails/{email_id}/retry", None, "admin"),
    ("POST", "/api/batches", {**MAIL, "recipients": people(1)}, "bulk"),
    ("GET", "/api/batches", None, "read"),
    ("GET", "/api/batches/{batch_id}", None, "read"),
    ("GET", "/api/batches/{batch_id}/recipients", None, "read"),
    ("GET", "/api/batches/{batch_id}/events", None, "read"),
    ("POST", "/api/batches/{batch_id}/pause", None, "bulk"),
    ("POST", "/api/batches/{batch_id}/resume", None, "bulk"),
    ("POST", "/api/batches/{batch_id}/cancel", None, "bulk"),
    ("POST", "/api/batches/{batch_id}/retry-failed", None, "bulk"),
    ("POST", "/api/batches/{batch_id}/release-held", None, "bulk"),
    ("POST", "/api/batches/{batch_id}/drop-held", None, "bulk"),
    ("GET", "/api/tasks/{task_id}", None, "read"),
]
SCOPES = ("send", "custom", "bulk", "read", "admin")
ONE_KEY_PER_SCOPE = ",".join(f"{scope}:{scope}:{scope}-key" for scope in SCOPES)

WRONG_KEYS: list[dict[str, str]] = [
    {},
    bearer("wrong-key"),
    {"X-API-Key": "wrong-key"},
    bearer(""),
    {"X-API-Key": ""},
    {"Authorization": "all-key"},
    {"Authorization": "Basic all-key"},
    {"Authorization": "Bearer"},
    bearer("all-key,other-key"),
    bearer("ALL-KEY"),
]

every_route = pytest.mark.parametrize(("method", "path", "body", "scope"), ROUTES)


def test_the_table_above_is_whole(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    described = {(method.upper(), path) for path in paths for method in paths[path] if path.startswith("/api")}
    assert described == {(method, path.partition("?")[0]) for method, path, _, _ in ROUTES}


@every_route
def test_strangers(
    stranger: TestClient, untouched: Callable[[], None], method: str, path: str, body: Any, scope: str
) -> None:
    for headers in WRONG_KEYS:
        answer = stranger.request(method, path, json=body, headers=headers)
        detail = problem(answer, 401)["detail"]
        assert detail.startswith("This API key is not known" if headers else "An API key is needed"), headers
        assert "Authorization: Bearer" in detail
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    untouched()


def test_a_key_that_is_not_ascii(stranger: TestClient) -> None:
    problem(stranger.get("/api/emails", headers={"Authorization": "Bearer clé".encode()}), 401)
    problem(stranger.get("/api/emails", headers={"X-API-Key": "clé".encode("latin-1")}), 401)


@every_route
def test_scopes(
    open_api: Callable[..., TestClient],
    untouched: Callable[[], None],
    method: str,
    path: str,
    body: Any,
    scope: str,
) -> None:
    client = open_api(API_KEYS=ONE_KEY_PER_SCOPE)
    for other in SCOPES:
        if other != scope:
            answer = client.request(method, path, json=body, headers=bearer(f"{other}-key"))
            assert problem(answer, 403)["detail"] == f"This key lacks the scope {scope}."
    untouched()
    for headers in (bearer(f"{scope}-key"), {"X-API-Key": f"{scope}-key"}, {"Authorization": f"bearer {scope}-key"}):
        # The client's own key, which opens nothing here, would go first.
        answer = TestClient(client.app).request(method, path, json=body, headers=headers)
        assert answer.status_code in (200, 202, 404), answer.text


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[" * 100_000, b"\xff", MARK.encode(), b'{"kind":"nope"}', b'{"kind":"welcome"}']
)
def test_a_stranger_learns_nothing_about_the_body(stranger: TestClient, content: bytes) -> None:
    answer = stranger.post("/api/emails", content=content, headers={"Content-Type": "application/json"})
    assert "errors" not in problem(answer, 401)


def test_a_strangers_body_is_not_even_read(client: TestClient) -> None:
    assert isinstance(client.app, FastAPI)
    app, sent = client.app, []

    async def receive() -> Any:
        raise AssertionError("the body was read")

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/api/emails",
        "raw_path": b"/api/emails",
        "root_path": "",
        "scheme": "http",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"content-length", b"10")],
    }
    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 401


def test_development_without_keys_says_what_to_do(open_api: Callable[..., TestClient]) -> None:
    client = open_api(API_KEYS="")
    for headers in ({}, bearer(""), bearer("anything")):
        detail = problem(client.get("/api/emails", headers=headers), 401)["detail"]
        assert "API_KEYS=" in detail
        assert "backend/.env" in detail


def test_a_key_of_two_scopes_does_both(open_api: Callable[..., TestClient]) -> None:
    client = open_api(API_KEYS="lms:send+read:lms-key")
    answer = client.post("/api/emails", json=WELCOME, headers=bearer("lms-key"))
    assert answer.status_code == 202
    assert client.get(answer.json()["status_url"], headers=bearer("lms-key")).status_code == 200
    problem(client.post("/api/emails", json=CUSTOM, headers=bearer("lms-key")), 403)

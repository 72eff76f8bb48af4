"""Redis stopped, frozen or full: a clear 503 within two seconds, nothing refused is ever sent, and it recovers."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mail.outbox import Outbox
from support.api import TestClient, problem
from support.processes import Valkey, wait_until
from support.service import WELCOME

CALLS: list[tuple[str, str, Any]] = [
    ("POST", "/api/emails", WELCOME),
    ("POST", "/api/emails", {"kind": "password_reset", "to": "a@b.co", "name": "A", "reset_url": "https://b.co/"}),
    ("GET", "/api/emails", None),
    ("GET", "/api/emails/some-id", None),
    ("POST", "/api/emails/some-id/cancel", None),
    ("POST", "/api/emails/some-id/retry", None),
    ("GET", "/api/tasks/some-id", None),
    ("GET", "/health/ready", None),
]


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Valkey]:
    """A Valkey that may be hurt."""
    with Valkey(tmp_path) as server:
        yield server


@pytest.fixture
def client(own: Valkey, open_api: Callable[..., TestClient]) -> TestClient:
    return open_api(REDIS_URL=own.url)


def mail_to(person: str) -> dict[str, str]:
    return {**WELCOME, "to": f"{person}@example.com"}


def refused(client: TestClient, call: tuple[str, str, Any]) -> dict[str, Any]:
    """The 503 that a call gets, in time and with a hint when to come back."""
    method, path, body = call
    begun = time.monotonic()
    answer = client.request(method, path, json=body)
    took = time.monotonic() - begun
    found = problem(answer, 503)
    assert took < 2, f"{method} {path} took {took:.1f} s"
    assert int(answer.headers["Retry-After"]) >= 1
    assert "Redis" in found["detail"]
    return found


def all_at_once(client: TestClient, calls: list[tuple[str, str, Any]]) -> list[dict[str, Any]]:
    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(lambda call: refused(client, call), calls))


def recovers(client: TestClient) -> None:
    wait_until(lambda: client.get("/health/ready").status_code == 200, timeout=10, what="the API to recover")
    assert client.post("/api/emails", json=mail_to("recovered")).status_code == 202


def holds(client: TestClient) -> set[str]:
    """Who has mail in the outbox."""
    return {item["to"].partition("@")[0] for item in client.get("/api/emails").json()["items"]}


def test_stopped(client: TestClient, own: Valkey) -> None:
    assert client.post("/api/emails", json=mail_to("before")).status_code == 202
    own.stop()
    for call in CALLS:
        found = refused(client, call)
        assert "id" not in found
    assert client.get("/health/live").status_code == 200
    own.start()
    recovers(client)
    assert holds(client) == {"before", "recovered"}


def test_killed_between_two_calls(client: TestClient, own: Valkey) -> None:
    """The kept connection is dead, and nobody need know."""
    assert client.post("/api/emails", json=mail_to("before")).status_code == 202
    own.kill()
    own.start()
    assert client.post("/api/emails", json=mail_to("after")).status_code == 202
    assert holds(client) == {"before", "after"}


def test_frozen(client: TestClient, own: Valkey) -> None:
    assert client.post("/api/emails", json=mail_to("before")).status_code == 202
    own.freeze()
    all_at_once(client, CALLS)
    all_at_once(client, [("POST", "/api/emails", mail_to(f"refused{number}")) for number in range(8)])
    assert client.get("/health/live").status_code == 200
    own.thaw()
    recovers(client)
    assert holds(client) == {"before", "recovered"}


def test_frozen_before_the_first_call(client: TestClient, own: Valkey) -> None:
    own.freeze()
    all_at_once(client, [("POST", "/api/emails", mail_to(f"refused{number}")) for number in range(4)])
    own.thaw()
    recovers(client)
    assert holds(client) == {"recovered"}


def test_what_is_in_doubt_can_be_repeated(
    client: TestClient, own: Valkey, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write is on its way when Redis freezes, so the refusal carries the id."""
    monkeypatch.setattr(outbox, "_memory_checked", float("inf"))  # a look at the memory would be refused first
    headers = {"Idempotency-Key": "order-1"}
    assert client.post("/api/emails", json=mail_to("before")).status_code == 202
    own.freeze()
    answer = client.post("/api/emails", json=mail_to("doubtful"), headers=headers)
    found = problem(answer, 503)
    assert found["id"]
    assert "Idempotency-Key" in found["detail"]
    own.thaw()
    recovers(client)
    again = client.post("/api/emails", json=mail_to("doubtful"), headers=headers)
    assert again.status_code == 202
    assert holds(client) == {"before", "doubtful", "recovered"}
    assert len(client.get("/api/emails", params={"to": "doubtful@example.com"}).json()["items"]) == 1


def test_never_reached(tmp_path: Path, open_api: Callable[..., TestClient]) -> None:
    """The API starts without Redis, and works as soon as it is there."""
    late = Valkey(tmp_path)
    client = open_api(REDIS_URL=late.url)
    refused(client, ("POST", "/api/emails", WELCOME))
    with late:
        recovers(client)


def test_nearly_full(client: TestClient, own: Valkey) -> None:
    email_id = client.post("/api/emails", json=WELCOME).json()["id"]
    with own.client() as direct:
        for number in range(100):  # one large value would count twice, its query buffer too
            direct.set(f"filler{number}", "x" * 100_000)
        # On a slow disk the append-only file lags behind, and its buffer counts.
        wait_until(lambda: direct.info("persistence")["aof_buffer_length"] == 0, what="the append-only file")
        direct.config_set("maxmemory", int(direct.info("memory")["used_memory"] / 0.95))
        # Memory is looked at once a second.
        wait_until(lambda: client.post("/api/emails", json=WELCOME).status_code == 503, what="a refusal")
        assert "full" in refused(client, ("POST", "/api/emails", WELCOME))["detail"]
        # What is there can still be seen and stopped.
        assert client.post(f"/api/emails/{email_id}/cancel").status_code == 200
        warnings = client.get("/health/ready").json()["warnings"]
        assert any("90 %" in warning for warning in warnings)
        direct.config_set("maxmemory", 0)
    recovers(client)

"""`/health`: who is told what. Redis stopped or frozen is in test_redis_faults.py."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mail.kinds import Lane, WelcomeEmail
from mail.outbox import Outbox
from support.api import TestClient, bearer
from support.processes import Valkey


def warnings_of(client: TestClient) -> list[str]:
    answer = client.get("/health/ready")
    assert answer.status_code == 200
    found: list[str] = answer.json()["warnings"]
    return found


def test_live_needs_nothing(open_api: Callable[..., TestClient]) -> None:
    client = open_api(REDIS_URL="redis://127.0.0.1:1/0")
    answer = client.get("/health/live", headers={"Authorization": ""})
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


@pytest.mark.parametrize("headers", [{}, bearer("wrong-key"), bearer("send-key"), {"X-API-Key": "send-key"}])
def test_ready_tells_only_readers_more(stranger: TestClient, headers: dict[str, str]) -> None:
    answer = stranger.get("/health/ready", headers=headers)
    why = {"detail": "Warnings are shown to a key with the scope read."} if headers else {}
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"} | why)


def test_ready_with_a_read_key(stranger: TestClient, outbox: Outbox) -> None:
    outbox.accept(WelcomeEmail.sample())
    body = stranger.get("/health/ready", headers=bearer("read-key")).json()
    assert set(body) == {"status", "warnings", "lanes"}
    assert set(body["lanes"]) == set(Lane)
    assert set(body["lanes"]["critical"]) == {"due", "oldest_due_seconds", "nodes", "held", "slowed"}
    assert [warning.partition(":")[0] for warning in body["warnings"]] == list(Lane)


def test_no_warning_when_all_is_well(client: TestClient, outbox: Outbox) -> None:
    for lane in Lane:
        outbox.sweep(lane, 1, "node@here")
    assert warnings_of(client) == []
    assert client.get("/health/ready").json()["lanes"]["bulk"]["nodes"] == 1


def test_a_fault_of_the_smtp_server_is_told(client: TestClient, outbox: Outbox) -> None:
    email_id = outbox.accept(WelcomeEmail.sample()).id
    outbox.claim(email_id, "t", "node")
    outbox.settle(email_id, "t", "release", gate="smtp", error="535 5.7.8 wrong password", cap=60_000)
    told = [warning for warning in warnings_of(client) if "535 5.7.8 wrong password" in warning]
    assert len(told) == len(Lane)
    assert client.get("/health/ready").json()["lanes"]["critical"]["held"] is True


def test_a_slowed_lane_is_told(client: TestClient, outbox: Outbox) -> None:
    email_id = outbox.accept(WelcomeEmail.sample()).id
    outbox.claim(email_id, "t", "node")
    outbox.settle(email_id, "t", "release", slow=True, error="421 too many")
    told = [warning for warning in warnings_of(client) if "421" in warning]
    assert [warning.partition(" (since")[0] for warning in told] == ["standard: mail is slowed: 421 too many"]


def test_a_careless_redis_is_told(tmp_path: Path, open_api: Callable[..., TestClient]) -> None:
    options = {"appendonly": "no", "maxmemory": "100mb", "maxmemory-policy": "allkeys-lru"}
    with Valkey(tmp_path, **options) as careless:
        told = warnings_of(open_api(REDIS_URL=careless.url))
    assert any("append-only" in warning for warning in told)
    assert any("allkeys-lru" in warning for warning in told)


def test_a_redis_that_forbids_info_is_no_failure(tmp_path: Path, open_api: Callable[..., TestClient]) -> None:
    with Valkey(tmp_path) as strict, strict.client() as direct:
        direct.acl_setuser("mail", enabled=True, passwords=["+secret"], keys=["*"], commands=["+@all", "-info"])
        client = open_api(REDIS_URL=strict.url.replace("//", "//mail:secret@"))
        assert any("forbids INFO" in warning for warning in warnings_of(client))
        body = WelcomeEmail.sample().model_dump(exclude_none=True)
        assert client.post("/api/emails", json=body).status_code == 202

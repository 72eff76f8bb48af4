"""Requests per key and minute, and wrong keys per client address."""

from collections.abc import Callable

import pytest

from api.auth import network_of
from support.api import TestClient, bearer, problem
from support.batches import MAIL, people
from support.service import WELCOME
from utils.composition import WRONG_KEYS_PER_MINUTE


def test_a_key_has_so_many_requests(open_api: Callable[..., TestClient]) -> None:
    client = open_api(API_REQUESTS_PER_MINUTE="3")
    for left in (2, 1, 0):
        answer = client.post("/api/emails", json=WELCOME)
        assert answer.status_code == 202
        assert answer.headers["RateLimit-Policy"] == '"key";q=3;w=60'
        assert answer.headers["RateLimit"].startswith(f'"key";r={left};t=')
    for method, path in (("POST", "/api/emails"), ("GET", "/api/emails"), ("GET", "/api/tasks/x")):
        answer = client.request(method, path, json=WELCOME)
        assert problem(answer, 429)["detail"].startswith("This API key made over 3 requests in a minute.")
        assert 1 <= int(answer.headers["Retry-After"]) <= 20
        assert answer.headers["RateLimit"].startswith('"key";r=0;t=')
    assert client.get("/api/emails", headers=bearer("other-key")).status_code == 200
    assert client.get("/health/live").status_code == 200
    assert client.get("/health/ready").status_code == 200


def test_a_batch_is_one_request_and_a_wrong_one_counts(open_api: Callable[..., TestClient]) -> None:
    client = open_api(API_REQUESTS_PER_MINUTE="2")
    assert client.post("/api/batches", json={**MAIL, "recipients": people(50)}).status_code == 202
    problem(client.post("/api/emails", json={}), 422)
    problem(client.get("/api/batches"), 429)


def test_none_where_it_is_off(open_api: Callable[..., TestClient]) -> None:
    client = open_api(API_REQUESTS_PER_MINUTE="0")
    answer = client.get("/api/emails")
    assert answer.status_code == 200
    assert "RateLimit" not in answer.headers


def test_wrong_keys_are_limited_and_right_ones_are_not(client: TestClient, stranger: TestClient) -> None:
    for number in range(WRONG_KEYS_PER_MINUTE):
        problem(stranger.get("/api/emails", headers=bearer(f"guess-{number}")), 401)
    for _ in range(WRONG_KEYS_PER_MINUTE):  # on a slow machine some have become free again meanwhile
        answer = stranger.get("/api/emails", headers={"X-API-Key": "guess"})
        if answer.status_code != 401:
            break
    problem(answer, 429)
    assert answer.headers["Retry-After"] == "1"
    assert client.get("/api/emails").status_code == 200
    problem(stranger.get("/api/emails"), 401)  # no key is no guess
    elsewhere = TestClient(client.app, client=("192.0.2.7", 50_000))
    problem(elsewhere.get("/api/emails", headers=bearer("guess")), 401)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8:0:0:ffff::2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("192.0.2.1", "192.0.2.2", False),
        ("", "testclient", False),
    ],
)
def test_a_client_by_its_address(one: str, other: str, same: bool) -> None:
    assert (network_of(one) == network_of(other)) is same

"""A Flower without a password of its own is for this machine's user, not for the pages that are open in a browser."""

import httpx
import pytest

HERE = {"Sec-Fetch-Site": "same-origin"}
FOREIGN: list[dict[str, str]] = [
    {"Host": "evil.example"},  # DNS rebinding
    {"Host": "127.0.0.1.evil.example:5555"},
    {"Host": "192.0.2.1"},
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "empty"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "image"},
    {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Dest": "script"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
@pytest.mark.parametrize("path", ["/api/tasks", "/tasks", "/metrics"])
def test_pages_of_other_sites_are_refused(flower: httpx.Client, headers: dict[str, str], path: str) -> None:
    answer = flower.get(path, headers=headers)
    assert answer.status_code == 403
    assert "Access-Control-Allow-Origin" not in answer.headers


def test_nothing_is_changed_from_elsewhere(flower: httpx.Client) -> None:
    form = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "document"}
    assert flower.post("/api/task/revoke/x", headers=form).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {},
        HERE,
        {"Host": "localhost:5555"},
        {"Host": "[::1]:5555"},
        {"Sec-Fetch-Site": "none", "Sec-Fetch-Dest": "document"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "document"},  # a link in the docs
    ],
    ids=str,
)
def test_its_own_page_and_links_to_it_work(flower: httpx.Client, headers: dict[str, str]) -> None:
    assert flower.get("/workers", headers=headers).status_code == 200
    assert flower.get("/api/workers", headers=headers).status_code == 200

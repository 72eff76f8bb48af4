"""Batches through the HTTP API, and the account: what the service says of each recipient against what arrived."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import httpx

from support.processes import wait_until

MAIL = {
    "subject": "News of {{ course }}, {{ name }}",
    "html": "<p>Dear {{ name }},</p><p>the next lesson of <b>{{ course }}</b> begins on Monday.</p>",
}


def people(count: int, *, first: int = 0) -> list[dict[str, Any]]:
    """Recipients `p0@example.com` and so on, with what MAIL needs."""
    return [
        {"to": f"p{number}@example.com", "name": f"Ada {number}", "data": {"course": "Algebra"}}
        for number in range(first, first + count)
    ]


def start_batch(http: httpx.Client, recipients: Iterable[Mapping[str, Any]], **more: object) -> str:
    """The id of a new batch of MAIL."""
    answer = http.post("/api/batches", json={**MAIL, "recipients": [*recipients], **more}, timeout=300)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def batch(http: httpx.Client, batch_id: str) -> dict[str, Any] | None:
    """`GET /api/batches/{id}`, whose counts add up whenever one looks; None while the API has no Redis."""
    answer = http.get(f"/api/batches/{batch_id}")
    if answer.status_code == 503:
        return None
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    assert sum(found["counts"].values()) == found["total"], found
    return found


def has_ended(http: httpx.Client, batch_id: str) -> dict[str, Any] | None:
    """The batch, if it has ended and nothing of it is in flight."""
    found = batch(http, batch_id)
    if not found or any(found["counts"].get(state) for state in ("scheduled", "queued", "sending", "retrying")):
        return None
    return found if found["state"] in ("finished", "cancelled") else None


def wait_for_end(http: httpx.Client, batch_id: str, *, timeout: float) -> dict[str, Any]:
    """The batch, once it has ended by itself."""
    return wait_until(lambda: has_ended(http, batch_id), timeout=timeout, what="the end of the batch") or {}


def recipients(http: httpx.Client, batch_id: str, **query: str) -> list[dict[str, Any]]:
    """All recipients, page by page."""
    found: list[dict[str, Any]] = []
    cursor: str | None = None
    while True:
        page = http.get(
            f"/api/batches/{batch_id}/recipients", params={**query, **({"cursor": cursor} if cursor else {})}
        )
        assert page.status_code == 200, page.text
        found += page.json()["items"]
        cursor = page.json()["next"]
        if cursor is None:
            return found


def faults(found: Mapping[str, Any], people: Iterable[Mapping[str, Any]], copies: Mapping[str, int]) -> list[str]:
    """Whatever is not exact, in words: `found` is the batch, `people` its recipients, `copies` the messages that
    arrived for each email id.

    A recipient that is sent got one, one that is held got one or none, and any other got none.
    """
    people = [*people]
    wrong = [] if sum(found["counts"].values()) == found["total"] else ["the counts do not add up to the total"]
    if Counter(one["state"] for one in people) != Counter(found["counts"]):
        wrong.append("the counts differ from the states of the recipients")
    if [one["position"] for one in people] != [*range(found["total"])]:
        wrong.append("the recipients are not each there once, in order")
    allowed = {"sent": (1,), "held": (0, 1)}
    wrong += [
        f"{one['to']} is {one['state']}, and {copies.get(one['id'], 0)} arrived"
        for one in people
        if copies.get(one["email_id"], 0) not in allowed.get(one["state"], (0,))
    ]
    strangers = {email_id for email_id in copies if email_id.startswith(found["id"])} - {
        one["email_id"] for one in people
    }
    return [*wrong, *(f"{email_id} arrived, and is no recipient" for email_id in strangers)]

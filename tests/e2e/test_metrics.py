"""/metrics and the webhook over a real service under a mixed load: every number against the records, every alert
against what happened."""

import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from support.batches import has_ended, people, recipients, start_batch
from support.processes import wait_until
from support.receiver import SECRET, Receiver, verify
from support.service import Service

Build = Callable[..., Service]
Numbers = Counter[tuple[str, ...]]


def scrape(service: Service) -> dict[str, Numbers]:
    """Every metric that has a kind, by kind, lane and, where there is one, state or cause. Without a key: this is the
    same machine."""
    answer = httpx.get(f"{service.http.base_url}/metrics", timeout=10)
    assert answer.status_code == 200
    found: dict[str, Numbers] = {}
    for family in text_string_to_metric_families(answer.text):
        for one in family.samples:
            key = tuple(one.labels[name] for name in ("kind", "lane", "state", "cause") if name in one.labels)
            found.setdefault(one.name.removeprefix("lms_mail_"), Counter())[key] += int(one.value)
    return found


def records(service: Service, batches: list[str]) -> list[dict[str, Any]]:
    """Every record there is, as the API shows it."""
    found: list[dict[str, Any]] = []
    for query in ({}, *({"batch": one} for one in batches)):
        cursor: dict[str, str] = {}
        while True:
            page = service.http.get("/api/emails", params={**query, "limit": "100", **cursor}).json()
            found += page["items"]
            if page["next"] is None:
                break
            cursor = {"cursor": page["next"]}
    return found


def compare(found: dict[str, Numbers], there: list[dict[str, Any]], singles: list[dict[str, Any]]) -> None:
    emails = Counter((one["kind"], one["lane"], one["state"]) for one in there)
    assert +found["emails"] == emails
    assert min(found["emails"].values()) == 0
    assert +found["accepted_total"] == Counter((one["kind"], one["lane"]) for one in there)
    copies = Counter((one["kind"], one["lane"]) for one in there if one["possible_duplicate"])
    assert +found["possible_duplicates_total"] == copies
    # How often a single email came to an end is in its timeline.
    for state in ("sent", "failed", "cancelled", "expired"):
        ends = Counter(
            (one["kind"], one["lane"])
            for one in singles
            for change in one["timeline"]
            if change["state"] == state and "more than once" not in (change["note"] or "")
        )
        counted: Numbers = Counter()
        for (kind, lane, *_), count in found[f"{state}_total"].items():
            counted[kind, lane] += count if lane != "bulk" else 0
        assert +counted == ends, state


def test_a_mixed_load(build: Build) -> None:
    with Receiver(answers=[503, "hang"]) as receiver:
        service = build(
            LEASE_SECONDS="4",
            WORKER_CONCURRENCY="4",
            RETRY_BASE_SECONDS="1",
            RETRY_MAX_SECONDS="1",
            RETRY_ATTEMPTS="2",
            ALERT_WEBHOOK_URL=receiver.url,
            ALERT_WEBHOOK_SECRET=SECRET,
            ALERT_INTERVAL_SECONDS="1",
        )
        service.api()
        run(service)
        told(service, receiver)


def run(service: Service) -> None:
    """Everything at once, and a worker that is killed in the middle of it."""
    smtp = service.smtp
    smtp.delay("dot", 0.02)
    smtp.reply("rcpt", "550 5.1.1 no such user", when=lambda to: to.startswith("bad"))
    smtp.reply("rcpt", "451 4.7.1 later", when=lambda to: to.startswith("grey"))
    smtp.reply("rcpt", "451 4.7.1 later", when=lambda to: to.startswith("soon"), times=3)
    smtp.cut("dot-after-store", when=lambda to: to.startswith("cut"))
    soon = (datetime.now(UTC) + timedelta(seconds=2)).isoformat()
    for number in range(15):
        for word in ("good", "bad", "grey", "soon") if number < 4 else ("good",):
            service.send({"kind": "welcome", "to": f"{word}{number}@example.com", "name": "Ada"})
    reset = {"kind": "password_reset", "name": "Ada", "reset_url": "https://lms.example.com/r?token=x"}
    service.send({**reset, "to": "late@example.com", "expires_at": soon})
    service.send({**reset, "to": "twice@example.com"})
    service.send({**reset, "to": "twice@example.com"})  # supersedes the one before
    wait_until(lambda: service.states().get("queued"), what="the mail")
    time.sleep(2.1)  # the first reset expires while there is no worker

    odd = [
        {"to": f"{word}-b{number}@example.com", "name": "Ada", "data": {"course": "Algebra"}}
        for word in ("bad", "grey", "cut")
        for number in range(4)
    ]
    held = start_batch(service.http, [*people(150), *odd])
    resent = start_batch(service.http, [*people(60, first=500), *odd], on_unknown="resend")
    later = start_batch(service.http, people(40), send_at=(datetime.now(UTC) + timedelta(hours=1)).isoformat())
    first = service.worker(lanes="critical,standard,bulk")
    smtp.wait_for(60)
    first.kill()
    service.worker(lanes="critical,standard,bulk")
    service.http.post(f"/api/batches/{later}/cancel").raise_for_status()
    for one in (held, resent):
        wait_until(lambda one=one: has_ended(service.http, one), timeout=60, what="the end of the batch")
    wait_until(lambda: not set(service.states()) & {"queued", "sending", "retrying"}, timeout=30, what="the rest")

    # By hand: what failed is tried again, this time with success; what is held is let go.
    smtp.clear()
    failed = service.http.get("/api/emails", params={"state": "failed"}).json()["items"]
    assert failed
    single = next(one["id"] for one in failed if one["batch"] is None)
    service.http.post(f"/api/emails/{single}/retry").raise_for_status()
    service.wait_for_state(single, "sent")
    service.http.post(f"/api/batches/{resent}/retry-failed").raise_for_status()
    wait_until(lambda: has_ended(service.http, resent), timeout=60, what="the end of the batch")
    if recipients(service.http, held, state="held"):
        service.http.post(f"/api/batches/{held}/drop-held").raise_for_status()

    found, there = scrape(service), records(service, [held, resent, later])
    compare(found, there, [service.record(one["id"]) for one in there if one["batch"] is None])
    states = Counter(one["state"] for one in there)
    assert {"sent", "failed", "cancelled", "expired"} <= set(states)
    assert found["revived_total"].total() >= 5
    assert found["retries_total"].total() >= 12
    assert found["held_total"].total() >= 4
    assert found["failed_total"]["custom", "bulk", "dropped"] == found["held_total"].total()


def told(service: Service, receiver: Receiver) -> None:
    """Every dead letter was told of, once, although the receiver refused and hung."""
    found = scrape(service)
    dead = found["failed_total"] + found["held_total"]
    wanted = {key: count for key, count in dead.items() if key[-1] != "dropped"}

    def grown() -> Counter[tuple[str, ...]]:
        sums: Counter[tuple[str, ...]] = Counter()
        for call in receiver.taken:
            for group in call.content["data"].get("groups", ()):
                sums[group["kind"], group["lane"], group["cause"]] += group["count"]
        return sums

    wait_until(lambda: grown() == wanted, timeout=60, what="all dead letters to be told of")
    assert len({call.id for call in receiver.taken}) == len(receiver.taken)
    assert len({call.id for call in receiver.calls[:3]}) == 1
    for call in receiver.calls:
        verify(call)
        assert "example.com" not in call.body.replace("lms.example.com", "")


def test_a_lane_without_a_worker_is_told_by_the_api(build: Build) -> None:
    with Receiver() as receiver:
        service = build(ALERT_WEBHOOK_URL=receiver.url, ALERT_WEBHOOK_SECRET=SECRET, ALERT_LANE_STILL_SECONDS="2")
        service.api()
        email_id = service.send()
        wait_until(lambda: receiver.taken, timeout=40, what="the alert")
        data = receiver.taken[0].content["data"]
        assert (data["lane"], data["reason"], data["due"]) == ("standard", "no_worker", 1)
        service.worker()
        service.wait_for_state(email_id, "sent")
        wait_until(lambda: len(receiver.taken) == 2, timeout=20, what="the all-clear")
        assert receiver.taken[1].content["type"] == "lane.moving"

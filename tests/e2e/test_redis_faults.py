"""Redis killed, stopped and frozen: nothing accepted is lost, nothing refused is sent."""

import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from support.processes import wait_until
from support.service import WELCOME, Service

Build = Callable[..., Service]


def test_killed_in_the_middle(build: Build) -> None:
    service = build(LEASE_SECONDS="6", WORKER_CONCURRENCY="10")
    service.smtp.delay("dot", 0.1)
    worker = service.worker()
    service.api()
    ids = service.accept(150)
    service.smtp.wait_for(40)
    service.valkey.kill()
    assert service.http.post("/api/emails", json=WELCOME).status_code == 503
    time.sleep(1)  # the outage itself
    service.valkey.start()
    wait_until(lambda: service.http.get("/health/ready").status_code == 200)

    def all_sent() -> bool:
        # Celery's worker sometimes ends when Redis drops at the wrong moment; then supervisor starts it again.
        if not worker.running:
            worker.start(ready=False)
        return service.states().get("sent") == 150

    wait_until(all_sent, timeout=60, what="150 to be sent")
    assert service.copies() == Counter(ids)


@pytest.mark.parametrize("fault", ["stopped", "frozen"])
def test_away_is_a_503_within_two_seconds_and_what_was_refused_is_never_sent(build: Build, fault: str) -> None:
    service = build(LEASE_SECONDS="4")
    worker = service.worker()
    service.api()
    service.wait_for_state(service.send(), "sent")
    if fault == "frozen":
        service.valkey.freeze()
    else:
        service.valkey.kill()

    def refused(number: int) -> tuple[float, httpx.Response]:
        body = {"kind": "welcome", "to": f"refused{number}@example.com", "name": "Ada"}
        # A client each: with a hundred threads in one, httpx now and then reads from a connection it has just closed.
        with httpx.Client(base_url=service.http.base_url, headers=service.http.headers, verify=False) as http:
            started = time.monotonic()
            answer = http.post("/api/emails", json=body)
            return time.monotonic() - started, answer

    # More at once than the API has threads: a request that queues for one must not wait for many timeouts.
    with ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(refused, range(150)))
        live = service.http.get("/health/live")
    assert live.status_code == 200
    for seconds, answer in answers:
        assert answer.status_code == 503
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["retry-after"]
        assert seconds < 2
    if fault == "frozen":
        service.valkey.thaw()
    else:
        service.valkey.start()
    email_id = wait_until(lambda: accepted(service), what="the API to recover")

    def sent() -> bool:
        if not worker.running:  # as above
            worker.start(ready=False)
        return service.record(email_id)["state"] == "sent"

    wait_until(sent, timeout=40, what="the next to be sent")
    assert service.states() == {"sent": 2}
    assert not any("refused" in one.recipients[0] for one in service.smtp.messages)


def accepted(service: Service) -> str | None:
    answer = service.http.post("/api/emails", json=WELCOME)
    return str(answer.json()["id"]) if answer.status_code == 202 else None

"""Batches while nodes and Redis are killed, the server refuses, somebody steers, and a limit holds.

Each recipient is accounted for: what the service says of it against what arrived. tools/batches/prove.py does the
same at full size.
"""

from collections.abc import Callable
from typing import Any

from mail.chunks import CLAIM
from support.batches import batch, faults, has_ended, people, recipients, start_batch, wait_for_end
from support.processes import Worker, wait_until
from support.service import Service

Build = Callable[..., Service]


def test_all_get_it_exactly_once_or_are_held_when_nodes_and_redis_are_killed(build: Build) -> None:
    service = build(LEASE_SECONDS="4", WORKER_CONCURRENCY="4")
    service.smtp.delay("dot", 0.05)
    worker = service.worker(lanes="bulk")
    service.api()
    batch_id = start_batch(service.http, people(300))
    for count, victim in ((50, worker), (120, service.valkey), (200, worker)):
        wait_until(
            lambda count=count: alive(worker) and len(service.smtp.messages) >= count, timeout=60, what="mails"
        )
        victim.kill()
        if victim is service.valkey:
            victim.start()
    found = wait_until(lambda: alive(worker) and has_ended(service.http, batch_id), timeout=60, what="the end") or {}
    everyone = recipients(service.http, batch_id)
    assert faults(found, everyone, service.copies()) == []
    assert set(found["counts"]) <= {"sent", "held"}
    # What is in doubt after each of the two kills of a node is the mail that each thread had in SMTP.
    assert found["counts"].get("held", 0) <= 2 * 4


def alive(worker: Worker) -> bool:
    """Start it again if it has ended, as supervisor does."""
    if not worker.running:
        worker.start(ready=False)
    return True


def test_a_node_that_is_stopped_ends_soon_and_leaves_nothing_in_doubt(build: Build) -> None:
    service = build(WORKER_CONCURRENCY="4")
    service.smtp.delay("dot", 0.2)
    first = service.worker(lanes="bulk")
    service.api()
    batch_id = start_batch(service.http, people(200))
    service.smtp.wait_for(12, timeout=30)
    before = len(service.smtp.messages)
    first.stop()
    # Not the rest of its chunks: a claim is two or three mails of this server.
    assert len(service.smtp.messages) - before <= 4 * CLAIM
    assert "sending" not in counts(service, batch_id)
    service.smtp.clear()
    service.worker(lanes="bulk")
    found = wait_for_end(service.http, batch_id, timeout=30)
    assert found["counts"] == {"sent": 200}
    assert faults(found, recipients(service.http, batch_id), service.copies()) == []


def test_refused_greylisted_and_without_a_server_each_ends_in_its_state(build: Build) -> None:
    service = build(RETRY_BASE_SECONDS="1", RETRY_MAX_SECONDS="1", WORKER_CONCURRENCY="5")
    everyone = people(120)
    refused = {one["to"] for one in everyone[7::30]}
    service.smtp.delay("dot", 0.05)
    service.smtp.reply("rcpt", "550 5.1.1 no such user", when=lambda to: to in refused)
    for one in everyone[3::20]:
        service.smtp.reply("rcpt", "451 4.7.1 come back later", when=lambda to, it=one["to"]: to == it, times=1)
    service.worker(lanes="bulk")
    service.api()
    batch_id = start_batch(service.http, everyone)
    service.smtp.wait_for(40, timeout=30)
    service.smtp.stop()
    wait_until(lambda: "cannot be reached" in service.http.get("/health/ready").text, what="the outage to be seen")
    service.smtp.start()
    found = wait_for_end(service.http, batch_id, timeout=60)
    ended = recipients(service.http, batch_id)
    assert faults(found, ended, service.copies()) == []
    assert {one["to"] for one in ended if one["state"] == "failed"} == refused
    assert {one["smtp_code"] for one in ended if one["state"] == "failed"} == {550}
    # The server may have gone between the final dot and its answer, once for each thread.
    assert found["counts"].get("held", 0) <= 5
    assert set(found["counts"]) <= {"sent", "failed", "held"}


def test_paused_resumed_and_cancelled_in_the_middle(build: Build) -> None:
    threads = 3
    service = build(WORKER_CONCURRENCY=str(threads))
    service.smtp.delay("dot", 0.03)
    service.worker(lanes="bulk")
    service.api()
    batch_id = start_batch(service.http, people(300))

    def steer(action: str) -> int:
        """How many mails leave after the call has returned."""
        answer = service.http.post(f"/api/batches/{batch_id}/{action}")
        assert answer.status_code == 200, answer.text
        before = len(service.smtp.messages)
        wait_until(lambda: "sending" not in counts(service, batch_id), what="nothing to be in flight")
        return len(service.smtp.messages) - before

    service.smtp.wait_for(50, timeout=30)
    assert steer("pause") <= CLAIM * threads
    assert counts(service, batch_id)["queued"] > 0
    assert service.http.post(f"/api/batches/{batch_id}/resume").status_code == 200
    service.smtp.wait_for(150, timeout=30)
    assert steer("cancel") <= CLAIM * threads
    found = wait_for_end(service.http, batch_id, timeout=30)
    assert faults(found, recipients(service.http, batch_id), service.copies()) == []
    assert found["state"] == "cancelled"
    assert set(found["counts"]) == {"sent", "cancelled"}


def counts(service: Service, batch_id: str) -> dict[str, Any]:
    found = batch(service.http, batch_id)
    assert found is not None
    return dict(found["counts"])


def test_a_limit_holds_over_all_processes(build: Build) -> None:
    service = build(SMTP_MAX_PER_SECOND="25")
    for _ in range(2):
        service.worker(lanes="bulk")
    service.api()
    batch_id = start_batch(service.http, people(200))
    found = wait_for_end(service.http, batch_id, timeout=40)
    assert found["counts"] == {"sent": 200}
    times = [one.at for one in service.smtp.messages]
    windows = [sum(start <= at < start + 2 for at in times) for start in times if start + 2 <= times[-1]]
    assert len(windows) > 100
    # 25 a second with a share for critical mail, and what a busy machine makes of it.
    assert min(windows) >= 36
    assert max(windows) <= 58


def test_a_reset_overtakes_a_batch_to_a_slow_server(build: Build) -> None:
    service = build(WORKER_CONCURRENCY="4")
    service.smtp.delay("dot", 0.3)
    service.worker()
    service.worker(lanes="bulk")
    service.api()
    batch_id = start_batch(service.http, people(300))
    service.smtp.wait_for(20, timeout=30)
    reset = service.send(
        {
            "kind": "password_reset",
            "to": "eve@example.com",
            "name": "Eve",
            "reset_url": "https://lms.example.com/reset?token=q3nTq0Vw8m2Zt7Ls",
        }
    )
    wait_until(lambda: service.copies()[reset], timeout=30, what="the reset")
    assert counts(service, batch_id)["queued"] > 150

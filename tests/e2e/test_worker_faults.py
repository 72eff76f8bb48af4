"""Worker nodes killed, stopped and frozen while mail is in flight; each accepted id is accounted for."""

import time
from collections import Counter
from collections.abc import Callable

from support.service import Service

Build = Callable[..., Service]


def test_all_arrive_and_every_copy_is_reported(build: Build) -> None:
    service = build(LEASE_SECONDS="4", WORKER_CONCURRENCY="10")
    service.smtp.delay("dot", 0.1)
    worker = service.worker()
    service.api()
    ids = service.accept(200)
    service.smtp.wait_for(60)
    worker.kill()
    killed_at = time.monotonic()
    in_smtp = service.states().get("sending", 0)
    service.worker()
    service.wait_for_all(200, timeout=55)
    assert time.monotonic() - killed_at < 60
    arrived = service.copies()
    assert set(arrived) == set(ids)
    doubled = {email_id for email_id, count in arrived.items() if count > 1}
    assert len(doubled) <= in_smtp <= 10
    assert all(arrived[email_id] == 2 for email_id in doubled)
    for email_id in doubled:
        record = service.record(email_id)
        assert record["possible_duplicate"]
        assert any("possible duplicate" in (change["note"] or "") for change in record["timeline"])


def test_a_warm_stop_loses_and_doubles_nothing(build: Build) -> None:
    service = build(WORKER_CONCURRENCY="10")
    service.smtp.delay("dot", 0.2)
    worker = service.worker()
    service.api()
    ids = service.accept(60)
    service.smtp.wait_for(15)
    assert worker.stop() == 0
    assert service.states().get("sending", 0) == 0
    service.worker()
    service.wait_for_all(60)
    assert service.copies() == Counter(ids)


def test_a_frozen_worker_wakes_up_to_find_its_mail_taken_over(build: Build) -> None:
    service = build(LEASE_SECONDS="3")
    service.smtp.delay("mail", 1.0, times=1)
    first = service.worker()
    service.api()
    email_id = service.send()
    service.wait_for_state(email_id, "sending")
    first.freeze()
    service.worker()
    record = service.wait_for_state(email_id, "sent", timeout=30)
    assert record["possible_duplicate"]
    first.thaw()
    # What it still had in hand it may finish, but it must say so, and take nothing new under its old lease.
    service.wait_for_state(service.send(), "sent")
    assert service.copies()[email_id] <= 2

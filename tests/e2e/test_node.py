"""What a worker node does beside its tasks: the sweep, and ending cleanly."""

import signal
from collections import Counter
from collections.abc import Callable

from support.service import Service

Build = Callable[..., Service]


def test_a_lost_wake_up_is_found_by_the_sweep(build: Build) -> None:
    service = build()
    service.api()
    ids = service.accept(3)
    with service.valkey.client() as client:
        assert client.delete(f"{service.env['KEY_PREFIX']}standard") == 1
    service.worker()
    service.wait_for_all(3, timeout=40)
    assert service.copies() == Counter(ids)


def test_a_mail_that_cannot_be_rendered_waits_for_the_fix(build: Build) -> None:
    service = build(RETRY_BASE_SECONDS="1", RETRY_MAX_SECONDS="1")
    service.api()
    email_id = service.send()
    with service.valkey.client() as client:
        key = f"{service.env['KEY_PREFIX']}email:{email_id}"
        payload = client.hget(key, "payload")
        client.hset(key, "payload", "{}")
        service.worker()
        record = service.wait_for_state(email_id, "retrying")
        assert record["error"] == "could not be prepared: InvalidEmail"
        client.hset(key, "payload", payload)
    service.wait_for_state(email_id, "sent")


def test_sigint_and_sigterm_end_the_api_cleanly(build: Build) -> None:
    service = build()
    for number in (signal.SIGINT, signal.SIGTERM):
        api = service.api()
        api.signal(number)
        api.wait(10)
        assert "Traceback" not in api.text()

"""The SMTP account's limits over several worker processes, and a server that asks for patience."""

from collections.abc import Callable

import pytest

from support.batches import batch, has_ended, people, start_batch
from support.processes import wait_until
from support.service import WELCOME, Service

Build = Callable[..., Service]


def test_connections_are_limited_over_all_processes(build: Build) -> None:
    service = build(SMTP_MAX_CONNECTIONS="3")
    service.smtp.delay("dot", 0.02)
    for lanes in ("bulk", "bulk", "critical,standard"):
        service.worker(lanes=lanes)
    service.api()
    batch_id = start_batch(service.http, people(300))
    most = 0
    singles: list[str] = []

    def ended() -> bool:
        nonlocal most
        for _ in range(20):
            most = max(most, service.smtp.open_connections)
        if len(singles) < 10 and len(service.smtp.messages) > 20 * (len(singles) + 1):
            singles.append(service.send({**WELCOME, "to": f"s{len(singles)}@example.com"}))
        return has_ended(service.http, batch_id) is not None

    wait_until(ended, timeout=60, what="the end of the batch")
    for email_id in singles:
        service.wait_for_state(email_id, "sent")
    assert len(service.smtp.messages) == 300 + len(singles)
    assert 1 < most <= 3
    # They are kept from one mail to the next.
    assert service.smtp.connections < 60


@pytest.mark.parametrize("reply", ["421 4.7.0 too many mails", "454 4.7.0 try again"])
def test_a_server_that_asks_for_patience_gets_it(build: Build, reply: str) -> None:
    service = build()
    service.smtp.reply("mail", reply, times=1)
    service.worker(lanes="bulk")
    service.api()
    batch_id = start_batch(service.http, people(40))
    wait_until(
        lambda: "slowed" in str((batch(service.http, batch_id) or {}).get("limited_by")),
        what="the lane to be slowed",
    )
    wait_until(lambda: has_ended(service.http, batch_id), timeout=60, what="the end of the batch")
    assert len({one.recipients for one in service.smtp.messages}) == len(service.smtp.messages) == 40

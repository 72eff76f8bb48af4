"""Celery's wake-ups over RabbitMQ; the outbox stays in Redis. The broker is Debian's."""

import json
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest

from mail.kinds import KINDS, Lane
from support.batches import faults, people, recipients, start_batch, wait_for_end
from support.processes import celery, wait_until
from support.rabbitmq import RabbitMQ
from support.service import WELCOME, Service

Build = Callable[..., Service]

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    with RabbitMQ(tmp_path_factory.mktemp("rabbitmq")) as server:
        yield server


@pytest.fixture
def rabbit(broker: RabbitMQ) -> Iterator[RabbitMQ]:
    """The broker, without anything of other tests."""
    yield broker
    broker.thaw()
    broker.empty()


def test_the_main_job(build: Build, rabbit: RabbitMQ) -> None:
    service = build(CELERY_BROKER_URL=rabbit.url, RETRY_BASE_SECONDS="1", RETRY_MAX_SECONDS="1")
    service.smtp.reply("rcpt", "451 4.7.1 try again later", when=lambda to: to == "grey@example.com", times=1)
    node, _ = service.worker(), service.worker(lanes="bulk")
    service.api()
    ids = [service.send({"kind": kind, **KINDS[kind].sample().model_dump(exclude={"kind"})}) for kind in KINDS]
    at = datetime.now(UTC) + timedelta(seconds=2)
    later = service.send({**WELCOME, "to": "later@example.com", "send_at": at.isoformat()})
    grey = service.send({**WELCOME, "to": "grey@example.com"})
    ids += [later, grey]
    batch_id = start_batch(service.http, people(250))
    for email_id in ids:
        service.wait_for_state(email_id, "sent")
    assert service.record(grey)["attempts"] == 2
    assert datetime.fromisoformat(service.record(later)["sent_at"]) >= at
    copies = service.copies()
    assert {email_id: copies[email_id] for email_id in ids} == dict.fromkeys(ids, 1)
    found = wait_for_end(service.http, batch_id, timeout=30)
    assert faults(found, recipients(service.http, batch_id), service.copies()) == []
    assert "pong" in celery(service.env, "inspect", "ping")
    stats = json.loads(celery(service.env, "inspect", "stats", "--json").splitlines()[0])
    assert stats[f"{node.name}@test"]["broker"]["transport"] == "amqp"
    waiting = service.send({**WELCOME, "send_at": (at + timedelta(hours=1)).isoformat()})
    assert "cancelled" in celery(service.env, "control", "revoke", waiting)
    assert service.record(waiting)["state"] == "cancelled"
    with service.valkey.client() as client:
        assert [key for key in client.scan_iter("*") if not key.startswith(service.env["KEY_PREFIX"])] == []
    assert {lane: rabbit.waiting(lane)[0] for lane in Lane} == dict.fromkeys(Lane, 0)


def test_six_kills_of_the_worker(build: Build, rabbit: RabbitMQ) -> None:
    """TARGETS R1: 300 mails, nothing lost, nothing stuck, every copy reported."""
    service = build(CELERY_BROKER_URL=rabbit.url, LEASE_SECONDS="3", WORKER_CONCURRENCY="10")
    service.smtp.delay("dot", 0.2)
    worker = service.worker()
    service.api()
    ids = service.accept(300)
    in_smtp: set[str] = set()
    for _ in range(6):
        seen = len(service.smtp.messages)
        service.smtp.wait_until(lambda seen=seen: len(service.smtp.messages) >= seen + 15, timeout=60)
        worker.kill()
        with service.valkey.client() as client:
            in_smtp |= set(client.zrange(f"{service.env['KEY_PREFIX']}state:sending", 0, -1))
        worker = service.worker()
    service.wait_for_all(300, timeout=60)
    copies = service.copies()
    assert set(copies) == set(ids)
    doubled = {email_id for email_id, number in copies.items() if number > 1}
    assert doubled <= in_smtp
    assert copies.total() - 300 <= 6 * 10
    assert all(service.record(email_id)["possible_duplicate"] for email_id in doubled)


@pytest.mark.parametrize("fault", ["killed", "frozen"])
def test_the_broker_goes_and_comes_back_under_load(build: Build, rabbit: RabbitMQ, fault: str) -> None:
    service = build(CELERY_BROKER_URL=rabbit.url, WORKER_CONCURRENCY="5")
    service.smtp.delay("dot", 0.2)
    worker = service.worker()
    service.api()
    ids = service.accept(60)
    service.smtp.wait_for(10)
    if fault == "frozen":
        rabbit.freeze()
    else:
        rabbit.kill()
    # Accepting goes on, and takes no longer than its patience.
    for number in range(3):
        began = time.monotonic()
        ids.append(service.send({**WELCOME, "to": f"meanwhile{number}@example.com"}))
        assert time.monotonic() - began < 2
    # So does the sweep: what has expired ends, though nobody can be woken.
    soon = datetime.now(UTC) + timedelta(seconds=2)
    expired = service.send({**WELCOME, "to": "late@example.com", "expires_at": soon.isoformat()})
    service.wait_for_state(expired, "expired", timeout=15)
    if fault == "frozen":
        rabbit.thaw()
    else:
        rabbit.start()

    def all_sent() -> bool:
        if not worker.running:  # Celery may end when its broker drops; then supervisor starts it again
            worker.start(ready=False)
        return service.states().get("sent") == len(ids)

    wait_until(all_sent, timeout=60, what="all to be sent")
    assert service.copies() == Counter(ids)


def test_redis_away_spins_nothing(build: Build, rabbit: RabbitMQ) -> None:
    """A wake-up that finds no Redis is acknowledged and left to the sweep, not handed back to a broker that is up."""
    service = build(CELERY_BROKER_URL=rabbit.url, LEASE_SECONDS="3")
    service.api()
    ids = service.accept(20)
    assert rabbit.waiting("standard")[0] == 20
    service.valkey.kill()
    worker = service.worker(ready=False)
    wait_until(lambda: worker.text().count("wake_up.not_answered") == 20, timeout=40, what="the wake-ups to be taken")
    time.sleep(3)
    assert worker.running
    assert worker.text().count("wake_up.not_answered") == 20
    assert rabbit.waiting("standard") == (0, 1)
    service.valkey.start()
    service.wait_for_all(20, timeout=60)
    assert service.copies() == Counter(ids)


def test_a_deaf_consumer_is_noticed(build: Build, rabbit: RabbitMQ) -> None:
    service = build(CELERY_BROKER_URL=rabbit.url, WATCHDOG_SECONDS="2", WORKER_CONCURRENCY="2")
    worker = service.worker(sabotage="line")
    service.api()
    ids = [service.send()]
    service.wait_for_all(1)
    worker.signal(signal.SIGUSR2)
    ids += service.accept(6)
    assert worker.wait(timeout=30) == 70
    service.worker()
    service.wait_for_all(7)
    assert service.copies() == Counter(ids)

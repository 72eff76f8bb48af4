"""Stopping worker nodes while they send: nothing is lost or sent twice, and it takes no longer than it must."""

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from support.batches import batch, faults, people, recipients, start_batch, wait_for_end
from support.processes import Process, wait_until
from support.service import Service

Build = Callable[..., Service]

OUT_OF_TIME = 70
SLACK = 5  # seconds; alone on a machine it takes less than one


def seconds_to_end(process: Process, *signals: int, within: float) -> tuple[int, float]:
    """The exit code, and how long it took."""
    began = time.monotonic()
    for number in signals:
        process.signal(number)
        time.sleep(0.2)
    return process.wait(within), time.monotonic() - began


def sending(service: Service, count: int) -> list[str]:
    """That many emails, all of them in SMTP."""
    ids = service.accept(count)
    service.wait_for_all(count, "sending")
    return ids


class TestOneNode:
    @pytest.mark.parametrize(
        "signals",
        [[signal.SIGTERM], [signal.SIGTERM, signal.SIGQUIT, signal.SIGQUIT], [signal.SIGINT, signal.SIGINT]],
        ids=lambda signals: "+".join(one.name for one in signals),
    )
    def test_mails_in_smtp_are_finished(self, build: Build, signals: list[int]) -> None:
        service = build(WORKER_CONCURRENCY="5")
        service.smtp.delay("dot", 3)
        worker = service.worker()
        service.api()
        ids = sending(service, 5)
        ended, seconds = seconds_to_end(worker, *signals, within=20)
        assert ended == 0
        assert seconds < 3 + SLACK
        assert service.states() == {"sent": 5}
        assert service.copies() == Counter(ids)

    @pytest.mark.parametrize("duration", [6, pytest.param(60, marks=[pytest.mark.chaos, pytest.mark.timeout(200)])])
    def test_a_long_mail_is_waited_for(self, build: Build, duration: int) -> None:
        service = build(LEASE_SECONDS="2", WATCHDOG_SECONDS="2")
        service.smtp.delay("dot", duration)
        worker = service.worker()
        service.api()
        ids = sending(service, 3)
        with wake_ups_waiting(service):  # which a node that stops does not take, and is not deaf for that
            ended, seconds = seconds_to_end(worker, signal.SIGTERM, within=duration + 20)
        assert ended == 0
        assert duration - 3 < seconds < duration + SLACK
        assert service.states() == {"sent": 3, "queued": 1}
        assert service.copies() == Counter(ids)

    def test_a_batch_on_a_slow_server_stops_after_the_mails_in_smtp(self, build: Build) -> None:
        service = build(WORKER_CONCURRENCY="2")
        service.smtp.delay("dot", 3)
        worker = service.worker(lanes="bulk")
        service.api()
        batch_id = start_batch(service.http, people(200))
        service.smtp.wait_until(lambda: service.smtp.verbs().count("DATA") == 2)
        ended, seconds = seconds_to_end(worker, signal.SIGTERM, within=60)
        assert ended == 0
        assert seconds < 3 + SLACK
        assert batch(service.http, batch_id)["counts"] == {"sent": 2, "queued": 198}
        service.smtp.clear()
        service.worker(lanes="bulk")
        found = wait_for_end(service.http, batch_id, timeout=30)
        assert faults(found, recipients(service.http, batch_id), service.copies()) == []

    def test_after_the_grace_the_node_ends_itself(self, build: Build) -> None:
        service = build(LEASE_SECONDS="2", STOP_GRACE_SECONDS="3")
        service.smtp.delay("dot", 60, times=2)
        worker = service.worker()
        service.api()
        ids = sending(service, 2)
        ended, seconds = seconds_to_end(worker, signal.SIGTERM, within=20)
        assert ended == OUT_OF_TIME
        assert 2.5 < seconds < 3 + SLACK
        assert all(email_id in worker.text().rpartition("node.out_of_time")[2] for email_id in ids)
        reported_again(service, ids)

    @pytest.mark.parametrize("fault", ["frozen", "killed"])
    def test_redis_is_waited_for_with_the_outcome(self, build: Build, fault: str) -> None:
        service = build(LEASE_SECONDS="4", WORKER_CONCURRENCY="5")
        service.smtp.delay("dot", 2)
        worker = service.worker()
        service.api()
        ids = sending(service, 5)
        with away(service, fault, seconds=6):
            _, seconds = seconds_to_end(worker, signal.SIGTERM, within=30)
        assert seconds < 20
        assert service.states() == {"sent": 5}
        assert service.copies() == Counter(ids)

    def test_but_not_for_ever(self, build: Build) -> None:
        service = build(LEASE_SECONDS="2", STOP_GRACE_SECONDS="3")
        service.smtp.delay("dot", 1, times=2)
        worker = service.worker()
        service.api()
        ids = sending(service, 2)
        service.valkey.freeze()
        ended, seconds = seconds_to_end(worker, signal.SIGTERM, within=20)
        service.valkey.thaw()
        assert ended == OUT_OF_TIME
        assert seconds < 3 + SLACK
        # Both were taken, and nobody could write that down.
        reported_again(service, ids)

    def test_the_pace_does_not_hold_a_stop_up(self, build: Build) -> None:
        service = build(SMTP_MAX_PER_SECOND="2")
        worker = service.worker()
        service.api()
        ids = service.accept(8)
        service.smtp.wait_for(1)
        _, seconds = seconds_to_end(worker, signal.SIGTERM, within=20)
        assert seconds < SLACK
        assert "sending" not in service.states()
        service.worker()
        service.wait_for_all(8)
        assert service.copies() == Counter(ids)

    def test_wake_ups_in_hand_go_back_at_once(self, build: Build) -> None:
        service = build(WORKER_CONCURRENCY="2")
        service.smtp.delay("dot", 2)
        worker = service.worker()
        service.api()
        ids = service.accept(10)
        service.wait_for_all(2, "sending")
        worker.stop()
        service.smtp.clear()
        with service.valkey.client() as client:
            prefix = service.env["KEY_PREFIX"]
            assert client.hlen(f"{prefix}unacked") == 0
            assert client.llen(f"{prefix}standard") >= 6
        service.worker()
        service.wait_for_all(10, timeout=5)  # sooner than the sweep would look, and than Celery's visibility timeout
        assert service.copies() == Counter(ids)


class TestAllNodes:
    def test_a_rolling_restart_under_load(self, build: Build) -> None:
        service = build(LEASE_SECONDS="4", WORKER_CONCURRENCY="10")
        service.smtp.delay("dot", 0.5)
        nodes = [service.worker(), service.worker(), service.worker(lanes="bulk"), service.worker(lanes="bulk")]
        service.api()
        batch_id = start_batch(service.http, people(150))
        ids: list[str] = []
        with steadily(lambda: ids.append(service.send())):
            service.smtp.wait_for(20)
            for node in nodes:
                code, seconds = seconds_to_end(node, signal.SIGTERM, within=20)
                assert code == 0
                assert seconds < 1 + SLACK
                service.worker(lanes=node.lanes)
        found = wait_for_end(service.http, batch_id, timeout=60)
        wait_until(lambda: all(service.record(email_id)["state"] == "sent" for email_id in ids), timeout=30)
        copies = service.copies()
        assert found["counts"] == {"sent": 150}
        assert faults(found, recipients(service.http, batch_id), copies) == []
        assert {email_id: copies[email_id] for email_id in ids} == dict.fromkeys(ids, 1)

    @pytest.mark.parametrize("grace", [2, pytest.param(10, marks=pytest.mark.chaos)])
    def test_term_then_kill(self, build: Build, grace: int) -> None:
        service = build(LEASE_SECONDS="3", WORKER_CONCURRENCY="10")
        service.smtp.delay("dot", grace + 5)
        worker = service.worker()
        service.api()
        ids = service.accept(30)
        service.wait_for_all(10, "sending")
        worker.signal(signal.SIGTERM)
        time.sleep(grace)
        worker.kill()
        in_smtp = service.states()["sending"]
        service.smtp.clear()
        service.worker()
        service.wait_for_all(30, timeout=40)
        # A server that has the whole mail may deliver it, also when nobody waits for its answer any more.
        time.sleep(5)
        copies = service.copies()
        assert set(copies) == set(ids)
        doubled = {email_id for email_id, count in copies.items() if count > 1}
        assert len(doubled) <= in_smtp <= 10
        assert max(copies.values()) <= 2
        assert all(service.record(email_id)["possible_duplicate"] for email_id in doubled)


def reported_again(service: Service, ids: list[str]) -> None:
    """The next node sends them again, with the same Message-ID, and says so."""
    service.worker()
    service.wait_for_all(len(ids), timeout=30)
    copies = service.copies()
    assert set(copies) == set(ids)
    assert max(copies.values()) <= 2
    assert all(service.record(email_id)["possible_duplicate"] for email_id in ids)


@contextmanager
def wake_ups_waiting(service: Service) -> Iterator[None]:
    """One more mail comes in soon."""
    timer = threading.Timer(1, service.send)
    timer.start()
    yield
    timer.join()


@contextmanager
def away(service: Service, fault: str, *, seconds: float) -> Iterator[None]:
    """Redis is frozen, or killed, and comes back by itself."""
    if fault == "frozen":
        service.valkey.freeze()
    else:
        service.valkey.kill()
    timer = threading.Timer(seconds, service.valkey.thaw if fault == "frozen" else service.valkey.start)
    timer.start()
    yield
    timer.join()


@contextmanager
def steadily(act: Callable[[], object]) -> Iterator[None]:
    """Some twenty times a second, until the block is over."""
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(0.05):
            act()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()

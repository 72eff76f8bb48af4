"""The watchdog of worker nodes: real ones, broken from inside (support.sabotage), or held back by all that may."""

import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

from support.batches import people, start_batch
from support.processes import BACKEND, Process, Worker, celery, wait_until
from support.service import Service

Build = Callable[..., Service]

GIVEN_UP = 70
BY_FAULTHANDLER = 1

LINK = "https://lms.example.com/reset?token=q3nTq0Vw8m2Zt7Ls"


def reset(service: Service, number: int = 0) -> str:
    """A mail of the critical lane, to whom none was sent before."""
    to = f"reset{number}@example.com"
    return service.send({"kind": "password_reset", "to": to, "name": "Ada", "reset_url": LINK})


def deafen(service: Service, *lanes: str) -> None:
    """All nodes cease to consume these lanes, as some do by themselves after a restart of the broker."""
    for lane in lanes:
        assert "no longer consuming" in celery(service.env, "control", "cancel_consumer", lane)


def replaced(service: Service, ids: list[str], **env: str) -> None:
    """What supervisor does follows; all arrives, once."""
    service.worker(**env)
    service.wait_for_all(len(ids), timeout=40)
    assert service.copies() == Counter(ids)


class TestNotices:
    @pytest.mark.parametrize("fault", ["loop", "line"])
    def test_a_consumer_that_stands_still(self, build: Build, fault: str) -> None:
        service = build(WATCHDOG_SECONDS="2", WORKER_CONCURRENCY="2")
        worker = service.worker(sabotage=fault)
        service.api()
        ids = [service.send()]
        service.wait_for_all(1)
        worker.signal(signal.SIGUSR2)
        ids += service.accept(5)
        assert worker.wait(timeout=20) == GIVEN_UP
        # Where each thread stood: whoever reads the log wants to know.
        assert "support/sabotage.py" in worker.text() or fault == "line"
        replaced(service, ids)

    def test_one_lane_of_two(self, build: Build) -> None:
        service = build(WATCHDOG_SECONDS="2")
        worker = service.worker()
        service.api()
        deafen(service, "standard")
        ids = [service.send()]
        # The other lane is as busy as can be.
        numbers = iter(range(1000))

        def ended() -> bool:
            ids.append(reset(service, next(numbers)))
            return not worker.running

        wait_until(ended, timeout=20, what="the node to end")
        assert worker.wait() == GIVEN_UP
        replaced(service, ids)

    def test_the_mail_in_smtp_is_finished_first(self, build: Build) -> None:
        service = build(WATCHDOG_SECONDS="1", LEASE_SECONDS="2")
        service.smtp.delay("dot", 6, times=1)
        worker = service.worker()
        service.api()
        ids = [service.send()]
        service.wait_for_state(ids[0], "sending")
        deafen(service, "critical", "standard")
        ids.append(service.send())
        assert worker.wait(timeout=20) == GIVEN_UP
        assert service.copies() == Counter(ids[:1])
        replaced(service, ids)

    def test_whatever_else_is_stuck(self, build: Build) -> None:
        """Side by side, because each needs its time: no call of the sweep may take half a minute, and so on."""
        env = {"WATCHDOG_SECONDS": "1", "WORKER_CONCURRENCY": "2", "STOP_GRACE_SECONDS": "2", "LEASE_SECONDS": "2"}
        env |= {"SMTP_TIMEOUT": "0.05", "SMTP_DATA_TIMEOUT": "1"}  # 3 s at the longest
        codes = {"threads": GIVEN_UP, "interpreter": BY_FAULTHANDLER, "sweep": GIVEN_UP}
        services = {fault: build(**env) for fault in codes}
        workers = {fault: service.worker(sabotage=fault) for fault, service in services.items()}
        for fault, service in services.items():
            workers[fault].signal(signal.SIGUSR2)
            service.api()
        stuck = services["threads"].accept(3)
        for fault, code in codes.items():
            assert workers[fault].wait(timeout=50) == code, fault
            assert "support/sabotage.py" in workers[fault].text(), fault
        replaced(services["threads"], stuck)


class TestStaysQuiet:
    """`WATCHDOG_SECONDS` is 1; each test keeps a node in its state for several times that."""

    PATIENCE = 1.0

    def stays(self, *workers: Worker, seconds: float = 4 * PATIENCE) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            assert all(worker.running for worker in workers)
            time.sleep(0.1)

    def test_while_nothing_is_due(self, build: Build) -> None:
        service = build(WATCHDOG_SECONDS="1")
        worker = service.worker()
        service.api()
        service.wait_for_state(service.send(), "sent")
        self.stays(worker)
        at = datetime.now(UTC) + timedelta(seconds=5)
        ids = [reset(service), service.send({**scheduled(at), "to": "later@example.com"})]
        self.stays(worker)
        for email_id in ids:
            service.wait_for_state(email_id, "sent")
        assert worker.running

    def test_while_smtp_is_slow(self, build: Build) -> None:
        service = build(WATCHDOG_SECONDS="1", WORKER_CONCURRENCY="2", LEASE_SECONDS="2")
        service.smtp.delay("dot", 5)
        worker = service.worker()
        service.api()
        ids = service.accept(4)
        service.wait_for_all(4, timeout=30)
        assert worker.running
        assert service.copies() == Counter(ids)

    def test_while_mail_is_held_back(self, build: Build) -> None:
        """For one reason each, side by side."""
        reasons: dict[str, dict[str, str]] = {
            "the gate": {},
            "mails a day": {"SMTP_MAX_PER_DAY": "1"},
            "mails a second": {"SMTP_MAX_PER_SECOND": "0.1"},
            "connections": {"SMTP_MAX_CONNECTIONS": "1"},
            "an unknown kind": {},
        }
        services = {reason: build(WATCHDOG_SECONDS="1", **env) for reason, env in reasons.items()}
        services["the gate"].smtp.reply("mail", "550 5.7.1 your network is blocked")
        services["connections"].smtp.delay("dot", 6)
        for service in services.values():
            service.api()
            service.accept(6)
        unknown = services["an unknown kind"]
        with unknown.valkey.client() as client:
            client.delete(f"{unknown.env['KEY_PREFIX']}standard")
            for key in client.scan_iter(f"{unknown.env['KEY_PREFIX']}email:*"):
                client.hset(key, "kind", "of_the_future")
        # Mail is due for the first time after ten seconds.
        self.stays(*(service.worker() for service in services.values()), seconds=10 + 4 * self.PATIENCE)
        for reason, service in services.items():
            assert service.states().get("sent", 0) < 6, reason

    def test_while_a_batch_is_paused(self, build: Build) -> None:
        service = build(WATCHDOG_SECONDS="1", WORKER_CONCURRENCY="2")
        service.smtp.delay("dot", 0.5)
        worker = service.worker(lanes="bulk")
        service.api()
        batch_id = start_batch(service.http, people(300))
        service.smtp.wait_for(1)
        assert service.http.post(f"/api/batches/{batch_id}/pause").status_code == 200
        self.stays(worker)

    def test_while_another_node_serves_the_backlog(self, build: Build) -> None:
        service = build(WATCHDOG_SECONDS="1", LEASE_SECONDS="2")
        deaf = service.worker()
        service.api()
        deafen(service, "critical", "standard")
        busy = service.worker(WORKER_CONCURRENCY="1")
        service.smtp.delay("dot", 0.05)
        ids = service.accept(100)
        self.stays(deaf, busy)
        service.wait_for_all(100)
        assert service.copies() == Counter(ids)

    def test_when_it_was_frozen(self, build: Build) -> None:
        service = build(WATCHDOG_SECONDS="1", WORKER_CONCURRENCY="1")
        service.smtp.delay("mail", 0.3)
        worker = service.worker()
        service.api()
        ids = service.accept(15)
        service.smtp.wait_for(2)
        worker.freeze()
        time.sleep(5 * self.PATIENCE)
        worker.thaw()
        service.wait_for_all(15)
        assert worker.running
        assert service.copies() == Counter(ids)

    @pytest.mark.parametrize("fault", ["frozen", "killed"])
    def test_while_redis_is_away(self, build: Build, fault: str) -> None:
        service = build(WATCHDOG_SECONDS="1", WORKER_CONCURRENCY="1")
        service.smtp.delay("dot", 0.5)
        worker = service.worker()
        service.api()
        ids = service.accept(10)
        service.smtp.wait_for(2)
        if fault == "frozen":
            service.valkey.freeze()
            self.stays(worker, seconds=7)
            service.valkey.thaw()
        else:
            service.valkey.kill()
            time.sleep(5 * self.PATIENCE)
            service.valkey.start()
        # Celery may end when Redis drops at the wrong moment, with another code; this is not about that.
        wait_until(
            lambda: not worker.running or service.states().get("sent") == 10, timeout=40, what="all to be sent"
        )
        if worker.running:
            assert service.copies() == Counter(ids)
        else:
            assert worker.wait() != GIVEN_UP


def scheduled(at: datetime) -> dict[str, str]:
    return {"kind": "welcome", "name": "Ada", "send_at": at.isoformat()}


def test_supervisor_replaces_a_deaf_node(build: Build, tmp_path: Path) -> None:
    service = build(WATCHDOG_SECONDS="2")
    service.api()
    # A copy, because supervisor keeps its socket in the checkout.
    root = tmp_path / "checkout"
    for name in ("backend", "deploy"):
        shutil.copytree(BACKEND.parent / name, root / name, ignore=shutil.ignore_patterns("__pycache__", ".env"))
    command = [sys.executable, str(root / "deploy" / "supervise.py"), "mail"]
    with Process(command, tmp_path / "supervisor.log", {**service.env, "VIRTUAL_ENV": sys.prefix}) as supervisor:
        wait_until(lambda: "ready." in supervisor.text(), timeout=40, what="the node")
        (first,) = nodes(supervisor.pid)
        deafen(service, "critical", "standard")
        email_id = service.send()
        service.wait_for_state(email_id, "sent", timeout=60)
        (second,) = nodes(supervisor.pid)
        assert first != second
    assert not psutil.pid_exists(second)


def nodes(supervisor: int) -> list[int]:
    """The pids of the workers below it."""
    children = psutil.Process(supervisor).children(recursive=True)
    return [child.pid for child in children if "celery" in " ".join(child.cmdline())]

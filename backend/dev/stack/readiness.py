"""When the stack is ready: every part answers as its users will ask it."""

import socket
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException

from dev.stack import StackError
from dev.stack.ports import answers, local
from dev.stack.supervisor import LOG, Supervisor
from settings import Settings

Check = Callable[[], bool]
STARTS_MAX = 4
TAIL_LINES = 25
BY_HAND = {
    "api": "uvicorn main:app",
    "mail": "./start_celery.sh mail",
    "bulk": "./start_celery.sh bulk",
    "flower": "./start_flower.sh",
}


def checks(settings: Settings, supervisor: Supervisor) -> dict[str, Check]:
    """What to ask, by the name of the part, cheapest first."""
    parts: dict[str, Check] = {
        "api": lambda: _http_ok(settings.api_host, settings.api_port, "/health/ready"),
        "flower": lambda: _http_ok(settings.flower_address, settings.flower_port, "/healthcheck"),
    }
    if "inbox" in supervisor.plan.programs:
        parts["inbox"] = lambda: (
            _http_ok("127.0.0.1", settings.inbox_port, "/api/v1/messages")
            and answers(settings.smtp_host, settings.smtp_port)
        )
    return parts | {"mail": lambda: _node_answers("mail"), "bulk": lambda: _node_answers("bulk")}


def check_progress(supervisor: Supervisor) -> None:
    """Raise StackError, with the end of the log, when a program ends again and again instead of starting."""
    for program in supervisor.programs():
        if program.state == "FATAL" or supervisor.starts[program.name] >= STARTS_MAX:
            raise StackError(f"{program.name} ends as soon as it starts. {advice(program.name)}")


def advice(name: str) -> str:
    """Where to look and what to try when the part `name` is not well."""
    lines = LOG.read_text(errors="replace").splitlines()[-TAIL_LINES:]
    try_it = f"Try it alone: cd backend && {BY_HAND[name]}\n" if name in BY_HAND else ""
    return f"The last lines of {LOG}:\n\n" + "\n".join(f"    {line}" for line in lines) + f"\n\n{try_it}"


def _http_ok(host: str, port: int, path: str) -> bool:
    connection = HTTPConnection(local(host), port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def _node_answers(name: str) -> bool:
    # Imports that take a second, which the programs need more urgently until they are up.
    from kombu.exceptions import OperationalError
    from redis.exceptions import RedisError

    from celery_app import app

    node = f"{name}@{socket.gethostname()}"
    try:
        return bool(app.control.ping(destination=[node], timeout=1))
    except (OSError, OperationalError, RedisError):
        return False

"""What answers here, to whom: the API, Flower, the development inbox. Each port is really asked."""

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_address
from typing import Any, NamedTuple

from mail.findings import Finding, Level
from mail.smtp_session import is_local
from settings import Scope, Settings

WAIT = 3.0  # seconds
# Of the ranges for documents (RFC 5737, RFC 3849): nobody is there, and nothing is sent.
_FAR = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))


class Answer(NamedTuple):
    """What a port said to a GET; the status is 0 when that was not HTTP."""

    status: int
    body: bytes


def api(settings: Settings) -> Iterator[Finding]:
    """Whether the API is ready, and who can reach it."""
    place = _shown(_here(settings.api_host), settings.api_port)
    key = next((key for caller, key in settings.keys_in_clear if Scope.READ in caller.scopes), "")
    answer = ask(_here(settings.api_host), settings.api_port, "/health/ready", key)
    said = _read(answer)
    if answer is None:
        text = f"nothing answers at {place}"
        yield Finding("api", Level.WARNING, text, "Start it, unless this machine runs workers only")
    elif said.get("status") == "ok":
        yield Finding("api", Level.OK, f"{place} is ready")
    elif said.get("status") == 503:
        yield Finding("api", Level.FAULT, f"{place} is not ready: {said.get('detail')}", "See redis above")
    else:
        text = f"what answers at {place} is not this API"
        yield Finding("api", Level.FAULT, text, "Stop it, or set API_PORT to another port")
    if outside := _outside(settings.api_host, settings.api_port):
        text = f"open to the network, in clear, at {', '.join(_shown(host, settings.api_port) for host in outside)}"
        fix = "API_HOST=127.0.0.1 behind a proxy with TLS, or a private network"
        yield Finding("api.exposure", Level.WARNING, text, fix)


def flower(settings: Settings) -> Iterator[Finding]:
    """Whether Flower can be seen from outside this machine, and asks for a password there."""
    port, fix = settings.flower_port, "FLOWER_ADDRESS=127.0.0.1, and start Flower again (docs/operations.md)"
    outside = _outside(settings.flower_address, port)
    for host, answer in outside.items():
        place = _shown(host, port)
        if answer.status == 401:
            text = f"open to the network at {place}; its /metrics and /healthcheck ask for no password"
            yield Finding("flower", Level.WARNING, text, fix)
        else:
            text = f"open to the network without a password at {place}: it shows the workers, and may stop them"
            yield Finding("flower", Level.FAULT, text, fix)
    if not outside:
        yield _private("flower", settings.flower_address, port)


def inbox(settings: Settings) -> Iterator[Finding]:
    """Whether the development inbox, which shows every mail, runs where it should."""
    port = settings.inbox_port
    outside = _outside("127.0.0.1", port)
    for host in outside:
        text = f"open to the network at {_shown(host, port)}: it shows every mail, links of resets included"
        yield Finding("inbox", Level.FAULT, text, "Stop it, or what else has INBOX_PORT")
    answer = ask("127.0.0.1", port, "/api/v1/messages") if not settings.development else None
    if answer and answer.status == 200:
        text = f"the development inbox runs at {_shown('127.0.0.1', port)}, and ENVIRONMENT is {settings.environment}"
        yield Finding("inbox", Level.WARNING, text, "Stop it")
    elif not outside:
        yield _private("inbox", "127.0.0.1", port)


def ask(host: str, port: int, path: str, key: str = "") -> Answer | None:
    """What answers a GET there; None when nothing does."""
    connection = http.client.HTTPConnection(host, port, timeout=WAIT)
    try:
        connection.connect()
    except OSError:
        connection.close()
        return None
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {key}"} if key else {})
        response = connection.getresponse()
        return Answer(response.status, response.read(100_000))
    except (OSError, http.client.HTTPException):
        return Answer(0, b"")
    finally:
        connection.close()


def _read(answer: Answer | None) -> dict[str, Any]:
    """The JSON object in an answer, or an empty one."""
    try:
        found = json.loads(answer.body) if answer else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _outside(address: str, port: int) -> dict[str, Answer]:
    """The addresses that others can reach at which a port answers, with what it says to GET /."""
    hosts = dict.fromkeys(host for host in (*_own_addresses(), _here(address)) if not is_local(host))
    answers = {host: ask(host, port, "/") for host in hosts}
    return {host: answer for host, answer in answers.items() if answer is not None}


def _own_addresses() -> Iterator[str]:
    """The addresses from which this machine goes out."""
    for family, far in _FAR:
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((far, 9))
            yield str(probe.getsockname()[0])


def _private(name: str, address: str, port: int) -> Finding:
    host = _here(address)
    runs = ask(host, port, "/") is not None
    text = f"{_shown(host, port)}, from this machine only" if runs else f"does not run ({_shown(host, port)})"
    return Finding(name, Level.OK, text)


def _here(address: str) -> str:
    """Where to reach from here what listens on an address."""
    try:
        listens = ip_address(address)
    except ValueError:
        return address
    if listens.is_unspecified:
        return "::1" if listens.version == 6 else "127.0.0.1"
    return address


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

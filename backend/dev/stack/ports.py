"""Addresses and ports of this machine: what answers, what is free, and who holds what is not."""

import errno
import ipaddress
import os
import socket
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

from dev.stack import StackError

CHANGE = "in backend/.env or the environment"


class Listener(NamedTuple):
    """A port that will be taken here, and the settings that choose its address and its number."""

    host_setting: str
    host: str
    port_setting: str
    port: int


def local(host: str) -> str:
    """Where to reach from here what listens on `host`, as it stands in a URL."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.version == 6:
        return "[::1]" if address.is_unspecified else f"[{host}]"
    return "127.0.0.1" if address.is_unspecified else host


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def answers(host: str, port: int) -> bool:
    """Whether something accepts TCP connections there."""
    try:
        socket.create_connection((host, port), timeout=2).close()
    except OSError:
        return False
    return True


def greets_as_smtp(host: str, port: int) -> bool:
    """Whether what answers there begins with a reply code (RFC 5321 section 4.2), as every SMTP server does."""
    try:
        with socket.create_connection((host, port), timeout=3) as connection:
            greeting = connection.recv(100)
    except OSError:
        return False
    return greeting[:3].isdigit()


def check_free(listeners: Iterable[Listener]) -> None:
    """Try all the ports.

    Raises:
        StackError: some cannot be taken; names each, its setting and, where the system tells, who holds it.
    """
    faults: list[str] = []
    tried: dict[int, str] = {}
    with ExitStack() as held:  # held until all are checked: two settings must not share a port either
        for one in listeners:
            try:
                family, kind, protocol, _, address = socket.getaddrinfo(one.host, one.port, type=socket.SOCK_STREAM)[
                    0
                ]
                probe = held.enter_context(socket.socket(family, kind, protocol))
                # As the servers do, or a connection of the last run in TIME_WAIT would look like a taken port.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
                probe.listen()
            except OSError as error:
                faults.append(_explain(one, error, tried.get(one.port)))
            tried[one.port] = one.port_setting
    if faults:
        raise StackError("\n".join(faults))


def _explain(one: Listener, error: OSError, rival: str | None) -> str:
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return f"{one.host_setting}: {one.host} is not an address of this machine. Change it {CHANGE}."
    if error.errno != errno.EADDRINUSE:
        return f"Port {one.port} on {one.host}: {error.strerror}. Set {one.port_setting} to another port {CHANGE}."
    if rival:
        return f"{rival} and {one.port_setting} are both {one.port}. Set one of them to another port {CHANGE}."
    return (
        f"Port {one.port} on {one.host} is taken{held_by(one.port)}. "
        f"Stop that, or set {one.port_setting} to another port {CHANGE}."
    )


def held_by(port: int) -> str:
    """` by process 123 (name)` for what listens on a port; empty where the system does not tell."""
    process = _holder(port)
    with suppress(OSError):
        return f" by process {process.name} ({(process / 'comm').read_text().strip()})" if process else ""
    return ""


def directory_of(port: int) -> Path | None:
    """The working directory of what listens on a port, where the system tells."""
    process = _holder(port)
    with suppress(OSError):
        return Path(os.readlink(process / "cwd")) if process else None
    return None


def _holder(port: int) -> Path | None:
    """The entry in /proc of what listens on a port. Of other users' processes Linux tells it only to root."""
    sockets = set()
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path("/proc/net", table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:  # LISTEN
                    sockets.add(f"socket:[{fields[9]}]")
    for descriptor in Path("/proc").glob("[0-9]*/fd/*") if sockets else ():
        with suppress(OSError):
            if os.readlink(descriptor) in sockets:
                return descriptor.parents[1]
    return None

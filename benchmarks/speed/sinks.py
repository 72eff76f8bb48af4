"""Postfix's own pair: a server that takes everything, and a client in C that shows what the machine can do."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from support.processes import free_port, wait_until

PATH = "/usr/sbin:/usr/local/sbin:/usr/bin"


class Address(NamedTuple):
    """Where an SMTP server listens."""

    host: str
    port: int


def _program(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path=PATH)
    if found is None:
        raise SystemExit(f"{name} is needed: Debian's package postfix")
    return found


@contextmanager
def smtp_sink() -> Iterator[Address]:
    port = free_port()
    command = [_program("smtp-sink"), "-u", "root", f"127.0.0.1:{port}", "200"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:

        def listens() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        try:
            wait_until(listens, timeout=10, what="smtp-sink")
            yield Address("127.0.0.1", port)
        finally:
            process.terminate()


def smtp_source(sink: Address, count: int, size: int) -> float:
    """Mails a second that ten sessions of it send."""
    options = ["-s", "10", "-m", str(count), "-l", str(size), "-d", "-N"]
    began = time.perf_counter()
    subprocess.run([_program("smtp-source"), *options, f"{sink.host}:{sink.port}"], check=True)
    return count / (time.perf_counter() - began)

"""Postfix's own test server, which takes everything and keeps nothing."""

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from support.needs import need
from support.processes import free_port, wait_until


@contextmanager
def smtp_sink(*options: str) -> Iterator[int]:
    """Its port. `options` are those of smtp-sink(1)."""
    port = free_port()
    command = [need("smtp-sink", package="postfix"), "-u", "root", *options, f"127.0.0.1:{port}", "200"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:

        def listens() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        try:
            wait_until(listens, timeout=10, what="smtp-sink")
            yield port
        finally:
            process.terminate()

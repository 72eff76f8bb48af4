"""Postfix's client in C, which shows what the machine can do."""

import subprocess
import time
from typing import NamedTuple

from support.needs import need


class Address(NamedTuple):
    """Where an SMTP server listens."""

    host: str
    port: int


def smtp_source(sink: Address, count: int, size: int) -> float:
    """Mails a second that ten sessions of it send."""
    options = ["-s", "10", "-m", str(count), "-l", str(size), "-d", "-N"]
    began = time.perf_counter()
    subprocess.run([need("smtp-source", package="postfix"), *options, f"{sink.host}:{sink.port}"], check=True)
    return count / (time.perf_counter() - began)

"""The development inbox as a process, spoken to over SMTP and HTTP."""

import re
import smtplib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import Any

import httpx

from support.processes import BACKEND, SHORT_LIVED


@dataclass
class Inbox:
    process: subprocess.Popen[str]
    smtp_port: int
    url: str
    http: httpx.Client

    def smtp(self) -> smtplib.SMTP:
        return smtplib.SMTP("127.0.0.1", self.smtp_port, timeout=20)

    def send(self, raw: bytes, sender: str = "a@example.com", to: str | list[str] = "b@example.com") -> None:
        with self.smtp() as smtp:
            smtp.sendmail(sender, to, raw)

    def get(self, path: str, **params: Any) -> Any:
        response = self.http.get(path, params=params)
        assert response.status_code == 200, response.text
        return response.json()

    def listing(self, **params: Any) -> Any:
        return self.get("/api/v1/messages", **params)

    def subjects(self, **params: Any) -> list[str]:
        return [mail["Subject"] for mail in self.listing(**params)["messages"]]


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dev.inbox", *options]
    return subprocess.run(command, cwd=BACKEND, capture_output=True, text=True, timeout=30, check=False)


@contextmanager
def running(*options: str) -> Iterator[Inbox]:
    """An inbox on free ports. Its end is part of every test: exit code 0, and nothing on stderr."""
    command = [sys.executable, "-m", "dev.inbox", "--smtp-port", "0", "--http-port", "0", *options]
    with (
        TemporaryFile("w+") as errors,  # a pipe would block the process once it is full
        subprocess.Popen(command, cwd=BACKEND, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            ready = re.fullmatch(r"inbox: smtp://127\.0\.0\.1:(\d+) (http://127\.0\.0\.1:\d+)/\n", line)
            assert ready, line
            with httpx.Client(base_url=ready[2], timeout=20, trust_env=False, limits=SHORT_LIVED) as http:
                yield Inbox(process, int(ready[1]), ready[2], http)
            process.terminate()
            assert process.wait(timeout=5) == 0
            errors.seek(0)
            assert errors.read() == ""
        finally:
            process.kill()

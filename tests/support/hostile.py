"""A client that breaks HTTP on purpose, against servers of this machine."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType
from typing import Self

import httpx


class Wire:
    """One connection, byte by byte. It ends when the server closes it."""

    def __init__(self, port: int, *, timeout: float = 5) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout)
        self.closed = False

    def send(self, content: bytes) -> bool:
        """Whether the server still took it."""
        with suppress(OSError):
            self._socket.sendall(content)
            return True
        return False

    def send_all(self, pieces: Iterator[bytes], *, most: int = 100_000_000) -> int:
        """Send until the server closes, or so many bytes; the bytes sent."""
        sent = 0
        for piece in pieces:
            if sent >= most or not self.send(piece):
                break
            sent += len(piece)
        return sent

    def end(self) -> None:
        """Say that nothing more will come."""
        self._socket.shutdown(socket.SHUT_WR)

    def read(self, timeout: float = 2) -> bytes:
        """What has come until the server closes, or is silent for so long."""
        self._socket.settimeout(timeout)
        found = b""
        try:
            while piece := self._socket.recv(65_536):
                found += piece
            self.closed = True
        except TimeoutError:
            pass
        except OSError:
            self.closed = True
        return found

    def poll(self) -> None:
        """Note whether the server has closed it by now."""
        self.read(0.001)

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Bystander:
    """Another client, meanwhile: the longest that it waited for an answer, in seconds, and how often it got none."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self.longest = 0.0
        self.failures = 0

    def _ask(self) -> None:
        with httpx.Client(timeout=30) as client:
            while not self._stop.wait(0.02):
                begun = time.monotonic()
                try:
                    self.failures += not client.get(self._url).is_success
                except httpx.HTTPError:
                    self.failures += 1
                self.longest = max(self.longest, time.monotonic() - begun)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

"""HTTP as a browser's connection carries it, with as little of our own time as Python allows."""

import selectors
import socket
import statistics
import time
from collections.abc import Callable
from typing import Self


class Connection:
    """One connection that is kept."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def ask(self, request: bytes) -> float:
        """The seconds until the whole answer was there. Raises RuntimeError for one that is no 2xx."""
        began = time.perf_counter()
        self.socket.sendall(request)
        while not self.has_answer():
            pass
        return time.perf_counter() - began

    def has_answer(self) -> bool:
        """Read what has come; whether it is a whole answer."""
        self._rest += self.socket.recv(65_536)
        head, found, body = self._rest.partition(b"\r\n\r\n")
        if not found:
            return False
        if not head.startswith(b"HTTP/1.1 2"):
            raise RuntimeError(self._rest.decode(errors="replace")[:500])
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        if len(body) < length:
            return False
        self._rest = b""
        return True


def request(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def throughput(port: int, request: Callable[[], bytes], *, connections: int, seconds: float) -> float:
    """Answers a second, each connection asking anew as soon as it has its answer."""
    asking = [Connection(port) for _ in range(connections)]
    answers = 0
    with selectors.DefaultSelector() as selector:
        for one in asking:
            selector.register(one.socket, selectors.EVENT_READ, one)
            one.socket.sendall(request())
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            for key, _ in selector.select(1):
                if key.data.has_answer():
                    answers += 1
                    key.data.socket.sendall(request())
        took = time.perf_counter() - began
        for one in asking:
            while not one.has_answer():
                pass
            one.socket.close()
    return answers / took


def latency(connection: Connection, request: Callable[[], bytes], count: int) -> float:
    """The median of so many answers, in milliseconds."""
    return statistics.median(connection.ask(request()) for _ in range(count)) * 1000

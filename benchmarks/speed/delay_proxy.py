"""A TCP proxy that makes a server seem far away: each byte takes half a round trip, each way."""

import queue
import socket
import threading
import time
from contextlib import suppress
from typing import Self


class DelayProxy:
    """Listens on `port`, passes everything on to `target` on this machine. `rtt` in seconds."""

    def __init__(self, target: int, rtt: float) -> None:
        self._target, self._half = target, rtt / 2
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        time.sleep(2 * self._half)  # for the handshake of TCP, which the kernel has already answered
        far = socket.create_connection(("127.0.0.1", self._target))
        for one in (near, far):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._pass(near, far)
        self._pass(far, near)

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        """What is read is due half a round trip later, however much comes meanwhile."""
        waiting: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()

        def read() -> None:
            data = b"-"
            while data:
                try:
                    data = source.recv(65_536)
                except OSError:
                    data = b""
                waiting.put((time.perf_counter() + self._half, data))

        def write() -> None:
            while True:
                due, data = waiting.get()
                if (rest := due - time.perf_counter()) > 0:
                    time.sleep(rest)
                with suppress(OSError):
                    if not data:
                        sink.shutdown(socket.SHUT_WR)
                        return
                    sink.sendall(data)

        for work in (read, write):
            threading.Thread(target=work, daemon=True).start()

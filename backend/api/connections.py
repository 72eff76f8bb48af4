"""The limits of a connection that uvicorn lacks: an application sees a request only when its head is whole.

Without them, before any key is looked at: 47 MB of small requests, pipelined on one connection, took 2.9 GB of
memory; a header without an end took the square of its length in CPU, and for 100 MB nobody else was answered for
4.6 s; and whoever sent a byte now and then kept a connection for ever. uvicorn leaves it at that (its issue #157).
"""

from http import HTTPStatus
from typing import Any

import structlog
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from api.problems import problem

MAX_HEAD = 65_536  # bytes of request line and headers, as in h11; one read more may have come by then
MAX_HEADERS = 100
MAX_WRAPPING = 10  # bytes of a chunked body's form (sizes, extensions, trailers) for each of its content
MAX_PIPELINED = 20  # requests of one connection that wait for those before them

# As in Apache's mod_reqtimeout.
PATIENCE = 20.0  # seconds for a head; for a body, so many and one for each SLOWEST bytes
SLOWEST = 500
LOOK_EVERY = 5.0  # seconds

logger = structlog.get_logger(__name__)


class LimitedConnection(HttpToolsProtocol):
    """A connection of uvicorn, closed when its client asks too much: with a problem, or without a word where that
    would be taken for the answer to another request."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._refused = False
        self._start(in_body=False)
        self._timer = self.loop.call_later(LOOK_EVERY, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._received += len(data)
        super().data_received(data)
        if self._received > MAX_HEAD + MAX_WRAPPING * self._body:
            if self._in_body:
                self._refuse(400, "The body holds too little for what is around it.")
            else:
                self._refuse(431, f"The head of a request must have at most {MAX_HEAD} bytes.")

    def on_message_begin(self) -> None:
        self._start(in_body=False)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if len(self.headers) > MAX_HEADERS:
            self._refuse(431, f"A request must have at most {MAX_HEADERS} headers.")
        elif len(self.pipeline) >= MAX_PIPELINED:
            self._refuse(429, f"At most {MAX_PIPELINED} requests may wait on one connection.")
        if not self._refused:
            self._start(in_body=True)
            super().on_headers_complete()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_body:  # nobody reads trailers
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        self._body += len(body)
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._start(in_body=False)
        self._awaits_client = False
        if not self._refused:
            super().on_message_complete()

    def _start(self, *, in_body: bool) -> None:
        """Begin to wait for a head or a body."""
        self._awaits_client = True
        self._in_body = in_body
        self._since = self.loop.time()
        self._received = self._body = 0

    def _look(self) -> None:
        if self not in self.connections:  # closed, or a WebSocket
            return
        self._timer = self.loop.call_later(LOOK_EVERY, self._look)
        idle = self.timeout_keep_alive_task is not None  # uvicorn closes it then
        answering = not self._awaits_client and self.cycle is not None and not self.cycle.response_complete
        if self.flow.read_paused or idle or answering:
            self._since = self.loop.time()
            self._received = self._body = 0
        elif self.loop.time() - self._since > PATIENCE + self._in_body * self._received / SLOWEST:
            self._refuse(408, "The request came too slowly.")

    def _refuse(self, status: int, detail: str) -> None:
        if self._refused:
            return
        self._refused = True
        logger.warning("http.refused", status=status, detail=detail, client=self.client[0] if self.client else None)
        waits = self.cycle is not None and not self.cycle.response_complete
        if not waits or (self._in_body and not self.pipeline and not self.cycle.response_started):
            answer = problem(status, detail, headers={"Connection": "close"})
            headers = b"".join(b"%s: %s\r\n" % header for header in answer.raw_headers)
            line = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n".encode()
            self.transport.write(line + headers + b"\r\n" + bytes(answer.body))
        self.transport.close()


def install() -> None:
    """Limit the connections that uvicorn makes in this process, however it was started.

    Its option `--http` takes a class too, but who types `uvicorn main:app` does not know that. It chooses its class
    before it imports the application, so that class is made to make ours.
    """
    setattr(HttpToolsProtocol, _MAKE, _make)


def _make(*_: Any, **__: Any) -> LimitedConnection:
    return object.__new__(LimitedConnection)


_MAKE = "__new__"

"""A real receiver of webhooks, in threads of the test process, which can refuse, hang and drip."""

import base64
import hashlib
import hmac
import json
import ssl
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

import trustme
from standardwebhooks import Webhook as Verifier

KEY = bytes(range(32))
SECRET = f"whsec_{base64.b64encode(KEY).decode()}"


@dataclass(frozen=True)
class Call:
    """One request, as it came."""

    at: float
    path: str
    headers: dict[str, str]
    body: str

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def content(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


def verify(call: Call, key: bytes = KEY) -> None:
    """As a receiver does, with the reference library; and by hand, as the specification says."""
    Verifier(f"whsec_{base64.b64encode(key).decode()}").verify(call.body, call.headers)
    signed = f"{call.id}.{call.headers['webhook-timestamp']}.{call.body}".encode()
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert call.headers["webhook-signature"] == f"v1,{expected}"
    assert abs(time.time() - int(call.headers["webhook-timestamp"])) < 60
    assert call.headers["content-type"] == "application/json"


@dataclass
class Receiver:
    """Answers each call with the next of `answers`, then with 204: a status, "hang" (no answer until it ends), "drip"
    (a byte of the status line every 0.2 s), "cut", or a location to be redirected to."""

    certificate: trustme.LeafCert | None = None
    answers: list[int | str] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)

    def __enter__(self) -> Self:
        self.ending = threading.Event()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        scheme = "http"
        if self.certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.certificate.configure_cert(context)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            scheme = "https"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_port}/hooks/mail?room=7"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ending.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def taken(self) -> list[Call]:
        """The calls that were answered with a 2xx, once each."""
        with self._lock:
            return [call for call, answer in self._answered if answer == 204]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receiver = self
        self._answered: list[tuple[Call, int | str]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                headers = {name.lower(): value for name, value in self.headers.items()}
                call = Call(time.monotonic(), self.path, headers, body)
                with receiver._lock:
                    answer = receiver.answers.pop(0) if receiver.answers else 204
                    receiver.calls.append(call)
                    receiver._answered.append((call, answer))
                receiver._answer(self, answer)

            def log_message(self, format: str, *args: object) -> None:
                """Quiet."""

        return Handler

    def _answer(self, handler: BaseHTTPRequestHandler, answer: int | str) -> None:
        handler.close_connection = True
        match answer:
            case "hang":
                self.ending.wait()
            case "drip":
                for byte in b"HTTP/1.1 204 " + b" " * 1000:
                    if self.ending.wait(0.2):
                        return
                    try:
                        handler.wfile.write(bytes([byte]))
                    except OSError:
                        return
            case "cut":
                return
            case int():
                handler.send_response(answer)
                handler.end_headers()
            case location:
                handler.send_response(307)
                handler.send_header("Location", location)
                handler.end_headers()

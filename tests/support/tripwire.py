"""A web server that notes whatever reaches it: what a mail wants to load, and where it wants to lead."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

GIF = b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff!\xf9\x04\x01\x00\x00\x00\x00,\x00\x00\x00\x00"
GIF += b"\x01\x00\x01\x00\x00\x02\x02D\x01\x00;"


@dataclass
class Tripwire:
    """`url` is of another site than 127.0.0.1. Paths in `pages` are answered with their HTML, others with a GIF."""

    url: str = ""
    pages: dict[str, str] = field(default_factory=dict)
    connections: int = 0
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    @property
    def paths(self) -> set[str]:
        return {path for path, _ in self.requests} - {"/favicon.ico"} - set(self.pages)


@contextmanager
def tripwire() -> Iterator[Tripwire]:
    notes = Tripwire()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            notes.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
            html = notes.pages.get(self.path)
            body = GIF if html is None else html.encode()
            self.send_response(200)
            self.send_header("Content-Type", "image/gif" if html is None else "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def get_request(self) -> Any:
            accepted = super().get_request()
            notes.connections += 1
            return accepted

        def handle_error(self, *_: Any) -> None:
            pass  # the browser hangs up when it likes

    with Server(("127.0.0.1", 0), Handler) as server:
        notes.url = f"http://localhost:{server.server_address[1]}"
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield notes
        finally:
            server.shutdown()
            thread.join()

"""An SMTP server (RFC 5321) that takes everything, keeps nothing, and writes down who got what, and when.

    python tools/batches/sink.py --port 2525 --record FILE [--delay 0.05] [--refuse REGEX] [--greylist REGEX]

One event loop carries hundreds of sessions, so that it is never what a measurement waits for. Each line of the record
is `time event recipient email-id`, separated by tabs and written before the client can know:
    taken     the final dot has come; 250 follows after `--delay` seconds
    refused   550 to RCPT
    greylist  451 to RCPT, once for each recipient
    cut       the server went down with this mail unfinished, or finished and unanswered
SIGUSR1 takes it down for `--down` seconds: every session is closed, and connecting is refused.
"""

import argparse
import asyncio
import os
import re
import signal
import time
from pathlib import Path
from typing import cast

import uvloop

_MESSAGE_ID = re.compile(rb"^message-id:\s*<([^@>]+)@", re.IGNORECASE | re.MULTILINE)
_PATH = re.compile(rb"<([^>]*)>")
END = b"\r\n.\r\n"


class Sink:
    """What all sessions share: the rules and the record."""

    def __init__(self, record: Path, *, delay: float, refuse: str | None, greylist: str | None) -> None:
        self.delay = delay
        self._refuse = re.compile(refuse) if refuse else None
        self._greylist = re.compile(greylist) if greylist else None
        self._seen: set[str] = set()
        self._record = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.sessions: set[Session] = set()

    def note(self, event: str, recipient: str, email_id: str = "") -> None:
        os.write(self._record, f"{time.time():.4f}\t{event}\t{recipient}\t{email_id}\n".encode())

    def judge(self, recipient: str) -> bytes:
        """The answer to RCPT."""
        if self._refuse and self._refuse.search(recipient):
            self.note("refused", recipient)
            return b"550 5.1.1 no such user"
        if self._greylist and self._greylist.search(recipient) and recipient not in self._seen:
            self._seen.add(recipient)
            self.note("greylist", recipient)
            return b"451 4.7.1 greylisted, come back later"
        return b"250 2.1.5 ok"

    async def serve(self, host: str, port: int, down: float) -> None:
        """Listen until SIGTERM; each SIGUSR1 is an outage of `down` seconds."""
        loop = asyncio.get_running_loop()
        outage, end = asyncio.Event(), asyncio.Event()

        def stop() -> None:
            end.set()
            outage.set()

        loop.add_signal_handler(signal.SIGUSR1, outage.set)
        loop.add_signal_handler(signal.SIGTERM, stop)
        while not end.is_set():
            server = await loop.create_server(lambda: Session(self), host, port, backlog=1024)
            await outage.wait()
            outage.clear()
            server.close()
            for session in list(self.sessions):
                session.cut()
            if not end.is_set():
                await asyncio.sleep(down)


class Session(asyncio.Protocol):
    """One connection. Commands may come in groups (RFC 2920); they are answered in order."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._input = bytearray()
        self._recipient = ""
        self._in_data = False
        self._answering: asyncio.TimerHandle | None = None
        self._closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._sink.sessions.add(self)
        self._say(b"220 sink.example ESMTP")

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed = True
        if self._answering:
            self._answering.cancel()
        self._sink.sessions.discard(self)

    def data_received(self, data: bytes) -> None:
        self._input += data
        self._proceed()

    def cut(self) -> None:
        """Close without a word. Politely at TCP's level: a reset would take answers back that are under way."""
        if self._recipient:
            self._sink.note("cut", self._recipient)
        self._closed = True
        self._transport.write_eof()
        asyncio.get_running_loop().call_later(1, self._transport.abort)

    def _proceed(self) -> None:
        while not self._closed and not self._answering:
            end = self._input.find(END if self._in_data else b"\r\n")
            if end < 0:
                return
            chunk = bytes(self._input[:end])
            del self._input[: end + len(END if self._in_data else b"\r\n")]
            if self._in_data:
                self._taken(chunk)
            else:
                self._command(chunk)

    def _command(self, line: bytes) -> None:
        match line[:4].upper():
            case b"EHLO":
                self._say(b"250-sink.example\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 SIZE 50000000")
            case b"MAIL" | b"RSET" | b"NOOP":
                self._recipient = ""
                self._say(b"250 2.0.0 ok")
            case b"RCPT":
                found = _PATH.search(line)
                recipient = found.group(1).decode() if found else ""
                answer = self._sink.judge(recipient)
                self._recipient = recipient if answer.startswith(b"250") else ""
                self._say(answer)
            case b"DATA" if self._recipient:
                self._in_data = True
                self._say(b"354 go on")
            case b"DATA":
                self._say(b"503 5.5.1 no recipient")
            case b"QUIT":
                self._say(b"221 2.0.0 bye")
                self._closed = True
                self._transport.close()
            case _:
                self._say(b"500 5.5.2 what?")

    def _taken(self, message: bytes) -> None:
        found = _MESSAGE_ID.search(message)
        self._sink.note("taken", self._recipient, found.group(1).decode() if found else "")
        self._in_data = False
        if self._sink.delay:
            self._answering = asyncio.get_running_loop().call_later(self._sink.delay, self._answer)
        else:
            self._answer()

    def _answer(self) -> None:
        self._answering = None
        self._recipient = ""
        self._say(b"250 2.0.0 taken")
        self._proceed()

    def _say(self, reply: bytes) -> None:
        self._transport.write(reply + b"\r\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--record", type=Path, required=True, metavar="FILE")
    parser.add_argument("--delay", type=float, default=0, metavar="SECONDS")
    parser.add_argument("--down", type=float, default=20, metavar="SECONDS")
    parser.add_argument("--refuse", metavar="REGEX", help="recipients that are refused for good")
    parser.add_argument("--greylist", metavar="REGEX", help="recipients that are refused the first time")
    options = parser.parse_args()
    sink = Sink(options.record, delay=options.delay, refuse=options.refuse, greylist=options.greylist)
    uvloop.run(sink.serve(options.host, options.port, options.down))


if __name__ == "__main__":
    main()

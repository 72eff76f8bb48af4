"""A real SMTP server (RFC 5321) in threads of the test process; a test decides what it answers, and when.

    with SmtpServer() as server:
        server.reply("rcpt", "550 5.1.1 no such user", when=lambda address: address.startswith("bob"))
        server.cut("dot-after-store", times=1)
        ...
        [first, *_] = server.wait_for(20)

One blocking thread per session, so that a line can be cut or held up at an exact point of the conversation.
"""

import socket
import ssl
import struct
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import trustme

from support.smtp_dialogue import Dialogue, Hangup, Received, Stage

__all__ = ["Authority", "Received", "SmtpServer", "Stage"]

HOST = "127.0.0.1"


class Authority:
    """A private CA: `ca_file` is its certificate in PEM, for the client to trust."""

    def __init__(self, directory: Path) -> None:
        self._ca = trustme.CA()
        self.ca_file = str(directory / "ca.pem")
        self._ca.cert_pem.write_to_path(self.ca_file)

    def certificate(
        self, *names: str, expired: bool = False, begins: int = -2, ends: int | None = None
    ) -> trustme.LeafCert:
        """A server certificate for host names or addresses (default: 127.0.0.1), valid between two days from now."""
        now = datetime.now(UTC)
        if ends is None:
            ends = -1 if expired else 1
        return self._ca.issue_cert(
            *(names or (HOST,)), not_before=now + timedelta(days=begins), not_after=now + timedelta(days=ends)
        )


@dataclass
class _Rule:
    stage: Stage
    when: Callable[[str], bool] | None
    times: int | None
    text: str | None = None
    seconds: float = 0.0
    reset: bool = False


@dataclass(eq=False)
class SmtpServer:
    """`tls`: None, "starttls", or "tls" from the start (both need `certificate`). `auth`: user and password, then
    required, and offered only under TLS if there is any. `size`: the limit announced and kept, in bytes.
    `port` 0 takes a free one and keeps it over stop() and start().
    """

    tls: Literal["starttls", "tls"] | None = None
    auth: tuple[str, str] | None = None
    certificate: trustme.LeafCert | None = None
    smtputf8: bool = True
    size: int | None = None
    pipelining: bool = True
    mechanisms: tuple[str, ...] = ("PLAIN", "LOGIN")
    host: str = HOST
    port: int = 0

    messages: list[Received] = field(default_factory=list, init=False)
    commands: list[tuple[int, str]] = field(default_factory=list, init=False)
    """Every command line but AUTH's credentials, with the number of its session."""
    connections: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.changed = threading.Condition()
        self.stopping = threading.Event()
        self._release_port: Callable[[], object] = lambda: None
        self._rules: list[_Rule] = []
        self._sessions: dict[threading.Thread, socket.socket] = {}
        self._faults: list[Exception] = []
        self.ssl_context: ssl.SSLContext | None = None
        if self.tls is not None:
            assert self.certificate is not None, "tls needs a certificate"
            self.ssl_context = _context(self.certificate)

    # Running it.

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._release_port()
        if self._faults and error is None:
            raise ExceptionGroup("faults of the test's SMTP server itself", self._faults)

    def start(self) -> None:
        """Listens; after stop() on the same port again."""
        self.stopping.clear()
        self._release_port()
        self._listener = socket.create_server((self.host, self.port), backlog=128)
        self.port = self._listener.getsockname()[1]
        self._accepting = threading.Thread(target=self._accept, name="smtp-accept", daemon=True)
        self._accepting.start()

    def stop(self) -> None:
        """An outage: connecting is refused, and every open session is closed without a word."""
        if not self._accepting.is_alive():
            return
        self.stopping.set()
        with self.changed:
            self.changed.notify_all()
        # The portable way to wake accept(): one more connection, which it does not serve.
        with suppress(OSError):
            socket.create_connection((self.host, self.port)).close()
        self._accepting.join()
        while self.open_connections:
            # Again, because a session that changes to TLS just now has no socket to close for a moment.
            self.close_sessions()
            with self.changed:
                self.changed.wait_for(lambda: not self._sessions, timeout=0.05)
        # Bound but deaf: else another process takes the port, and gets the mail of clients that keep trying.
        reserved = socket.socket()
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind((self.host, self.port))
        self._release_port = weakref.finalize(self, reserved.close)

    def close_sessions(self, farewell: str | None = None) -> None:
        """Closes the open sessions from this side, as servers do with idle ones; first says `farewell`."""
        with self.changed:
            sockets = list(self._sessions.values())
        for sock in sockets:
            with suppress(OSError):
                if farewell is not None:
                    sock.sendall(farewell.encode() + b"\r\n")
                # Not SSLSocket.shutdown, which takes the TLS object from under the thread that reads.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    # What it answers.

    def reply(
        self, stage: Stage, text: str, *, when: Callable[[str], bool] | None = None, times: int | None = None
    ) -> None:
        """Answers a stage with `text` (lines joined by CRLF). After 421 the session is closed.

        `when` gets the sender at "mail", the user at "auth", the recipient from "rcpt" on, else "". The rule made
        last goes first; `times` limits how often it acts.
        """
        self._add(_Rule(stage, when, times, text=text))

    def cut(
        self,
        stage: Stage,
        *,
        when: Callable[[str], bool] | None = None,
        times: int | None = None,
        reset: bool = False,
    ) -> None:
        """Closes the connection in place of an answer; `reset` with an RST."""
        self._add(_Rule(stage, when, times, reset=reset))

    def delay(
        self,
        stage: Stage,
        seconds: float,
        *,
        when: Callable[[str], bool] | None = None,
        times: int | None = None,
    ) -> None:
        """Waits before it goes on with a stage, also before a reply() or cut() there. stop() ends the wait."""
        self._add(_Rule(stage, when, times, seconds=seconds))

    def show(self, certificate: trustme.LeafCert) -> None:
        """Shows another certificate from now on, and closes what is open."""
        self.ssl_context = _context(certificate)
        self.close_sessions()

    def clear(self) -> None:
        """Forgets every rule; messages and counts stay."""
        with self.changed:
            self._rules.clear()

    def _add(self, rule: _Rule) -> None:
        with self.changed:
            self._rules.append(rule)

    def choose(self, stage: Stage, subject: str, default: str) -> str:
        """The reply of a stage, after its delays. Raises Hangup where the line is cut."""
        with self.changed:
            due = [
                rule
                for rule in self._rules
                if rule.stage == stage and rule.times != 0 and (rule.when is None or rule.when(subject))
            ]
            delays = [rule for rule in due if rule.seconds]
            answers = [rule for rule in due if not rule.seconds][-1:]
            for rule in delays + answers:
                if rule.times is not None:
                    rule.times -= 1
        if delays and self.stopping.wait(sum(rule.seconds for rule in delays)):
            raise Hangup
        if not answers:
            return default
        if answers[0].text is None:
            raise Hangup(reset=answers[0].reset)
        return answers[0].text

    # What it saw.

    @property
    def open_connections(self) -> int:
        with self.changed:
            return len(self._sessions)

    def verbs(self, session: int | None = None) -> list[str]:
        """The commands seen, without arguments, of one session or all."""
        with self.changed:
            return [line.split(" ")[0].upper() for number, line in self.commands if session in {None, number}]

    def wait_for(self, n: int, timeout: float = 10.0) -> list[Received]:
        """The messages, once there are at least `n`."""
        self.wait_until(lambda: len(self.messages) >= n, timeout, f"{n} messages")
        return list(self.messages)

    def wait_until(self, holds: Callable[[], bool], timeout: float = 10.0, what: str = "the condition") -> None:
        """Waits until `holds()`, asked again whenever something happened here."""
        with self.changed:
            held = self.changed.wait_for(holds, timeout)
        assert held, f"waited {timeout} s for {what}; the server has {len(self.messages)} messages"

    def store(self, received: Received) -> None:
        with self.changed:
            self.messages.append(received)
            self.changed.notify_all()

    def note(self, session: int, line: str) -> None:
        with self.changed:
            self.commands.append((session, line))
            self.changed.notify_all()

    # Sessions.

    def _accept(self) -> None:
        with self._listener:
            while True:
                sock, _ = self._listener.accept()
                if self.stopping.is_set():
                    sock.close()
                    return
                with self.changed:
                    self.connections += 1
                    thread = threading.Thread(
                        target=self._serve, args=(sock, self.connections), name="smtp-session", daemon=True
                    )
                    self._sessions[thread] = sock
                    self.changed.notify_all()
                thread.start()

    def _serve(self, sock: socket.socket, number: int) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        session = Dialogue(self, sock, number)
        try:
            session.run()
        except Hangup as hangup:
            if hangup.reset:
                session.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError:
            pass  # the client, or stop(), closed the connection
        except Exception as fault:  # noqa: BLE001 - re-raised in the test by __exit__
            self._faults.append(fault)
        finally:
            session.close()
            with self.changed:
                del self._sessions[threading.current_thread()]
                self.changed.notify_all()

    def replace_socket(self, sock: socket.socket) -> None:
        with self.changed:
            self._sessions[threading.current_thread()] = sock


def _context(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context

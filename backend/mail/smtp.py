"""Sending over SMTP: connections are pooled, and every failure is an error class of `mail.errors`.

SmtpTransport           the pool: hands every mail a live connection, from any thread
└── smtp_session        one connection, command by command
    └── smtp_replies    reply code or broken line -> error class
"""

import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import structlog

from mail.errors import ServerBusy, ServerUnavailable
from mail.smtp_replies import Reply, Stage
from mail.smtp_session import Envelope, Mail, PipeliningDoubted, Security, Session, SmtpConfig, tls_context
from mail.timings import Timings

__all__ = ["Chain", "Envelope", "Mail", "Reply", "Security", "SmtpConfig", "SmtpTransport"]

logger = structlog.get_logger(__name__)

DOUBTS = 2
"""Lines that broke between the replies to one flight, without a mail that was taken in between: more is no chance."""


class SmtpTransport:
    """Sends mails to one server over connections that are kept and reused. Threads may share it.

    There are never more connections than threads that send. The one used last is taken first, so that the
    others grow old; they are closed when a later mail passes by. Not to be used on both sides of a fork.
    """

    def __init__(self, config: SmtpConfig) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._idle: list[Session] = []
        self._closed = False
        self._timings = Timings()
        self._pipelining = True
        self._doubts = 0
        if config.username and config.security is Security.NONE:
            logger.warning("smtp.password_in_clear", server=config.server, hint="SMTP_SECURITY is none")

    def send(self, envelope: Envelope, message: bytes) -> Reply:
        """Hands one mail to the server and returns its 250.

        `message` is the complete MIME message with CRLF line ends. Raises PermanentError (this mail is
        refused), TransientError (this mail, not now), OutcomeUnknown (it may have been taken),
        ServerUnavailable, ServerBusy or ServerRefuses (nothing to do with this mail).

        Servers close idle connections as they like, so a kept one that turns out dead before the server
        took MAIL is no error: it is replaced, once.
        """
        with self.chain() as chain:
            return chain.send(Mail(envelope, message))

    @contextmanager
    def chain(self) -> Iterator["Chain"]:
        """Several mails, one after the other. For one thread."""
        chain = Chain(self)
        try:
            yield chain
        finally:
            chain.end()

    def measured(self) -> Mapping[str, Any]:
        """As JSON: connections `in_use` and `open`, and `histograms` of the seconds that mails took (timings.py)."""
        in_use = self._timings.running
        return {"in_use": in_use, "open": in_use + len(self._idle), "histograms": self._timings.histograms()}

    def deliver(self, mail: Mail, chain: "Chain", ahead: Mail | None) -> Reply:
        """One mail of a chain; see Chain.send."""
        with self._timings.mail():
            return self._deliver(mail, chain, ahead)

    def _deliver(self, mail: Mail, chain: "Chain", ahead: Mail | None) -> Reply:
        try:
            if (kept := chain.take() or self._take()) is not None:
                try:
                    return self._send_over(kept, mail, chain, ahead)
                except ServerUnavailable as error:
                    logger.debug("smtp.connection_was_dead", error=str(error))
                except ServerBusy as error:
                    if (error.code, error.stage) != (421, Stage.MAIL):
                        raise
            return self._send_over(self._connect(), mail, chain, ahead)
        except PipeliningDoubted as doubt:
            return self._send_step_by_step(mail, chain, doubt)

    def _send_step_by_step(self, mail: Mail, chain: "Chain", doubt: PipeliningDoubted) -> Reply:
        """What becomes of the mail when each command waits for its reply is the truth. If it is taken then, the
        server cannot do what it offers, and is not asked to any more."""
        reply = self._send_over(self._connect(pipelining=False), mail, chain, None)
        self._doubts = DOUBTS if doubt.sure else self._doubts + 1
        if self._doubts >= DOUBTS and self._pipelining:
            self._pipelining = False
            logger.warning("smtp.pipelining_off", server=self._config.server, error=str(doubt))
        return reply

    def trim(self, count: int) -> None:
        """Closes idle connections but for `count`."""
        with self._lock:
            surplus = self._idle[: max(0, len(self._idle) - count)]
            del self._idle[: len(surplus)]
        for session in surplus:
            session.quit()

    def close(self) -> None:
        """Closes the idle connections; one in use is closed when its mail is done, and none is kept any more."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for session in idle:
            session.quit()

    def _connect(self, *, pipelining: bool | None = None) -> Session:
        wanted = self._pipelining if pipelining is None else pipelining
        return Session(self._config, lambda: self._tls_context, pipelining=wanted).open()

    def _send_over(self, session: Session, mail: Mail, chain: "Chain", ahead: Mail | None) -> Reply:
        try:
            reply = session.deliver(*mail, ahead)
            if session.pipelines:
                self._doubts = 0
            return reply
        finally:
            session.idle_since = time.monotonic()
            if session.awaits_message and not self._closed:
                chain.hold(session)
            else:
                self._give_back(session)

    def _take(self) -> Session | None:
        now = time.monotonic()
        with self._lock:
            stale = [session for session in self._idle if session.is_stale(now)]
            self._idle = [session for session in self._idle if session not in stale]
            taken = self._idle.pop() if self._idle else None
        for session in stale:
            session.quit()
        return taken

    def _give_back(self, session: Session) -> None:
        session.idle_since = now = time.monotonic()
        with self._lock:
            keep = session.is_open and not self._closed and not session.is_worn(now)
            if keep:
                self._idle.append(session)
        if not keep:
            session.quit()

    @cached_property
    def _tls_context(self) -> ssl.SSLContext:
        return tls_context(self._config)


class Chain:
    """Mails to one server, one after the other: what announces the next one travels with the one before, where the
    server takes several commands at once (RFC 2920). SmtpTransport.chain makes it."""

    def __init__(self, transport: SmtpTransport) -> None:
        self._transport = transport
        self._held: Session | None = None

    def send(self, mail: Mail, ahead: Mail | None = None) -> Reply:
        """As SmtpTransport.send. `ahead`: what the next call is going to send; it need not come."""
        return self._transport.deliver(mail, self, ahead)

    def take(self) -> Session | None:
        """The connection on which the next mail is announced, if there is one."""
        held, self._held = self._held, None
        return held

    def hold(self, session: Session) -> None:
        """Keep it for the next mail."""
        self._held = session

    def end(self) -> None:
        """No further mail comes. One that was announced is dropped with its connection, of which nothing was sent."""
        if held := self.take():
            held.close()

"""One SMTP connection (RFC 5321): connect, EHLO, STARTTLS, AUTH once; then MAIL, RCPT, DATA, dot for every mail.

smtplib is driven one command at a time, because its `sendmail`, `login` and constructor lose which command a
code answered: a refused RCPT hides its code in `.recipients`, AUTH tells only the last mechanism tried.
"""

import functools
import ipaddress
import re
import selectors
import socket
import ssl
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Self

import structlog

from mail.errors import DeliveryError, PermanentError, ServerBusy, ServerRefuses, ServerUnavailable
from mail.smtp_client import SMTP
from mail.smtp_replies import Reply, Stage, broken, reason, refusal

logger = structlog.get_logger(__name__)

CHUNK = 64 * 1024


class Security(StrEnum):
    """How the connection is protected. `AUTO`: TLS on port 465, else STARTTLS when the server offers it."""

    AUTO = "auto"
    NONE = "none"
    STARTTLS = "starttls"
    TLS = "tls"


@dataclass(frozen=True)
class SmtpConfig:
    """One SMTP server and how to use it. All times are in seconds.

    `data_timeout` is for the reply to the final dot: RFC 5321 section 4.5.3.2.6 asks for ten minutes, and less
    makes duplicates. `ca_file` is a PEM file trusted besides the system's CAs. `helo_name` is the name said in
    EHLO (default: this host's). A connection is recycled after `max_messages` or `max_age`, proved alive before
    use after `idle_check` without mail, and not used again after `max_idle`.
    """

    host: str
    port: int
    username: str = ""
    password: str = field(default="", repr=False)
    security: Security = Security.AUTO
    timeout: float = 30.0
    data_timeout: float = 600.0
    ca_file: str | None = None
    helo_name: str | None = None
    max_messages: int = 100
    max_age: float = 300.0
    idle_check: float = 5.0
    max_idle: float = 60.0

    @property
    def tls_from_start(self) -> bool:
        return self.security is Security.TLS or (self.security is Security.AUTO and self.port == 465)

    @property
    def longest(self) -> float:
        """Seconds from connecting to the last reply that no server which answers at all exceeds: a dozen steps lead
        to DATA, over a kept connection and then a new one, and a large mail takes some."""
        return self.data_timeout + 20 * self.timeout

    @property
    def server(self) -> str:
        """The name of the server in messages to a human."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"SMTP server {host}:{self.port}"


@dataclass(frozen=True)
class Envelope:
    """Who sends to whom (RFC 5321 section 2.3.1). `smtputf8`: the message itself needs RFC 6531."""

    sender: str
    recipient: str
    smtputf8: bool = False


def may_auth_in_clear(host: str, security: Security) -> bool:
    """Whether a password may cross a connection without TLS: within this machine, or where told `none`."""
    return security is Security.NONE or is_local(host)


def is_local(host: str) -> bool:
    """Whether a host is this machine by its looks. Not by its address: what DNS says, others may have written."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def tls_context(config: SmtpConfig) -> ssl.SSLContext:
    """How certificates are checked. Raises ServerRefuses when `ca_file` cannot be used.

    Make it once for all connections: reading the system's CAs takes tens of milliseconds.
    """
    context = ssl.create_default_context()
    if config.ca_file is not None:
        try:
            context.load_verify_locations(config.ca_file)
        except OSError as error:
            raise ServerRefuses(
                f"the CA file {config.ca_file} cannot be used: {error.strerror}", stage=Stage.TLS
            ) from error
    return context


class Mail(NamedTuple):
    """One mail as it goes over the wire."""

    envelope: Envelope
    message: bytes


class PipeliningDoubted(Exception):
    """Several commands were sent at once, and what came back may be due to that. The mail itself was not sent.

    `sure`: only a server that has lost the order of commands says such a thing. A broken line may be chance.
    """

    def __init__(self, error: DeliveryError, *, sure: bool) -> None:
        super().__init__(str(error))
        self.sure = sure


_FLIGHT = {Stage.MAIL: 2, Stage.RCPT: 2, Stage.DATA: 3}
"""What goes in one flight, and with what digit the replies begin that are hoped for."""
_ORDER_LOST = {500, 501, 502, 503, 504}
"""What a server says that has lost a command, or the order of them (RFC 5321 section 4.2.2)."""


class Session:
    """One connection. Not thread-safe: the pool lends it to one thread.

    `open()` makes it ready for mail; whoever wants to watch takes `connect()` and `opening()` step by step, and
    `close()` after an error. From then on every method leaves it either ready for the next mail or closed,
    whatever it raises.
    """

    def __init__(
        self, config: SmtpConfig, tls_context: Callable[[], ssl.SSLContext], *, pipelining: bool = False
    ) -> None:
        """Not connected yet. `tls_context` is called only if TLS is used. `pipelining`: MAIL, RCPT and DATA go in one
        flight, where the server offers it (RFC 2920)."""
        self._config = config
        self._pipelining = pipelining
        self._tls_context = tls_context
        self._secrets = secrets_of(config)
        self._client = SMTP(local_hostname=config.helo_name or _own_name())
        self._client.command_encoding = "utf-8"  # for SMTPUTF8 addresses; all else is ASCII
        self.reply = Reply(-1, "")
        """The server's last reply."""
        self.tls: ssl.SSLSocket | None = None
        """The connection once it is encrypted; still there when it is closed."""
        self._ahead: tuple[Envelope, int] | None = None
        self.mails = 0
        self.opened_at = time.monotonic()

    def open(self) -> Self:
        """Connect and log in. Raises ServerUnavailable, ServerBusy or ServerRefuses."""
        try:
            self.connect()
            for _ in self.opening():
                pass
        except BaseException:
            self.close()
            raise
        self.idle_since = time.monotonic()
        return self

    def connect(self, address: str | None = None, timeout: float | None = None) -> None:
        """TCP only: to one `address` of the host, by default to the first that answers; `timeout` is for each."""
        config = self._config
        try:
            self._attach(socket.create_connection((address or config.host, config.port), timeout or config.timeout))
        except (OSError, UnicodeError) as error:
            why = reason(error, config.timeout)
            raise ServerUnavailable(f"{config.server} cannot be reached: {why}", stage=Stage.CONNECT) from error
        # Nagle would hold the last packet of a message back until the ACK of the one before, which is delayed.
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock.settimeout(config.timeout)

    def opening(self) -> Iterator[Stage]:
        """Everything between TCP and the first mail. Yields each stage before it is taken: CONNECT is the
        greeting, TLS is TLS from the start, STARTTLS includes the handshake and the second EHLO.
        """
        config = self._config
        if config.tls_from_start:
            yield Stage.TLS
            self._encrypt()
        yield Stage.CONNECT
        self._judged(Stage.CONNECT, self._reply(Stage.CONNECT))
        yield Stage.EHLO
        self._hello()
        wanted = config.security is Security.STARTTLS or (
            config.security is Security.AUTO and "starttls" in self.features
        )
        if wanted and self.tls is None:
            yield Stage.STARTTLS
            self._upgrade()
        if config.username:
            yield Stage.AUTH
            self._authenticate()

    @property
    def features(self) -> dict[str, str]:
        """What the server offered in its last EHLO, in lower case, with parameters (RFC 5321 section 4.1.1.1)."""
        return self._client.esmtp_features

    @property
    def pipelines(self) -> bool:
        """Whether MAIL, RCPT and DATA go in one flight."""
        return self._pipelining and "pipelining" in self.features

    @property
    def helo_name(self) -> str:
        return self._client.local_hostname

    @property
    def is_open(self) -> bool:
        return self._client.sock is not None

    def is_worn(self, now: float) -> bool:
        """Whether it has carried its share of mails, or for long enough."""
        return self.mails >= self._config.max_messages or now - self.opened_at >= self._config.max_age

    def is_stale(self, now: float) -> bool:
        return self.is_worn(now) or now - self.idle_since >= self._config.max_idle

    @property
    def awaits_message(self) -> bool:
        """Whether a mail is announced that was not sent yet: `QUIT` would become a part of it."""
        return self._ahead is not None

    def deliver(self, envelope: Envelope, message: bytes, ahead: Mail | None = None) -> Reply:
        """Sends one mail and returns the reply to its final dot; raises a DeliveryError.

        `ahead`: the mail that comes next, if this connection is to carry it. Its announcement travels with the end of
        this one's message (RFC 2920 section 3.1), and its own message waits for the next call.

        ServerUnavailable, and 421 at MAIL, mean that the server has not begun with this mail. PipeliningDoubted:
        send it again, over a connection that does without; this one is closed.
        """
        announced, self._ahead = self._ahead, None
        if announced not in {None, (envelope, len(message))}:
            self.close()
            raise ServerUnavailable("another mail was announced on this connection", stage=Stage.MAIL)
        if not announced and time.monotonic() - self.idle_since >= self._config.idle_check:
            self._prove_alive()
        self.mails += 1
        try:
            return self._transaction(envelope, message, announced is not None, ahead)
        except DeliveryError:
            if not self.awaits_message:
                self.reset()
            raise
        except BaseException:
            self.close()
            raise

    def quit(self) -> None:
        """Says goodbye, without waiting for the answer: nothing depends on it, and it costs a round trip."""
        if self.is_open and not self.awaits_message:
            try:
                self._client.putcmd("QUIT")
            except OSError:
                logger.debug("smtp.closed_before_quit", server=self._config.server)
        self.close()

    def close(self) -> None:
        self._ahead = None
        self._client.close()

    # One mail.

    def mail(self, envelope: Envelope, message: bytes) -> Reply:
        """Announce a mail. Raises PermanentError for one that the server, by its EHLO, cannot take."""
        return self._command(Stage.MAIL, self._mail_line(envelope, message))

    def rcpt(self, envelope: Envelope) -> Reply:
        """Name the recipient of the mail that was announced."""
        return self._command(Stage.RCPT, _rcpt_line(envelope))

    def reset(self) -> None:
        """Take back what was announced; closes the connection if the server does not agree."""
        if self.is_open:
            try:
                code, _ = self._client.docmd("RSET")
            except OSError:
                code = -1
            if code != 250:
                self.close()

    def _transaction(self, envelope: Envelope, message: bytes, announced: bool, ahead: Mail | None) -> Reply:
        if announced:
            self._judge_flight(self._flight_replies())
            self._prove_silent()
        elif self.pipelines:
            self._fly(envelope, message)
        else:
            self.mail(envelope, message)
            self.rcpt(envelope)
            self._command(Stage.DATA, "DATA", hoped_for=3)
        self._write(message)
        whole = self._announce(ahead) if ahead and self.mails < self._config.max_messages else True
        reply = self._final_reply()
        if not whole:
            self.close()
        return reply

    def _announce(self, mail: Mail) -> bool:
        """Send the flight of the mail that comes next, if there can be one. False: only a part of it was sent. Not by
        way of smtplib, which closes at an error: the reply to the mail before may still come."""
        if not self.pipelines:
            return True
        try:
            flight = self._client.commands(*self._flight(*mail))
        except PermanentError:  # which is told when it is its turn
            return True
        try:
            self._sock.sendall(flight)
        except OSError:
            return False
        self._ahead = mail.envelope, len(mail.message)
        return True

    def _flight(self, envelope: Envelope, message: bytes) -> tuple[str, str, str]:
        return self._mail_line(envelope, message), _rcpt_line(envelope), "DATA"

    def _fly(self, envelope: Envelope, message: bytes) -> None:
        """All that comes before the message, in one flight."""
        try:
            self._client.putcmds(*self._flight(envelope, message))
        except OSError as error:
            raise self._broken(Stage.MAIL, error) from error
        self._judge_flight(self._flight_replies())

    def _flight_replies(self) -> Sequence[Reply]:
        """Every reply, also after one that says no, so that each stays with its command (RFC 2920 section 3.1)."""
        replies: list[Reply] = []
        for stage in _FLIGHT:
            try:
                replies.append(self._reply(stage))
            except DeliveryError as error:
                if stage is Stage.MAIL:
                    raise
                raise PipeliningDoubted(error, sure=False) from error
            if self.reply.code == 421:  # it closes: nothing else comes
                self._judged(stage, self.reply)
        return replies

    def _judge_flight(self, replies: Sequence[Reply]) -> None:
        kinds = [reply.code // 100 for reply in replies]
        hoped_for = list(_FLIGHT.values())
        if kinds == hoped_for:
            return
        first = next(at for at, kind in enumerate(kinds) if kind != hoped_for[at])
        if kinds[-1] == 3 and kinds[1] in {4, 5}:
            # It wants a mail in spite of its refusal (RFC 2920 allows it), and gets an empty one, for nobody.
            with suppress(OSError):
                self._client.send(".\r\n")
                kinds[-1] = self._client.getreply()[0] // 100
        self.reply, stage = replies[first], list(_FLIGHT)[first]
        fits = kinds[0] in {2, 4, 5} and kinds[1] in {2, 4, 5} and kinds[-1] in {4, 5}
        if not fits or self.reply.code in _ORDER_LOST:
            self.close()
            raise PipeliningDoubted(refusal(self._config.server, stage, self.reply), sure=True)
        self._judged(stage, self.reply, hoped_for[first])

    def _mail_line(self, envelope: Envelope, message: bytes) -> str:
        offered = self.features
        parameters = ""
        if "size" in offered:
            limit = int(offered["size"]) if offered["size"].isdecimal() else 0
            if 0 < limit < len(message):  # RFC 1870 section 4: 0 means no limit
                raise self._impossible(f"takes at most {limit} bytes, and the message has {len(message)}")
            parameters += f" SIZE={len(message)}"
        if "8bitmime" in offered and not message.isascii():
            parameters += " BODY=8BITMIME"
        if envelope.smtputf8 or not (envelope.sender + envelope.recipient).isascii():
            if "smtputf8" not in offered:
                raise self._impossible("does not offer SMTPUTF8 (RFC 6531), which this mail's address needs")
            parameters += " SMTPUTF8"
        return f"MAIL FROM:<{envelope.sender}>{parameters}"

    def _impossible(self, why: str) -> PermanentError:
        return PermanentError(f"{self._config.server} {why}", stage=Stage.MAIL)

    def _write(self, message: bytes) -> None:
        # The final dot travels with the end of the message; alone it would cost a system call and a packet. An
        # error here still means "not taken": the kernel took not all of it, and a server acts on nothing
        # short of CRLF.CRLF (RFC 5321 section 4.1.1.4).
        # In chunks, because the timeout of a plain socket's sendall is for the whole call, not for each step.
        first = b"." if message.startswith(b".") else b""
        last = b".\r\n" if message.endswith(b"\r\n") else b"\r\n.\r\n"
        octets = memoryview(b"".join((first, message.replace(b"\n.", b"\n.."), last)))
        try:
            for start in range(0, len(octets), CHUNK):
                self._client.send(octets[start : start + CHUNK])
        except OSError as error:
            raise self._broken(Stage.DATA, error) from error

    def _final_reply(self) -> Reply:
        self._sock.settimeout(self._config.data_timeout)
        reply = self._reply(Stage.DOT)
        self._sock.settimeout(self._config.timeout)
        return self._judged(Stage.DOT, reply)

    def _prove_silent(self) -> None:
        """That the line still holds: it may have been closed since the mail was announced. After that a message would
        be lost in it, and nobody could tell whether it was."""
        with selectors.DefaultSelector() as selector:  # not select, which knows no descriptors over 1,023
            selector.register(self._sock, selectors.EVENT_READ)
            spoken = selector.select(0)
        if spoken:
            self.close()
            text = f"{self._config.server} has closed the connection, or spoke unasked, before the message was sent"
            raise ServerUnavailable(text, stage=Stage.MAIL)

    def _prove_alive(self) -> None:
        try:
            self._command(Stage.NOOP, "NOOP")
        except DeliveryError as error:
            self.quit()
            raise ServerUnavailable(str(error), code=error.code, reply=error.reply, stage=Stage.NOOP) from error

    # The opening.

    def _attach(self, sock: socket.socket) -> None:
        self._sock = sock
        self._client.sock = sock
        self._client.file = None  # on STARTTLS: forgets replies that somebody slipped in before TLS

    def _hello(self) -> None:
        try:
            code, text = self._client.ehlo()
        except OSError as error:
            raise self._broken(Stage.EHLO, error) from error
        self._judged(Stage.EHLO, self._parsed(code, text))

    def _upgrade(self) -> None:
        if "starttls" not in self.features:
            raise ServerRefuses(
                f"{self._config.server} does not offer STARTTLS, which SMTP_SECURITY=starttls requires",
                stage=Stage.STARTTLS,
            )
        self._command(Stage.STARTTLS, "STARTTLS")
        self._encrypt()
        self._hello()  # RFC 3207 section 4.2: what was offered in clear counts no longer

    def _encrypt(self) -> None:
        context = self._tls_context()
        try:
            self.tls = context.wrap_socket(self._sock, server_hostname=self._config.host)
        except OSError as error:
            raise self._broken(Stage.TLS, error) from error
        self._attach(self.tls)

    def _authenticate(self) -> None:
        config = self._config
        if self.tls is None and not may_auth_in_clear(config.host, config.security):
            raise ServerRefuses(
                f"{config.server} offers no TLS, and a password is not sent in clear over a network: use a port "
                "with TLS, or set SMTP_SECURITY=none if you trust this network",
                stage=Stage.AUTH,
            )
        # Not smtplib's login: it wants ASCII, and tries a wrong password by every mechanism, up to a lock-out.
        mechanisms = self.features.get("auth", "").upper().split()
        if "PLAIN" in mechanisms:
            self._command(Stage.AUTH, f"AUTH PLAIN {_plain(config)}")
        elif "LOGIN" in mechanisms:
            self._command(Stage.AUTH, "AUTH LOGIN", hoped_for=3)
            self._command(Stage.AUTH, _base64(config.username), hoped_for=3)
            self._command(Stage.AUTH, _base64(config.password))
        else:
            raise ServerRefuses(
                f"SMTP_USERNAME is set, but {config.server} offers neither AUTH PLAIN nor LOGIN "
                f"(it offers: {' '.join(mechanisms) or 'none'})",
                stage=Stage.AUTH,
            )

    # One command.

    def _command(self, stage: Stage, line: str, hoped_for: int = 2) -> Reply:
        """Sends a line; returns the reply if it begins with `hoped_for` (RFC 5321 section 4.2.1)."""
        try:
            self._client.putcmd(line)
        except OSError as error:
            raise self._broken(stage, error) from error
        return self._judged(stage, self._reply(stage), hoped_for)

    def _reply(self, stage: Stage) -> Reply:
        try:
            return self._parsed(*self._client.getreply())
        except OSError as error:
            raise self._broken(stage, error) from error

    def _parsed(self, code: int, text: bytes) -> Reply:
        self.reply = Reply.parse(code, text, self._secrets)
        return self.reply

    def _judged(self, stage: Stage, reply: Reply, hoped_for: int = 2) -> Reply:
        if reply.code // 100 == hoped_for:
            return reply
        error = refusal(self._config.server, stage, reply)
        # No more mail over this connection if the server wants less or none of it (its share may be used up), or
        # if the reply fits no command, for then nobody knows which one the next reply is for.
        if isinstance(error, ServerBusy | ServerRefuses) or reply.code // 100 not in {4, 5}:
            self.quit()
        raise error

    def _broken(self, stage: Stage, error: OSError) -> DeliveryError:
        self.close()
        patience = self._config.data_timeout if stage is Stage.DOT else self._config.timeout
        return broken(self._config.server, stage, error, patience)


def _rcpt_line(envelope: Envelope) -> str:
    return f"RCPT TO:<{envelope.recipient}>"


@functools.cache
def _own_name() -> str:
    # Cached, for without DNS getfqdn takes seconds. RFC 5321 section 4.1.3: an address literal if no full name.
    name = socket.getfqdn()
    if "." in name:
        return name
    try:
        return f"[{socket.gethostbyname(socket.gethostname())}]"
    except OSError:
        return "[127.0.0.1]"


def _plain(config: SmtpConfig) -> str:
    return _base64(f"\0{config.username}\0{config.password}")  # RFC 4616


def _base64(text: str) -> str:
    # surrogateescape: the bytes of an environment variable that is not UTF-8, as they are.
    return b64encode(text.encode("utf-8", "surrogateescape")).decode("ascii")


@functools.cache
def secrets_of(config: SmtpConfig) -> re.Pattern[str] | None:
    """The password in the forms that it is sent in, wherever spaces and line ends fell when it was quoted."""
    if not config.password:
        return None
    password = config.password.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    spoken = (_plain(config), _base64(config.password), password)
    letters = ([re.escape(letter) for letter in form if not letter.isspace()] for form in spoken)
    return re.compile("|".join(r"\s*".join(form) for form in letters if form), re.IGNORECASE)

"""Walks to the SMTP server step by step, as a worker does, and names the step that fails, its cause and its fix.

The steps are those of `smtp_session`, so that what is checked is what the workers do. Where a fault has two
possible causes, a second connection finds out which it is; that one carries no login.
"""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import cache
from ipaddress import ip_address

from mail import smtp_causes as causes
from mail import smtp_refusals as refusals
from mail.delivery import Delivery
from mail.errors import DeliveryError
from mail.message import Sender, ascii_domain
from mail.smtp_causes import Certificate, Diagnosis, Facts
from mail.smtp_replies import Stage, fault, reason
from mail.smtp_session import Envelope, Security, Session, SmtpConfig, is_local, secrets_of, tls_context

PROBE_TIMEOUT = 5.0  # seconds: who speaks the language in question answers within a round trip
ANY_QUESTION = b"EHLO localhost\r\n\r\n"  # with the empty line, web servers answer too
EXPIRY_WARNING = 14  # days
TYPICAL_SIZE = 16_384  # bytes; the size of a mail that is announced at MAIL when none follows


class Step(IntEnum):
    """The steps in their order; the value is the exit code of the command when one fails."""

    SETTINGS = 10
    DNS = 11
    TCP = 12
    GREETING = 13
    EHLO = 14
    TLS = 15
    AUTH = 16
    MAIL = 17
    RCPT = 18
    MESSAGE = 19

    @property
    def title(self) -> str:
        return _TITLES[self][0]

    @property
    def fault(self) -> str:
        """What it means that the check ended here."""
        return _TITLES[self][1]


_TITLES = {
    Step.SETTINGS: ("settings", "a setting is wrong"),
    Step.DNS: ("DNS", "SMTP_HOST leads to no address"),
    Step.TCP: ("TCP", "nothing answers at SMTP_PORT: it is closed or filtered"),
    Step.GREETING: ("greeting", "no SMTP server greets, or it turns this machine away"),
    Step.EHLO: ("EHLO", "the server does not say what it offers"),
    Step.TLS: ("TLS", "no TLS where it is demanded, or a certificate that does not pass"),
    Step.AUTH: ("AUTH", "the login is refused or not possible"),
    Step.MAIL: ("MAIL FROM", "the sender is refused"),
    Step.RCPT: ("RCPT TO", "the recipient is refused"),
    Step.MESSAGE: ("mail", "the mail itself is refused (only with --to)"),
}
_STEPS = {
    Stage.CONNECT: Step.GREETING,
    Stage.EHLO: Step.EHLO,
    Stage.TLS: Step.TLS,
    Stage.STARTTLS: Step.TLS,
    Stage.AUTH: Step.AUTH,
    Stage.MAIL: Step.MAIL,
    Stage.RCPT: Step.RCPT,
}


@dataclass(frozen=True)
class Result:
    """One step that was taken: what was found and what is odd; in the last one perhaps what failed."""

    step: Step
    seconds: float
    found: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    failure: Diagnosis | None = None


class Failed(Exception):
    """A step failed, and its cause is known."""

    def __init__(self, diagnosis: Diagnosis) -> None:
        self.diagnosis = diagnosis
        super().__init__(diagnosis.said)


@dataclass
class _Seen:
    """What a second connection saw of the server."""

    certificate: bytes | None = None
    greeting: str = ""
    features: Mapping[str, str] = field(default_factory=dict)


class SmtpCheck:
    """One walk to one server. It ends before DATA, unless it is given `send`.

    Args:
        config: the server, and as whom. Its `timeout` bounds every wait.
        sender: whose mail it would be.
        to: the recipient to ask for; by default the sender's own address.
        send: has a real mail sent, over a connection of its own; raises DeliveryError.
    """

    def __init__(
        self, config: SmtpConfig, sender: Sender, *, to: str | None = None, send: Callable[[], Delivery] | None = None
    ) -> None:
        self._config = config
        self._sender = sender
        self._to = to
        self._send = send
        self._session: Session | None = None
        self._trust = cache(lambda: tls_context(config))
        self._address = config.host
        self._found: list[str] = []
        self._warnings: list[str] = []

    def run(self) -> Iterator[Result]:
        """Takes the steps, and yields each when it is done; the first that fails is the last."""
        walk = self._walk()
        step = next(walk)
        following: Step | None = step
        try:
            while following is not None:
                begun, failure = time.monotonic(), None
                try:
                    following = next(walk, None)
                except Failed as error:
                    following, failure = None, error.diagnosis
                except DeliveryError as error:
                    following, (step, failure) = None, self._explained(step, error)
                seconds = time.monotonic() - begun
                yield Result(step, seconds, tuple(self._found), tuple(self._warnings), failure)
                self._found, self._warnings = [], []
                step = following or step
        finally:
            if self._session is not None:
                self._session.quit()

    def _walk(self) -> Iterator[Step]:
        """Yields each step before it is taken."""
        yield Step.SETTINGS
        self._look_at_settings()
        yield Step.DNS
        addresses = self._resolve()
        session = self._session = Session(self._config, self._trust)  # looks this machine's own name up
        yield Step.TCP
        self._connect(session, addresses)
        taken = None
        for stage in session.opening():
            self._describe(session, taken)
            yield _STEPS[stage]
            taken = stage
        self._describe(session, taken)
        if session.tls is None and not is_local(self._config.host):
            self._warnings.append(f"mail goes over the network in clear (SMTP_SECURITY={self._config.security})")
        envelope = Envelope(ascii_domain(self._sender.address), ascii_domain(self._recipient))
        yield Step.MAIL
        self._found.append(f"<{envelope.sender}>: {session.mail(envelope, bytes(TYPICAL_SIZE))}")
        yield Step.RCPT
        self._found.append(f"<{envelope.recipient}>: {session.rcpt(envelope)}")
        session.reset()
        session.quit()
        if self._send is not None:
            yield Step.MESSAGE
            delivery = self._send()
            self._found += [
                f"to <{envelope.recipient}>: {delivery.smtp_code} {delivery.smtp_reply}",
                f"Message-ID: {delivery.message_id}",
            ]

    # The steps.

    def _look_at_settings(self) -> None:
        config, sender = self._config, self._sender
        login = "no login"
        if config.username:
            login = f"login as {self._user} with {'a password' if config.password else 'an empty password'}"
        trusted = f", SMTP_CA_FILE={config.ca_file}" if config.ca_file else ""
        name = f"{sender.name} " if sender.name else ""
        self._found += [
            f"{config.host} port {config.port}, SMTP_SECURITY={config.security}{trusted}",
            f"{login}; From: {name}<{sender.address}>",
        ]
        self._warnings += causes.mismatches(config, sender)
        if (wrong := causes.host_that_is_none(config.host)) is not None:
            raise Failed(wrong)
        if config.security is not Security.NONE:
            try:
                self._trust()  # made here, because a wrong SMTP_CA_FILE is a wrong setting
            except DeliveryError as error:
                raise Failed(causes.ca_file_unusable(error)) from error

    def _resolve(self) -> list[str]:
        host = self._config.host
        try:
            ip_address(host)
        except ValueError:
            found = _look_up(host, self._config.timeout)
            if isinstance(found, Exception):
                raise Failed(causes.not_found(self._facts, found)) from found
            self._found.append(f"{host} is {', '.join(found)}")
            return found
        self._found.append(f"{host} is an address: nothing to look up")
        return [host]

    def _connect(self, session: Session, addresses: list[str]) -> None:
        # In the resolver's order, as the workers do; but here all addresses share one timeout.
        fates: dict[str, BaseException] = {}
        deadline = time.monotonic() + self._config.timeout
        for place, address in enumerate(addresses):
            share = max(0.1, (deadline - time.monotonic()) / (len(addresses) - place))
            try:
                session.connect(address, share)
            except DeliveryError as error:
                cause = error.__cause__ or error
                fates[f"{address}: {reason(cause, round(share, 1))}"] = cause
                continue
            self._address = address
            self._found += [f"connected to {address}", *(f"not to {fate}" for fate in fates)]
            if any(isinstance(cause, TimeoutError) for cause in fates.values()):
                self._warnings.append(
                    "the workers wait SMTP_TIMEOUT seconds for a silent address whenever they connect"
                )
            return
        raise Failed(causes.not_reached(self._facts, fates))

    def _describe(self, session: Session, taken: Stage | None) -> None:
        """What a stage of the opening has shown."""
        if taken in {Stage.CONNECT, Stage.AUTH}:
            self._found.append(str(session.reply))
        if taken in {Stage.TLS, Stage.STARTTLS} and session.tls is not None:
            self._describe_tls(session.tls)
        if taken is Stage.EHLO:
            self._found.append(f"as {session.helo_name}; the server {_offers(session.features)}")
        if taken is Stage.STARTTLS:
            self._found.append(f"from here on the server {_offers(session.features)}")

    def _describe_tls(self, tls: ssl.SSLSocket) -> None:
        how = "from the start" if self._config.tls_from_start else "by STARTTLS"
        self._found.append(f"{tls.version()} {how}")
        if (certificate := _certificate(tls.getpeercert(binary_form=True))) is not None:
            days = certificate.days_left
            self._found += [
                f"certificate for {certificate.shown_names}, issued by {certificate.issuer}",
                f"it is valid until {certificate.ends:%Y-%m-%d}, {days} days from now",
            ]
            if days < EXPIRY_WARNING:
                self._warnings.append("the certificate ends soon: renew it on the server")

    # What went wrong.

    def _explained(self, step: Step, error: DeliveryError) -> tuple[Step, Diagnosis]:
        cause = fault(error.__cause__)
        if step is Step.MESSAGE:
            return step, refusals.unsent(self._facts, error)
        # TLS 1.3 may tell of a refusal only with the greeting, or with the EHLO after STARTTLS.
        if error.stage == Stage.TLS or (isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError)):
            return Step.TLS, self._explained_tls(error, cause)
        if step is Step.GREETING and error.code is None:
            return step, self._explained_greeting(error)
        return _STEPS[Stage(error.stage)], refusals.refused(self._facts, error)

    def _explained_tls(self, error: DeliveryError, cause: BaseException | None) -> Diagnosis:
        facts = self._facts
        if isinstance(cause, ssl.SSLCertVerificationError):
            security = Security.TLS if self._config.tls_from_start else Security.STARTTLS
            return causes.untrusted(facts, cause, _certificate(self._look(security).certificate))
        alert = isinstance(cause, ssl.SSLError) and "ALERT" in (cause.reason or "")  # only TLS has alerts
        if self._config.tls_from_start and not alert:
            seen = self._look(Security.NONE)
            if seen.greeting:
                return causes.plain_port(facts, seen.greeting, seen.features)
            if words := self._overheard(ANY_QUESTION):
                return causes.not_smtp(facts, words)
            if isinstance(cause, TimeoutError):
                return causes.silent(facts, refusals.silence(facts, error))
        return causes.handshake_failed(facts, cause)

    def _explained_greeting(self, error: DeliveryError) -> Diagnosis:
        facts = self._facts
        said = f'"{error.reply}"' if error.reply else refusals.silence(facts, error)
        if self._config.tls_from_start:
            words = error.reply
        else:
            seen = self._look(Security.TLS)
            if seen.certificate is not None:
                return causes.tls_port(facts, said, seen.greeting)
            words = self._overheard(b"" if error.reply else ANY_QUESTION) or error.reply
        return causes.not_smtp(facts, words) if words else causes.silent(facts, said)

    def _look(self, security: Security) -> _Seen:
        """Connects again, without a login and whatever the certificate, and looks at the server."""
        config = replace(
            self._config,
            security=security,
            username="",
            password="",
            timeout=min(PROBE_TIMEOUT, self._config.timeout),
        )
        session = Session(config, _trust_anybody)
        seen = _Seen()
        try:
            session.connect(self._address)
            for stage in session.opening():
                if stage is Stage.EHLO:
                    seen.greeting = str(session.reply)
                if session.tls is not None:
                    seen.certificate = session.tls.getpeercert(binary_form=True)
            if session.tls is not None:
                seen.certificate = session.tls.getpeercert(binary_form=True)
        except DeliveryError:
            pass  # what it saw until then is what was asked for
        finally:
            seen.features = session.features
            session.quit()
        return seen

    def _overheard(self, line: bytes) -> str:
        """The first line that comes back from something that does not speak SMTP; "" for nothing, or for TLS."""
        timeout = min(PROBE_TIMEOUT, self._config.timeout)
        try:
            with socket.create_connection((self._address, self._config.port), timeout) as sock:
                sock.sendall(line)
                return _first_line(sock.recv(4096))
        except OSError:
            return ""

    @property
    def _recipient(self) -> str:
        return self._sender.redirect_to or self._to or self._sender.address

    @property
    def _user(self) -> str:
        # Some providers want one token both as user name and as password.
        secrets = secrets_of(self._config)
        return secrets.sub("***", self._config.username) if secrets else self._config.username

    @property
    def _facts(self) -> Facts:
        session = self._session
        return Facts(
            config=self._config,
            sender=self._sender,
            recipient=self._recipient,
            recipient_chosen=self._recipient != self._sender.address,
            user=self._user,
            features=session.features if session else {},
            encrypted=session is not None and session.tls is not None,
        )


def _look_up(host: str, timeout: float) -> list[str] | OSError | UnicodeError:
    """The addresses of a host; in a thread, for the resolver has a patience of its own, which may be a minute."""
    outcome: list[list[str] | OSError | UnicodeError] = []

    def look_up() -> None:
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            outcome.append(list(dict.fromkeys(str(entry[4][0]) for entry in found)))
        except (OSError, UnicodeError) as error:
            outcome.append(error)

    thread = threading.Thread(target=look_up, daemon=True)
    thread.start()
    thread.join(timeout)
    return outcome[0] if outcome else TimeoutError()


def _trust_anybody() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _certificate(der: bytes | None) -> Certificate | None:
    try:
        return Certificate.parse(der) if der else None
    except ValueError:
        return None


def _offers(features: Mapping[str, str]) -> str:
    size = features.get("size", "")
    has = [" ".join((name, *features[name.lower()].split())) for name in _WORTH_A_WORD if name.lower() in features]
    lacks = [name for name in _WORTH_A_WORD if name.lower() not in features]
    has += [f"mails up to {int(size) / 1e6:.1f} MB"] if size.isdecimal() and int(size) else []
    return f"offers {', '.join(has) or 'nothing'}" + (f"; not {', '.join(lacks)}" if lacks else "")


_WORTH_A_WORD = ("STARTTLS", "AUTH", "PIPELINING", "SMTPUTF8")


def _first_line(data: bytes) -> str:
    words = data.decode("utf-8", "replace").strip().splitlines()
    if not words or data[0] in _TLS_RECORDS:
        return ""
    return "".join(letter for letter in words[0] if letter.isprintable())[:200]


_TLS_RECORDS = (0x15, 0x16)  # alert, handshake: RFC 8446 section 5.1

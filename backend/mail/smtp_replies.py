"""What an SMTP reply, or a line that breaks, means for the mail: stage and code in, error of `mail.errors` out."""

import re
import smtplib
import socket
import ssl
from enum import StrEnum
from typing import NamedTuple

from mail.errors import (
    DeliveryError,
    OutcomeUnknown,
    PermanentError,
    ServerBusy,
    ServerRefuses,
    ServerUnavailable,
    TransientError,
)

LIMIT = 500


class Stage(StrEnum):
    """Where in the session something was said or broke; `DeliveryError.stage` carries the value."""

    CONNECT = "connect"
    TLS = "tls"
    EHLO = "ehlo"
    STARTTLS = "starttls"
    AUTH = "auth"
    NOOP = "noop"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    DOT = "dot"

    @property
    def words(self) -> str:
        return "the message" if self is Stage.DOT else self.upper()


# The sender is the same for every mail, so a fault at MAIL is everybody's; from RCPT on it is this mail's own.
OWN_STAGES = frozenset({Stage.RCPT, Stage.DATA, Stage.DOT})


class Reply(NamedTuple):
    """The reply code, -1 for what is not SMTP, and the text on one line without control characters."""

    code: int
    text: str

    def __str__(self) -> str:
        return f"{self.code} {self.text}".rstrip()

    @classmethod
    def parse(cls, code: int, text: bytes, secrets: re.Pattern[str] | None = None) -> "Reply":
        """`secrets` are shown as `***`: some servers quote the line they refuse."""
        words = " ".join(text.decode("utf-8", "replace").split())
        shown = "".join(character for character in words if character.isprintable())
        if secrets is not None:
            shown = secrets.sub("***", shown)  # before it is cut, which could leave half of one
        return cls(code, shown[:LIMIT])


def refusal(server: str, stage: Stage, reply: Reply) -> DeliveryError:
    """The error for a reply that is not the one hoped for. `server` is its name in the message."""
    code = reply.code
    error: type[DeliveryError]
    if code in {421, 454}:
        error = ServerBusy
    elif code in {530, 535}:
        error = ServerRefuses
    elif stage is Stage.MAIL and code == 552:  # RFC 1870 section 6.1: larger than the server takes
        error = PermanentError
    elif stage in OWN_STAGES:
        neither = OutcomeUnknown if stage is Stage.DOT else TransientError
        error = {4: TransientError, 5: PermanentError}.get(code // 100, neither)
    else:
        error = ServerBusy if code // 100 == 4 else ServerRefuses
    said = str(reply) if code >= 0 else f"something that is not SMTP: {reply.text}"
    happened = f"greeted with {said}" if stage is Stage.CONNECT else f"answered {stage.words} with {said}"
    if code == 535:  # RFC 4954 section 6
        happened = f"refuses user or password: {said}"
    return error(f"{server} {happened}", code=code if code >= 0 else None, reply=reply.text, stage=stage)


def broken(server: str, stage: Stage, error: OSError, patience: float) -> DeliveryError:
    """The error for a line that broke while the server owed an answer, or stayed silent for `patience` seconds."""
    cause = fault(error)
    failed = {Stage.CONNECT: "did not greet", Stage.TLS: "failed the TLS handshake"}
    message = f"{server} {failed.get(stage, f'did not answer {stage.words}')}: {reason(cause or error, patience)}"
    if stage is Stage.DOT:
        return OutcomeUnknown(message, stage=stage)
    if stage in OWN_STAGES:
        # Not an outage: else a mail at which the server drops the line would be tried for ever.
        return TransientError(message, stage=stage)
    if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return ServerRefuses(message, stage=stage)
    if stage is Stage.CONNECT and isinstance(cause, TimeoutError):
        message += "; if the port speaks TLS from the start, set SMTP_SECURITY=tls"
    return ServerUnavailable(message, stage=stage)


def fault(error: BaseException | None) -> BaseException | None:
    """The socket's own error, for which smtplib raises one of its own; None when the server closed the connection."""
    return error.__context__ if isinstance(error, smtplib.SMTPServerDisconnected) else error


def reason(error: BaseException, patience: float) -> str:
    """What happened to the connection, in words for a human."""
    match error:
        case TimeoutError():
            return f"no answer within {patience:g} s"
        case ssl.SSLCertVerificationError():
            return f"its certificate is not trusted: {error.verify_message.rstrip('.')}"
        case ssl.SSLError(reason="WRONG_VERSION_NUMBER"):
            return "the port does not speak TLS from the start; SMTP_SECURITY=starttls may fit"
        case socket.gaierror() | UnicodeError():
            return "the host name cannot be resolved"
        case OSError(strerror=str(words)):
            return words.lower()
        case _:
            return "connection closed"

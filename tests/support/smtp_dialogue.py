"""One session of the test server: the commands of RFC 5321 and its extensions, each answered as the rules say."""

import email
import email.policy
import socket
import time
from base64 import b64decode
from dataclasses import dataclass
from email.message import EmailMessage
from typing import TYPE_CHECKING, BinaryIO, Literal

if TYPE_CHECKING:
    from support.smtp_server import SmtpServer

Stage = Literal[
    "connect", "tls", "ehlo", "starttls", "auth", "noop", "rset", "mail", "rcpt", "data", "body", "dot",
    "dot-before-store", "dot-after-store",
]  # fmt: skip
"""Where rules act. "tls": before the handshake; "body": after the first line of the message; "dot": the message is
complete; "dot-before-store": it is going to be taken; "dot-after-store": it is taken, the reply not yet sent."""


@dataclass(frozen=True)
class Received:
    """One message taken. `at` is time.monotonic(); `data` is what the sender had before dot-stuffing."""

    sender: str
    recipients: tuple[str, ...]
    data: bytes
    at: float
    session: int
    mail_options: tuple[str, ...] = ()
    user: str | None = None
    encrypted: bool = False

    @property
    def message(self) -> EmailMessage:
        return email.message_from_bytes(self.data, policy=email.policy.default)


class Hangup(Exception):
    """The server closes the session: `reset` with an RST in place of a FIN."""

    def __init__(self, *, reset: bool = False) -> None:
        self.reset = reset


class Dialogue:
    def __init__(self, server: "SmtpServer", sock: socket.socket, number: int) -> None:
        self.server = server
        self.sock = sock
        self.number = number
        self.encrypted = False
        self.user: str | None = None
        self._file: BinaryIO = sock.makefile("rb")
        self._forget()

    def run(self) -> None:
        if self.server.tls == "tls":
            self._handshake()
        self._step("connect", "", "220 test.invalid ESMTP")
        while line := self._file.readline(65_536):
            command = line.decode("utf-8", "surrogateescape").rstrip("\r\n")
            verb, _, argument = command.partition(" ")
            self.server.note(self.number, verb if verb.upper() == "AUTH" else command)
            match verb.upper():
                case "EHLO":
                    self._forget()
                    self._step("ehlo", "", self._features())
                case "STARTTLS" if self.server.tls == "starttls" and not self.encrypted:
                    if self._step("starttls", "", "220 2.0.0 go ahead"):
                        self._handshake()
                case "AUTH" if self._offers_auth():
                    self._auth(argument)
                case "NOOP":
                    self._step("noop", "", "250 2.0.0 here")
                case "RSET":
                    self._forget()
                    self._step("rset", "", "250 2.0.0 forgotten")
                case "MAIL":
                    self._mail(argument)
                case "RCPT":
                    self._rcpt(argument)
                case "DATA":
                    self._data()
                case "QUIT":
                    self._send("221 2.0.0 bye")
                    return
                case _:
                    self._send("502 5.5.1 unknown command")

    def close(self) -> None:
        self._file.close()
        self.sock.close()

    def _handshake(self) -> None:
        self.server.choose("tls", "", "")
        assert self.server.ssl_context is not None
        self._file.close()
        self.sock = self.server.ssl_context.wrap_socket(self.sock, server_side=True, do_handshake_on_connect=False)
        self.server.replace_socket(self.sock)
        self.sock.do_handshake()
        self._file = self.sock.makefile("rb")
        self.encrypted = True

    def _forget(self) -> None:
        self._sender: str | None = None
        self._recipients: list[str] = []
        self._options: tuple[str, ...] = ()

    def _send(self, text: str) -> None:
        self.sock.sendall(text.encode() + b"\r\n")
        if text.startswith("421"):
            raise Hangup

    def _step(self, stage: Stage, subject: str, default: str) -> bool:
        text = self.server.choose(stage, subject, default)
        self._send(text)
        return text[0] in "23"

    def _offers_auth(self) -> bool:
        return self.server.auth is not None and (self.encrypted or self.server.tls is None)

    def _features(self) -> str:
        server = self.server
        features = ["test.invalid", "8BITMIME", "ENHANCEDSTATUSCODES"]
        features += ["PIPELINING"] if server.pipelining else []
        features += ["SMTPUTF8"] if server.smtputf8 else []
        features += [f"SIZE {server.size}" if server.size else "SIZE"]
        features += ["STARTTLS"] if server.tls == "starttls" and not self.encrypted else []
        features += [f"AUTH {' '.join(server.mechanisms)}"] if self._offers_auth() else []
        return "\r\n".join([f"250-{feature}" for feature in features[:-1]] + [f"250 {features[-1]}"])

    def _auth(self, argument: str) -> None:
        mechanism, _, initial = argument.partition(" ")
        if mechanism.upper() == "PLAIN":
            _, user, password = (_decoded(initial) or self._challenge("")).split("\0")
        else:
            user, password = self._challenge("VXNlcm5hbWU6"), self._challenge("UGFzc3dvcmQ6")
        right = (user, password) == self.server.auth
        if self._step("auth", user, "235 2.7.0 welcome" if right else "535 5.7.8 wrong user or password"):
            self.user = user

    def _challenge(self, challenge: str) -> str:
        self._send(f"334 {challenge}")
        return _decoded(self._file.readline())

    def _mail(self, argument: str) -> None:
        address, options = _path(argument)
        size = next((int(option[5:]) for option in options if option.startswith("SIZE=")), 0)
        default = "250 2.1.0 sender ok"
        if self.server.auth is not None and self.user is None:
            default = "530 5.7.0 authentication required"
        elif self.server.size is not None and size > self.server.size:
            default = "552 5.3.4 too large"
        elif "SMTPUTF8" in options and not self.server.smtputf8:
            default = "555 5.5.4 SMTPUTF8 is not known here"
        if self._step("mail", address, default):
            self._sender, self._options = address, options

    def _rcpt(self, argument: str) -> None:
        address, _ = _path(argument)
        default = "250 2.1.5 recipient ok"
        if self._sender is None:
            default = "503 5.5.1 MAIL first"
        elif not address.isascii() and "SMTPUTF8" not in self._options:
            default = "553 5.6.7 needs SMTPUTF8"
        if self._step("rcpt", address, default):
            self._recipients.append(address)

    def _data(self) -> None:
        recipient = self._recipients[0] if self._recipients else ""
        if not self._step("data", recipient, "354 go on" if recipient else "503 5.5.1 RCPT first"):
            return
        lines: list[bytes] = []
        while (line := self._file.readline()) != b".\r\n":
            if not line:
                raise Hangup
            if not lines:
                self.server.choose("body", recipient, "")
            lines.append(line.removeprefix(b"."))
        data = b"".join(lines)
        too_large = self.server.size is not None and len(data) > self.server.size
        text = self.server.choose("dot", recipient, "552 5.3.4 too large" if too_large else "250 2.0.0 taken")
        if text.startswith("2"):
            self.server.choose("dot-before-store", recipient, "")
            self.server.store(
                Received(
                    sender=self._sender or "",
                    recipients=tuple(self._recipients),
                    data=data,
                    at=time.monotonic(),
                    session=self.number,
                    mail_options=self._options,
                    user=self.user,
                    encrypted=self.encrypted,
                )
            )
            self.server.choose("dot-after-store", recipient, "")
        self._forget()
        self._send(text)


def _decoded(text: str | bytes) -> str:
    return b64decode(text).decode("utf-8", "surrogateescape")


def _path(argument: str) -> tuple[str, tuple[str, ...]]:
    """`FROM:<ada@example.com> SIZE=10` -> the address, the parameters."""
    address, _, options = argument.partition("<")[2].rpartition(">")
    return address, tuple(options.upper().split())

"""Rendered mail → MIME bytes. Pure: no clock, no network, no settings.

The message is written out by hand because the standard library's `EmailMessage` costs twenty times as much and
folds some headers wrongly; tests read every message back with the standard library's parser.
Header injection is impossible by construction: every value passes `_one_line`.
"""

import binascii
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from email.header import Header
from email.utils import format_datetime

import idna

from mail.rendering import Rendered

LINE = 78  # RFC 5322 section 2.1.1
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Sender:
    """Who the mails come from.

    Args:
        address: the mailbox in From and MAIL FROM.
        name: the display name, unless an email brings its own.
        redirect_to: on a staging system, the one mailbox that gets all mail.
        idempotency_header: the header in which the relay expects an idempotency key, or "".
    """

    address: str
    name: str = ""
    redirect_to: str = ""
    idempotency_header: str = ""

    @property
    def domain(self) -> str:
        return ascii_domain(self.address).rpartition("@")[2]


@dataclass(frozen=True)
class Message:
    """A finished message with its envelope. `smtputf8` when an address cannot be written in ASCII (RFC 6531)."""

    message_id: str
    sender: str
    recipient: str
    smtputf8: bool
    data: bytes = field(repr=False)


def build(
    rendered: Rendered,
    *,
    email_id: str,
    to: str,
    sender: Sender,
    date: datetime,
    reply_to: str | None = None,
    from_name: str | None = None,
) -> Message:
    """Put one mail together: multipart/alternative when there is HTML, CRLF line ends, no line over 998 octets.

    The Message-ID holds the email id, so that each copy of a retried mail has the same one.
    """
    email_id = _one_line(email_id)
    recipient = ascii_domain(sender.redirect_to or to)
    from_address = ascii_domain(sender.address)
    message_id = f"<{email_id}@{sender.domain}>"
    headers: dict[str, str] = {
        "Date": format_datetime(date),
        "From": _mailbox("From", from_name or sender.name, from_address),
        "To": _mailbox("To", "", recipient),
        "Message-ID": message_id,
        "Subject": _text("Subject", rendered.subject),
        # RFC 3834: answering machines must not answer; the second is how Exchange is told the same.
        "Auto-Submitted": "auto-generated",
        "X-Auto-Response-Suppress": "All",
        "MIME-Version": "1.0",
    }
    if reply_to:
        headers["Reply-To"] = _mailbox("Reply-To", "", ascii_domain(reply_to))
    if sender.redirect_to:
        headers["X-Original-To"] = _mailbox("X-Original-To", "", ascii_domain(to))
    if sender.idempotency_header:
        headers[sender.idempotency_header] = email_id
    addresses = "".join((recipient, from_address, ascii_domain(reply_to or ""), ascii_domain(to)))
    return Message(
        message_id=message_id,
        sender=from_address,
        recipient=recipient,
        smtputf8=not addresses.isascii(),
        data=_head(headers) + _body(rendered, boundary=f"=_{email_id}"),
    )


@functools.lru_cache(maxsize=256)
def ascii_domain(address: str) -> str:
    """The address with its domain in punycode (RFC 5891), which every server understands."""
    local, at, domain = address.rpartition("@")
    if domain.isascii():
        return address
    return f"{local}{at}{idna.encode(domain, uts46=True).decode()}"


def _head(headers: Mapping[str, str]) -> bytes:
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode()


def _body(rendered: Rendered, boundary: str) -> bytes:
    text = _part("plain", rendered.text)
    if rendered.html is None:
        return text
    mark = boundary.encode()
    head = b'Content-Type: multipart/alternative;\r\n boundary="' + mark + b'"\r\n\r\n'
    parts = b"".join(b"--" + mark + b"\r\n" + part + b"\r\n" for part in (text, _part("html", rendered.html)))
    return head + parts + b"--" + mark + b"--\r\n"


def _part(subtype: str, content: str) -> bytes:
    # Only CRLF counts as a line end in mail (RFC 5322 2.3); the encoder keeps it and escapes a bare CR.
    if "\r" in content:
        content = content.replace("\r\n", "\n").replace("\r", "\n")
    lines = content.replace("\n", "\r\n").encode()
    if not lines.endswith(b"\r\n"):
        lines += b"\r\n"  # the encoder ends its own soft breaks like the first line end it finds, else in a bare LF
    head = f"Content-Type: text/{subtype}; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n"
    return head.encode() + binascii.b2a_qp(lines, istext=True)


def _one_line(value: str) -> str:
    return " ".join(_CONTROL.sub(" ", value).split())


def _text(name: str, value: str) -> str:
    """Unstructured text: plain when short ASCII, else encoded words (RFC 2047) of at most 75 characters."""
    value = _one_line(value)
    if value.isascii() and len(name) + 2 + len(value) <= LINE and "=?" not in value:
        return value
    return Header(value, "utf-8", maxlinelen=LINE - 2, header_name=name).encode(linesep="\r\n")


@functools.lru_cache(maxsize=64)  # the sender's is that of every mail
def _mailbox(name: str, display: str, address: str) -> str:
    """A mailbox: `Display <address>`, quoted or encoded as it needs, folded before a long address."""
    display, address = _one_line(display), _one_line(address)
    if not display:
        return address
    if not display.isascii() or "=?" in display:
        shown = Header(display, "utf-8", maxlinelen=LINE - 2, header_name=name).encode(linesep="\r\n")
    elif all(character.isalnum() or character in " !#$%&'*+-/=?^_`{|}~" for character in display):
        shown = display
    else:
        escaped = display.replace("\\", "\\\\").replace('"', '\\"')
        shown = f'"{escaped}"'
    last = shown.rpartition("\r\n")[2]
    space = " " if len(name) + 2 + len(last) + len(address) + 3 <= LINE else "\r\n "
    return f"{shown}{space}<{address}>"

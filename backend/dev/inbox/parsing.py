"""Raw bytes to what a reader sees. An inbox shows broken mail too, so nothing here raises on any input.

The standard library's newer policy (`email.policy.default`) raises while reading some broken headers; the
older one (`compat32`) hands out their text as it stands, so headers are decoded here.
"""

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email import message_from_bytes
from email.errors import HeaderParseError
from email.header import decode_header
from email.message import Message
from email.parser import BytesHeaderParser
from email.utils import collapse_rfc2231_value, getaddresses, parsedate_to_datetime
from html import unescape

log = logging.getLogger(__name__)

SNIPPET_LENGTH = 200
SEARCHED_LENGTH = 100_000  # characters of a part's text that a search looks at

# The parser takes over a kilobyte of memory per part: a mail of nothing but boundaries would cost gigabytes.
MAX_BOUNDARY_LINES = 10_000

# Decoding takes time that grows with the square of the length: 30 s for a subject of 1.4 MB.
MAX_HEADER_LENGTH = 50_000

# A start that never ends runs to the end of the text, which also keeps the search linear.
_MARKUP = re.compile(
    r"<!--.*?(?:-->|\Z)|<(head|title|style|script)\b.*?(?:</\1\s*>|\Z)|<[^>]*(?:>|\Z)",
    re.DOTALL | re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Address:
    name: str
    address: str


@dataclass(frozen=True, slots=True)
class Outline:
    """What a list of mails shows of one. `words` is what a search looks at beside the headers."""

    message_id: str
    sender: Address
    to: tuple[Address, ...]
    cc: tuple[Address, ...]
    bcc: tuple[Address, ...]
    reply_to: tuple[Address, ...]
    subject: str
    attachments: int
    tags: tuple[str, ...]
    snippet: str
    words: str


@dataclass(frozen=True, slots=True)
class Part:
    """An attachment or an inline image. `part_id` counts as IMAP does: `2.1` is the first part of the second."""

    part_id: str
    filename: str
    content_type: str
    content_id: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Content:
    """One whole mail. `date` is None where the header is missing or unreadable."""

    outline: Outline
    date: datetime | None
    list_unsubscribe: str
    list_unsubscribe_post: str
    text: str
    html: str
    attachments: tuple[Part, ...]
    inline: tuple[Part, ...]


def parse(raw: bytes) -> Content:
    """Read a mail (RFC 5322, MIME). Unreadable pieces come out empty or with U+FFFD in place of bad bytes."""
    try:
        return _read(raw)
    except Exception:  # what the library raises on hostile input is not documented, and changes
        log.exception("this mail cannot be read; it is shown as its source")
        return _unread(raw)


def _read(raw: bytes) -> Content:
    message, leaves = _leaves_of(raw)
    texts: list[str] = []
    htmls: list[str] = []
    attachments: list[Part] = []
    inline: list[Part] = []
    for part_id, leaf in leaves:
        part = _part(part_id, leaf)
        attached = leaf.get_content_disposition() == "attachment" or part.filename
        # A multipart without a usable boundary has no parts: its source is all there is to show.
        if not attached and part.content_type.startswith(("text/plain", "multipart/")):
            texts.append(_decode(part.content, _parameter(leaf, "charset")))
        elif not attached and part.content_type == "text/html":
            htmls.append(_decode(part.content, _parameter(leaf, "charset")))
        elif leaf.get_content_disposition() == "inline" or part.content_id:
            inline.append(part)
        else:
            attachments.append(part)
    text, html = "\n".join(texts), "\n".join(htmls)
    plain, seen = _words_of(text), _words_of(unescape(_MARKUP.sub(" ", html[:SEARCHED_LENGTH])))
    names = "\n".join(part.filename for part in (*attachments, *inline))
    sender = _addresses(message, "from")
    return Content(
        outline=Outline(
            message_id=_header(message, "message-id").strip("<> "),
            sender=sender[0] if sender else Address(_words(_header(message, "from")), ""),
            to=_addresses(message, "to"),
            cc=_addresses(message, "cc"),
            bcc=_addresses(message, "bcc"),
            reply_to=_addresses(message, "reply-to"),
            subject=_words(_header(message, "subject")),
            attachments=len(attachments),
            tags=tuple(filter(None, map(str.strip, _words(_header(message, "x-tags")).split(",")))),
            snippet=_snippet(seen or plain),
            words=f"{plain}\n{seen}\n{names}",
        ),
        date=_date(_header(message, "date")),
        list_unsubscribe=_header(message, "list-unsubscribe"),
        list_unsubscribe_post=_header(message, "list-unsubscribe-post"),
        text=text,
        html=html,
        attachments=tuple(attachments),
        inline=tuple(inline),
    )


def _unread(raw: bytes) -> Content:
    text = _decode(raw, "utf-8")
    outline = Outline("", Address("", ""), (), (), (), (), "", 0, (), snippet="", words=_words_of(text))
    return Content(outline, None, "", "", text=text, html="", attachments=(), inline=())


def _leaves_of(raw: bytes) -> tuple[Message, list[tuple[str, Message]]]:
    if raw.count(b"\n--") <= MAX_BOUNDARY_LINES:
        try:
            message = message_from_bytes(raw)
            return message, list(_leaves(message))
        except RecursionError:  # parts nested some hundred levels deep
            pass
    message = BytesHeaderParser().parsebytes(raw)
    return message, [("0", message)]


def _leaves(message: Message, part_id: str = "") -> Iterator[tuple[str, Message]]:
    # A forwarded mail (message/rfc822) is one leaf: its text is not this mail's text.
    if message.get_content_maintype() == "multipart" and message.is_multipart():
        for number, child in enumerate(_children(message), start=1):
            yield from _leaves(child, f"{part_id}.{number}" if part_id else str(number))
    else:
        yield part_id or "0", message


def _children(message: Message) -> list[Message]:
    # Only a multipart is asked this way: a leaf would be decoded by the charset it names, which may raise.
    payload = message.get_payload() if message.is_multipart() else []
    return [child for child in payload if isinstance(child, Message)]


def _part(part_id: str, leaf: Message) -> Part:
    return Part(
        part_id=part_id,
        filename=_words(_parameter(leaf, "filename", "content-disposition") or _parameter(leaf, "name")),
        content_type=_clean(leaf.get_content_type()),
        content_id=_header(leaf, "content-id").strip("<> "),
        content=_payload(leaf),
    )


def _payload(leaf: Message) -> bytes:
    if leaf.is_multipart():
        try:
            return b"\n".join(child.as_bytes() for child in _children(leaf))
        except (ValueError, RecursionError):  # the library cannot write some broken mail it can read
            return b""
    payload = leaf.get_payload(decode=True)
    return payload if isinstance(payload, bytes) else b""


def _parameter(message: Message, name: str, header: str = "content-type") -> str:
    # The library would replace each byte of raw UTF-8 (RFC 6532) by U+FFFD; this header has none any more.
    decoded = Message()
    decoded[header] = _header(message, header)
    try:
        value = decoded.get_param(name, "", header) or ""
        # What is a string already would lose a second pair of quotes or angle brackets.
        return _clean(value if isinstance(value, str) else collapse_rfc2231_value(value))
    except (TypeError, ValueError):  # RFC 2231 sections numbered wrongly, NUL in a charset's name
        return ""


def _headers(message: Message, name: str) -> list[str]:
    """All values of this header, unfolded (RFC 5322 section 2.2.3), with raw UTF-8 (RFC 6532) as it stands."""
    return [
        _clean(re.sub(r"[\r\n]+", "", str(value)[:MAX_HEADER_LENGTH]).strip())
        for key, value in message.raw_items()
        if key.lower() == name
    ]


def _header(message: Message, name: str) -> str:
    return next(iter(_headers(message, name)), "")


def _addresses(message: Message, name: str) -> tuple[Address, ...]:
    try:
        pairs = getaddresses(_headers(message, name))
    except RecursionError:  # comments nested some hundred levels deep
        return ()
    return tuple(Address(_words(display), address) for display, address in pairs if address)


def _words(value: str) -> str:
    """Decode encoded words (RFC 2047)."""
    try:
        chunks = decode_header(value)
    except HeaderParseError:
        return value
    # decode_header hands the text between encoded words out as bytes of this encoding.
    return "".join(
        chunk if isinstance(chunk, str) else _decode(chunk, charset or "raw-unicode-escape")
        for chunk, charset in chunks
    )


def _date(value: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)  # "-0000": UTC, zone unknown (RFC 5322)


def _decode(data: bytes, charset: str) -> str:
    try:
        return _clean(data.decode(charset or "utf-8", "replace"))
    except (
        LookupError,
        ValueError,
    ):  # no such charset, not one of text, or making surrogates, which JSON cannot carry
        return data.decode("utf-8", "replace")


def _clean(text: str) -> str:
    """Undo the parser's escaping of 8-bit bytes (PEP 383). Raises ValueError at surrogates of other origin."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _words_of(text: str) -> str:
    return " ".join(text[:SEARCHED_LENGTH].split())


def _snippet(line: str) -> str:
    return line if len(line) <= SNIPPET_LENGTH else line[:SNIPPET_LENGTH] + "..."

"""Mails in the words of Mailpit's REST API v1 (https://mailpit.axllent.org/docs/api-v1/), so its clients work.

One thing differs on purpose: `Text` of a mail without a text part is empty, where Mailpit makes one from the HTML.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from dev.inbox.parsing import Address, Content, Outline, Part, parse
from dev.inbox.store import Mail

Json = dict[str, Any]

# A quote that is still open holds all that follows: a search runs while it is being typed.
_TERM = re.compile(
    r"([-!]?)(?:(from|to|cc|bcc|reply-to|addressed|subject|message-id|tag|is|has):)?"
    r'(?:"([^"]*)"?|(\S*))',
    re.IGNORECASE,
)


def listing(page: Sequence[Mail], matching: Sequence[Mail], stored: Sequence[Mail], start: int) -> Json:
    """`page` is the part of `matching` that starts at index `start`; `stored` is all there is."""
    return {
        "total": len(stored),
        "unread": _unread(stored),
        "count": len(page),
        "messages_count": len(matching),
        "messages_unread": _unread(matching),
        "start": start,
        "tags": [],
        "messages": [summary(mail) for mail in page],
    }


def summary(mail: Mail) -> Json:
    outline = mail.outline
    return {
        "ID": mail.id,
        "MessageID": outline.message_id,
        "Read": mail.read,
        "From": _address(outline.sender),
        **_recipients(mail, outline),
        "Subject": outline.subject,
        "Created": mail.received.isoformat(),
        "Username": "",
        "Tags": list(outline.tags),
        "Size": len(mail.raw),
        "Attachments": outline.attachments,
        "Snippet": outline.snippet,
    }


def message(mail: Mail) -> Json:
    content = parse(mail.raw)
    outline = content.outline
    return {
        "ID": mail.id,
        "MessageID": outline.message_id,
        "From": _address(outline.sender),
        **_recipients(mail, outline),
        "ReturnPath": mail.sender,
        "Subject": outline.subject,
        "ListUnsubscribe": _list_unsubscribe(content),
        "Date": (content.date or mail.received).isoformat(),
        "Tags": list(outline.tags),
        "Username": "",
        "Text": content.text,
        "HTML": content.html,
        "Size": len(mail.raw),
        "Inline": [_attachment(part) for part in content.inline],
        "Attachments": [_attachment(part) for part in content.attachments],
    }


def search(mails: Iterable[Mail], query: str) -> list[Mail]:
    """The mails that hold every term, whatever the case.

    A term is a word or a quoted phrase, looked for in the addresses, subject, text and file names; `-` before it
    means that it must not be there. `from:`, `to:`, `cc:`, `bcc:`, `reply-to:`, `addressed:`, `subject:`,
    `message-id:` and `tag:` narrow it down; `is:read`, `is:unread`, `is:tagged` and `has:attachment` stand alone.
    """
    terms = [
        (bool(match[1]), (match[2] or "").lower(), (match[3] or match[4] or "").lower())
        for match in _TERM.finditer(query)
    ]
    return [mail for mail in mails if all(_holds(mail, field, term) != no for no, field, term in terms if term)]


def _holds(mail: Mail, field: str, term: str) -> bool:
    outline = mail.outline
    places: Sequence[str]
    match field:
        case "is":
            return term in {"read" if mail.read else "unread", "tagged" if outline.tags else ""}
        case "has":
            return term in {"attachment", "attachments"} and outline.attachments > 0
        case "from":
            places = [_searchable([outline.sender])]
        case "to":
            places = [_searchable(outline.to)]
        case "cc":
            places = [_searchable(outline.cc)]
        case "bcc":
            places = [_searchable(_bcc(mail, outline))]
        case "reply-to":
            places = [_searchable(outline.reply_to)]
        case "subject":
            places = [outline.subject]
        case "message-id":
            places = [outline.message_id]
        case "tag":
            places = outline.tags
        case "addressed":
            places = [_searchable(_everybody(mail, outline))]
        case _:
            everybody = _searchable(_everybody(mail, outline))
            places = [everybody, outline.subject, outline.words, *outline.tags]
    return any(term in place.lower() for place in places)


def _everybody(mail: Mail, outline: Outline) -> Iterable[Address]:
    return (outline.sender, *outline.to, *outline.cc, *_bcc(mail, outline), *outline.reply_to)


def _searchable(addresses: Iterable[Address]) -> str:
    return "\n".join(f"{address.name}\n{address.address}" for address in addresses).lower()


def _unread(mails: Iterable[Mail]) -> int:
    return sum(not mail.read for mail in mails)


def _address(address: Address) -> Json:
    return {"Name": address.name, "Address": address.address}


def _recipients(mail: Mail, outline: Outline) -> Json:
    return {
        "To": [_address(address) for address in outline.to],
        "Cc": [_address(address) for address in outline.cc],
        "Bcc": [_address(address) for address in _bcc(mail, outline)],
        "ReplyTo": [_address(address) for address in outline.reply_to],
    }


def _bcc(mail: Mail, outline: Outline) -> list[Address]:
    """As in Mailpit, a recipient of the envelope whom no header names is a blind copy."""
    named = {address.address.lower() for address in (*outline.to, *outline.cc, *outline.bcc)}
    blind = [Address("", recipient) for recipient in mail.recipients if recipient.lower() not in named]
    return [*outline.bcc, *blind]


def _list_unsubscribe(content: Content) -> Json:
    return {
        "Header": content.list_unsubscribe,
        "Links": re.findall(r"<([^<>]+)>", content.list_unsubscribe),
        "Errors": "",
        "HeaderPost": content.list_unsubscribe_post,
    }


def _attachment(part: Part) -> Json:
    return {
        "PartID": part.part_id,
        "FileName": part.filename or part.content_id,
        "ContentType": part.content_type,
        "ContentID": part.content_id,
        "Size": len(part.content),
        "Checksums": {
            "MD5": hashlib.md5(part.content, usedforsecurity=False).hexdigest(),
            "SHA1": hashlib.sha1(part.content, usedforsecurity=False).hexdigest(),
            "SHA256": hashlib.sha256(part.content).hexdigest(),
        },
    }

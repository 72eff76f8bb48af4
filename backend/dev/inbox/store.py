"""What the inbox holds: the newest mails, in memory, within two bounds."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property

from dev.inbox.parsing import Outline, parse


def _new_id() -> str:
    return secrets.token_urlsafe(16)


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(eq=False)
class Mail:
    """One mail as it came in. `raw` holds the bytes between DATA and the final dot, dots unstuffed."""

    sender: str
    recipients: tuple[str, ...]
    raw: bytes = field(repr=False)
    id: str = field(default_factory=_new_id)
    received: datetime = field(default_factory=_now)
    read: bool = False

    @cached_property
    def outline(self) -> Outline:
        """What a list shows. Read when first asked for, so that receiving stays fast, and only once."""
        return parse(self.raw).outline


class Store:
    """Keeps at most `max_messages` mails and `max_bytes` raw bytes; the oldest go first.

    A single mail larger than `max_bytes` is not kept at all.
    """

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        self.max_messages = max_messages
        self.max_bytes = max_bytes
        self._mails: dict[str, Mail] = {}
        self._bytes = 0
        self._closed = False
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._mails)

    def add(self, mail: Mail) -> None:
        self._mails[mail.id] = mail
        self._bytes += len(mail.raw)
        while len(self._mails) > self.max_messages or self._bytes > self.max_bytes:
            self._drop(next(iter(self._mails)))
        self._notify()

    def get(self, mail_id: str) -> Mail | None:
        """The mail with this id; `latest` is the newest one (Mailpit's name for it)."""
        if mail_id == "latest":
            mail_id = next(reversed(self._mails), "")
        return self._mails.get(mail_id)

    def newest_first(self) -> list[Mail]:
        return list(reversed(self._mails.values()))

    def mark_read(self, mail: Mail) -> None:
        if not mail.read:
            mail.read = True
            self._notify()

    def delete(self, mail_ids: Iterable[str]) -> None:
        """Ids that are unknown, or given twice, are passed over."""
        for mail_id in mail_ids:
            self._drop(mail_id)
        self._notify()

    def clear(self) -> None:
        self._mails.clear()
        self._bytes = 0
        self._notify()

    async def changes(self) -> AsyncIterator[None]:
        """Yields at once, and again after every change until the store is closed.

        Changes that come while the reader is busy with the last one are one change to it.
        """
        while not self._closed:
            changed = self._changed
            yield
            await changed.wait()

    def close(self) -> None:
        """Ends every `changes()`."""
        self._closed = True
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _drop(self, mail_id: str) -> None:
        mail = self._mails.pop(mail_id, None)
        if mail is not None:
            self._bytes -= len(mail.raw)

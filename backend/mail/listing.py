"""Reads emails from the outbox: one by its id, and pages of them, newest first."""

import base64
import binascii
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import islice
from typing import cast

from mail.answers import Page
from mail.batch_records import BatchRecords, Place
from mail.errors import FieldError, InvalidEmail
from mail.kinds import KINDS, AnyEmail, parse
from mail.mailing import Recipient
from mail.records import Record, State, milliseconds
from mail.wire import Wire

SCAN_LIMIT = 2_000
HIDDEN = "https://hidden.invalid/***"


class Listing:
    """What is accepted, for Outbox.record and Outbox.list."""

    def __init__(self, wire: Wire, batch_records: BatchRecords) -> None:
        self._wire = wire
        self._batch_records = batch_records

    def record(self, email_id: str) -> Record | None:
        """One email; a recipient of a batch that has no record of its own is read from its batch."""
        (record,) = self._records([email_id])
        return record

    def _parsed(self, email_id: str, data: dict[str, str]) -> Record | None:
        if "state" in data:
            return Record.parse(email_id, data)
        place = Place.of(email_id)
        return self._batch_records.record(place) if place else None

    def email_of(self, record: Record) -> AnyEmail:
        """What this record's recipient reads, but that HIDDEN is in the place of each secret.

        Raises:
            InvalidEmail: an older version of the service took it, and its kind is another by now.
            UnknownBatch
        """
        if record.batch is not None:
            own = {name: str(value) for name, value in record.fields.items()}
            recipient = Recipient(record.to, own.pop("name", None), own)
            return self._batch_records.mailing(record.batch).email(recipient)
        kind = KINDS.get(record.kind)
        secrets = dict.fromkeys(kind.secret_fields() if kind else (), HIDDEN)
        return parse({**record.fields, **secrets, "kind": record.kind, "to": record.to})

    def page(
        self,
        *,
        to: str | None,
        kind: str | None,
        state: State | None,
        batch: str | None,
        since: datetime | None,
        until: datetime | None,
        cursor: str | None,
        limit: int,
    ) -> Page:
        """See Outbox.list. Raises InvalidEmail for a cursor that is not one of ours."""
        index = self._wire.key("all")
        if to is not None:
            index = self._wire.key("to", to.casefold())
        elif state is not None and state != State.SENT:
            index = self._wire.key("state", state)
        found: list[Record] = []
        newest = self._newest(index, _read_cursor(cursor), since, until)
        scanned = 0
        # Many at once: a round trip for each of two thousand would take half a second.
        while part := list(islice(newest, min(limit, SCAN_LIMIT - scanned))):
            for (email_id, created), record in zip(part, self._records([one for one, _ in part]), strict=True):
                scanned += 1
                if record and all(
                    wanted in (None, value)
                    for wanted, value in ((kind, record.kind), (state, record.state), (batch, record.batch))
                ):
                    found.append(record)
                if len(found) == limit or scanned == SCAN_LIMIT:
                    return Page(found, _cursor(created, email_id))
        return Page(found, None)

    def _records(self, ids: Sequence[str]) -> Iterator[Record | None]:
        pipe = self._wire.client.pipeline(transaction=False)
        for email_id in ids:
            pipe.hgetall(self._wire.key("email", email_id))
        for email_id, data in zip(ids, pipe.execute(), strict=True):
            yield self._parsed(email_id, data)

    def _newest(
        self, index: str, after: tuple[int, str] | None, since: datetime | None, until: datetime | None
    ) -> Iterator[tuple[str, int]]:
        highest: int | str = f"({milliseconds(until)}" if until else "+inf"
        if after and (until is None or after[0] < milliseconds(until)):
            highest = after[0]
        lowest: int | str = milliseconds(since) if since else "-inf"
        offset, size = 0, 100
        while True:
            rows = cast(
                "list[tuple[str, float]]",
                self._wire.client.zrevrangebyscore(index, highest, lowest, offset, size, withscores=True),
            )
            for email_id, score in rows:
                if after is None or (int(score), email_id) < after:
                    yield email_id, int(score)
            if len(rows) < size:
                return
            offset += size


def _cursor(created: int, email_id: str) -> str:
    return base64.urlsafe_b64encode(f"{created}:{email_id}".encode()).decode().rstrip("=")


def _read_cursor(cursor: str | None) -> tuple[int, str] | None:
    if cursor is None:
        return None
    try:
        created, _, email_id = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode().partition(":")
        return int(created), email_id
    except (binascii.Error, ValueError):
        raise InvalidEmail([FieldError("cursor", "use the value of `next` from the page before")]) from None

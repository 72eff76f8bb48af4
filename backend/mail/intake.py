"""Taking a batch in: all of it or nothing, in slices that stall neither this process nor Redis.

Recipients are checked as they come and written chunk by chunk under a batch that nobody sees. `finish` makes it live
in one step. What is never finished, because a recipient was wrong or this process died, is erased: at once by
`discard`, else by the sweep.
"""

import hashlib
import json
import uuid
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Literal, NamedTuple, Protocol

import redis
import structlog
from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from mail.answers import Idempotency
from mail.batch_records import CHUNK
from mail.batches import Batches, BatchState
from mail.errors import BatchBeingAccepted, FieldError, IdempotencyConflict, InvalidEmail, OutboxUnavailable
from mail.fields import Label
from mail.kinds import field_errors
from mail.mailing import Mailing, Recipient
from mail.outbox import Outbox

logger = structlog.get_logger(__name__)

MAX_FAULTS = 20
MAX_COPIES = 100
SLICE = 5  # chunks written in one call: about two milliseconds of Redis's time

_NOT_TAKEN = "Redis answered too late, or the request took too long; nothing was accepted"

OnUnknown = Literal["hold", "resend"]


class AcceptedBatch(NamedTuple):
    """The answer to taking a batch in: `replayed` when an earlier call with the same idempotency key took it in."""

    id: str
    state: BatchState
    total: int
    duplicates: int
    replayed: bool = False


class Terms(BaseModel):
    """How a batch is to be sent."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    course_id: Label | None = None
    send_at: AwareDatetime | None = None
    expires_at: AwareDatetime | None = None
    on_unknown: OnUnknown = "hold"


def read_terms(head: dict[str, Any]) -> Terms:
    """Take the terms out of the head of a request; what stays is the mailing's.

    Raises:
        InvalidEmail
    """
    given = {name: head.pop(name) for name in Terms.model_fields if name in head}
    try:
        return Terms.model_validate(given)
    except ValidationError as error:
        raise InvalidEmail(field_errors(error)) from None


class RecipientCheck(Protocol):
    """Validates one recipient and tries out its mail; mail/check.py has the one implementation."""

    def recipient(self, raw: object) -> Recipient:
        """Raises InvalidEmail."""
        ...


class Intake:
    """One batch being taken in. For one thread at a time.

    Raises:
        BatchBeingAccepted: another call with this idempotency key is not done yet.
        OutboxUnavailable
    """

    def __init__(
        self,
        outbox: Outbox,
        batches: Batches,
        mailing: Mailing,
        check: RecipientCheck,
        terms: Terms,
        *,
        limit: int,
        idempotency: Idempotency | None = None,
        request_id: str = "",
    ) -> None:
        self.id = f"batch-{uuid.uuid4().hex}"
        self._wire = outbox.wire
        self._numbers = outbox.numbers
        self._batches = batches
        self._mailing = mailing
        self._check = check
        self._terms = terms
        self._limit = limit
        self._request_id = request_id
        self._faults: list[FieldError] = []
        self._seen: set[str] = set()
        self._copies: Counter[str] = Counter()
        self._received = 0
        self._pending: list[Recipient] = []
        self._chunks = 0
        self._earlier: tuple[str, str] | None = None
        self._fingerprint = hashlib.sha256(_canonical([mailing.stored(), *_times(terms), terms.on_unknown]))
        self._refuse_when_full = outbox.refuse_when_full
        self._begin(idempotency.stored() if idempotency else "")

    def _begin(self, idempotency: str) -> None:
        with self._wire.answered():
            self._refuse_when_full()
            reply = self._wire.run_in_time("batch_begin", self.id, idempotency, self._patience)
        match reply:
            case ["accepting", *_]:
                self._open = False
                raise BatchBeingAccepted
            case ["known", _, fingerprint, batch_id, _]:
                # Nothing is written; the answer depends on whether the same batch comes.
                self._earlier = (fingerprint, batch_id)
            case ["late", *_]:
                raise OutboxUnavailable(_NOT_TAKEN)
        self._open = self._earlier is None

    def take(self, raw: Sequence[object], *, first_line: int | None = None) -> None:
        """Check some recipients, in order, and write those that fill a slice.

        Faults name the position in the whole request, from 0 (`recipients.17.to`); or, where `first_line` is the
        line of the first of these recipients, the line (`line 18, to`).

        Raises:
            InvalidEmail: too many recipients, or more faults than anybody reads. `finish` raises for fewer.
            OutboxUnavailable
        """
        for offset, one in enumerate(raw):
            place = f"recipients.{self._received}" if first_line is None else f"line {first_line + offset}"
            separator = "." if first_line is None else ", "
            self._received += 1
            if self._received > self._limit:
                self.refuse(FieldError(place, f"at most {self._limit} recipients are taken in one request"))
                raise InvalidEmail(self._faults)
            self._take_one(one, place, separator)
            if len(self._faults) >= MAX_FAULTS:
                raise InvalidEmail(self._faults)
        while len(self._pending) >= SLICE * CHUNK:
            self._write(SLICE * CHUNK)

    def _take_one(self, raw: object, place: str, separator: str) -> None:
        try:
            recipient = self._check.recipient(raw)
        except InvalidEmail as error:
            self._faults += [
                FieldError(place if fault.field == "body" else f"{place}{separator}{fault.field}", fault.message)
                for fault in error.errors
            ]
            return
        person = recipient.to.casefold()
        if person in self._seen:
            self._copies[person] += 1
            if self._copies[person] == MAX_COPIES:
                message = f"this address comes more than {MAX_COPIES} times; mend the list"
                self._faults.append(FieldError(f"{place}{separator}to", message))
            return
        self._seen.add(person)
        self._fingerprint.update(_canonical(recipient.stored()))
        self._pending.append(recipient)

    def refuse(self, error: FieldError) -> None:
        """Note a fault that was found while reading the request.

        Raises:
            InvalidEmail: there are more faults than anybody reads.
        """
        self._faults.append(error)
        if len(self._faults) >= MAX_FAULTS:
            raise InvalidEmail(self._faults)

    def check(self) -> None:
        """Say what is wrong so far.

        Raises:
            InvalidEmail: the faults of all recipients; or there is none.
        """
        if not self._received and not self._faults:
            self.refuse(FieldError("recipients", "at least one recipient is required"))
        if self._faults:
            raise InvalidEmail(self._faults)

    def finish(self) -> AcceptedBatch:
        """Make the batch live. When this returns, every recipient in it is kept and will be sent to.

        Raises:
            InvalidEmail: the faults of all recipients, or of the times; or there is no recipient.
            IdempotencyConflict: the key came before with another batch.
            OutboxUnavailable: Redis did not take it. `email_id` is the batch id where only the answer was lost.
        """
        self.check()
        total, duplicates = len(self._seen), self._copies.total()
        if self._earlier:
            fingerprint, batch_id = self._earlier
            if fingerprint != self._fingerprint.hexdigest():
                raise IdempotencyConflict
            batch = self._batches.batch(batch_id)
            logger.info("batch.accepted", batch=batch_id, request_id=batch.request_id, replayed=True)
            return AcceptedBatch(batch_id, BatchState.QUEUED, batch.total, batch.duplicates, replayed=True)
        while self._pending:
            self._write(SLICE * CHUNK)
        with self._wire.answered(self.id):
            reply = self._wire.run_in_time(
                "batch_flip",
                self.id,
                self._mailing.kind,
                json.dumps(self._mailing.stored(), ensure_ascii=False),
                self._mailing.subject,
                self._terms.course_id or "",
                total,
                duplicates,
                self._terms.on_unknown,
                *_times(self._terms),
                self._fingerprint.hexdigest(),
                int(self._numbers.idempotency.total_seconds() * 1000),
                self._request_id,
            )
        match reply:
            case ["accepted", *_]:
                self._open = False
                logger.info(
                    "batch.accepted",
                    batch=self.id,
                    request_id=self._request_id,
                    kind=self._mailing.kind,
                    total=total,
                    duplicates=duplicates,
                    course_id=self._terms.course_id,
                )
                return AcceptedBatch(self.id, BatchState.QUEUED, total, duplicates)
            case ["invalid", _, field, message]:
                raise InvalidEmail([FieldError(field, message)])
        raise OutboxUnavailable(_NOT_TAKEN)

    def discard(self) -> None:
        """Remove what was written, unless the batch has become live. Never raises: the sweep removes it else."""
        if self._open:
            self._open = False
            with suppress(redis.RedisError):
                # It may be live without our knowing, if the answer to the flip was lost.
                if self._wire.run("batch_abandon", self.id, BatchState.ACCEPTING)[0] == "erasing":
                    self._batches.erase(self.id)

    @property
    def _patience(self) -> int:
        return int(self._numbers.batch_patience.total_seconds() * 1000)

    def _write(self, count: int) -> None:
        slice_, self._pending = self._pending[:count], self._pending[count:]
        if self._faults or self._earlier:
            return
        arguments: list[Any] = []
        for start in range(0, len(slice_), CHUNK):
            part = slice_[start : start + CHUNK]
            persons = [recipient.to.casefold() for recipient in part]
            content = [recipient.stored() for recipient in part]
            arguments += [self._chunks, *(json.dumps(it, ensure_ascii=False) for it in (content, persons))]
            self._chunks += 1
        with self._wire.answered():
            self._refuse_when_full()
            reply = self._wire.run_in_time("batch_fill", self.id, self._patience, *arguments)
        if reply[0] != "filled":
            raise OutboxUnavailable(_NOT_TAKEN)


def _times(terms: Terms) -> tuple[int, int]:
    """`send_at` and `expires_at` in milliseconds, 0 for none."""
    start, end = (int(at.timestamp() * 1000) if at else 0 for at in (terms.send_at, terms.expires_at))
    return start, end


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"

"""Batches: one mailing to many recipients. What can be seen of one, and how it is steered.

Taking a batch in is mail/intake.py, sending it mail/chunks.py and mail/delivery.py, reading its recipients
mail/batch_records.py. docs/outbox.md has the keys; every change is a script in `scripts/`.
"""

import base64
import binascii
import json
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import islice
from typing import NamedTuple, cast

import structlog

from mail.answers import Page
from mail.batch_records import LETTERS, UNSEEN, Place
from mail.errors import FieldError, InvalidEmail, UnknownBatch, WrongState
from mail.outbox import Outbox
from mail.records import Record, State, moment

logger = structlog.get_logger(__name__)

MISSED = frozenset({State.FAILED, State.HELD, State.CANCELLED, State.EXPIRED, State.SUPPRESSED})
"""How a recipient can end without having been sent to."""

_WALKED = {"retry": "failed_retried", "release": "held_released", "drop": "held_dropped"}
_SCAN = 100_000  # recipients whose states one call looks through


class BatchState(StrEnum):
    """Where a batch is in its life. The word after the dash is Celery's for it."""

    ACCEPTING = "accepting"  # is being taken in; nobody sees it yet — PENDING
    QUEUED = "queued"  # waits for its time or for a worker — PENDING
    SENDING = "sending"  # under way — STARTED
    PAUSED = "paused"  # stopped by hand — STARTED
    FINISHED = "finished"  # nothing is left to do for any recipient — SUCCESS
    CANCELLED = "cancelled"  # by hand; what had not been sent never will — REVOKED


BATCH_STATUS: Mapping[BatchState, str] = {
    BatchState.ACCEPTING: "PENDING",
    BatchState.QUEUED: "PENDING",
    BatchState.SENDING: "STARTED",
    BatchState.PAUSED: "STARTED",
    BatchState.FINISHED: "SUCCESS",
    BatchState.CANCELLED: "REVOKED",
}


@dataclass(frozen=True)
class Batch:
    """One batch at one moment.

    `counts` has the states that occur, and adds up to `total`. `per_second` is the pace lately; `seconds_left` is
    None where nothing moves; `limited_by` says in words what holds the pace back. `version` grows with every change.
    """

    id: str
    state: BatchState
    kind: str
    subject: str
    course_id: str | None
    total: int
    duplicates: int
    counts: Mapping[State, int]
    on_unknown: str
    created_at: datetime
    send_at: datetime | None
    expires_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    per_second: float
    seconds_left: float | None
    limited_by: str | None
    version: int
    request_id: str | None

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more unless somebody asks for it."""
        return self.finished_at is not None


class BatchPage(NamedTuple):
    """Some batches, newest first, and the cursor of the next page."""

    items: Sequence[Batch]
    next: str | None


@dataclass(frozen=True)
class BatchRecipient:
    """How one recipient of a batch stands. `id` is an email id."""

    id: str
    position: int
    to: str
    name: str | None
    state: State
    attempts: int
    smtp_code: int | None
    smtp_reply: str | None
    error: str | None
    sent_at: datetime | None
    possible_duplicate: bool


class BatchRecipients(NamedTuple):
    """Some recipients in the order of the request, and the cursor of the next page."""

    items: Sequence[BatchRecipient]
    next: str | None


class Batches:
    """Looks at batches and steers them. Safe to share between threads."""

    def __init__(self, outbox: Outbox) -> None:
        self._numbers = outbox.numbers
        self._wire = outbox.wire
        self._redis = outbox.wire.client
        self._records = outbox.batch_records

    # Seeing

    def batch(self, batch_id: str) -> Batch:
        """One batch.

        Raises:
            UnknownBatch, OutboxUnavailable
        """
        with self._wire.answered():
            return self._batch(batch_id)

    def _batch(self, batch_id: str) -> Batch:
        data = cast("dict[str, str]", self._redis.hgetall(self._wire.key("batch", batch_id)))
        if data.get("state", "accepting") in UNSEEN:
            raise UnknownBatch
        now, speed, why = self._wire.run("batch_look", batch_id, *self._numbers.limits)
        state = BatchState(data["state"])
        counts = {State(name[2:]): int(value) for name, value in data.items() if name[:2] == "n:" and value != "0"}
        if State.QUEUED in counts and int(data.get("send_at", "0")) > now:
            counts[State.SCHEDULED] = counts.pop(State.QUEUED)
        per_second = float(speed)
        moving = state is BatchState.SENDING and per_second > 0.01

        def at(name: str) -> datetime | None:
            return moment(data[name]) if name in data else None

        return Batch(
            id=batch_id,
            state=state,
            kind=data["kind"],
            subject=data["subject"],
            course_id=data.get("course_id"),
            total=int(data["total"]),
            duplicates=int(data["duplicates"]),
            counts=counts,
            on_unknown=data["on_unknown"],
            created_at=moment(data["created"]),
            send_at=at("send_at"),
            expires_at=at("expires"),
            started_at=at("started"),
            finished_at=at("finished"),
            per_second=round(per_second, 2) if state is BatchState.SENDING else 0.0,
            seconds_left=round(int(data["open"]) / per_second, 1) if moving else None,
            limited_by=_limit(state, counts, why),
            version=int(data["version"]),
            request_id=data.get("request_id") or None,
        )

    def list(self, *, cursor: str | None = None, limit: int = 50) -> BatchPage:
        """Batches, newest first.

        Raises:
            InvalidEmail: the cursor is not one of ours.
            OutboxUnavailable
        """
        start = _read_cursor(cursor)
        with self._wire.answered():
            ids = cast("list[str]", self._redis.zrevrange(self._wire.key("batches"), start, start + limit - 1))
            items = [batch for batch_id in ids for batch in self._still_there(batch_id)]
        return BatchPage(items, _cursor(start + limit) if len(ids) == limit else None)

    def _still_there(self, batch_id: str) -> Iterator[Batch]:
        try:
            yield self._batch(batch_id)
        except UnknownBatch:
            return  # removed since the list was read

    def recipients(
        self,
        batch_id: str,
        *,
        state: State | None = None,
        missed: bool = False,
        cursor: str | None = None,
        limit: int = 100,
    ) -> BatchRecipients:
        """Recipients in the order of the request; with `state` those in it, with `missed` those that ended without
        having been sent to. A page may hold fewer than `limit` and still have a next one.

        Raises:
            UnknownBatch, OutboxUnavailable
            InvalidEmail: the cursor is not one of ours.
        """
        page = self.records(batch_id, state=state, missed=missed, cursor=cursor, limit=limit)
        return BatchRecipients([_recipient(record) for record in page.items], page.next)

    def records(
        self,
        batch_id: str,
        *,
        state: State | None = None,
        missed: bool = False,
        cursor: str | None = None,
        limit: int = 100,
    ) -> Page:
        """The same as complete records."""
        start = _read_cursor(cursor)
        wanted = MISSED if missed else frozenset(State) if state is None else frozenset({state})
        with self._wire.answered():
            batch = self._batch(batch_id)
            if State.SCHEDULED in wanted and State.SCHEDULED in batch.counts:
                wanted |= {State.QUEUED}
            elif State.SCHEDULED in batch.counts and state is State.QUEUED:
                wanted = frozenset()
            letters = cast("str", self._redis.getrange(self._wire.key("states", batch_id), start, start + _SCAN - 1))
            pattern = "".join(letter + letter.upper() for letter, known in LETTERS.items() if known in wanted)
            found = re.finditer(f"[{pattern}]", letters) if pattern else iter(())
            positions = [start + match.start() for match, _ in zip(found, range(limit), strict=False)]
            following = positions[-1] + 1 if len(positions) == limit else start + len(letters)
            # What has moved on since the states were read is left to the page of its new state.
            items = [record for record in self._records.records(batch_id, positions) if record.state in wanted]
        return Page(items, _cursor(following) if following < batch.total else None)

    # Steering

    def pause(self, batch_id: str) -> Batch:
        """Let no more mails of a batch begin. Each worker thread still ends the few it has in hand.

        Raises:
            UnknownBatch, WrongState, OutboxUnavailable
        """
        return self._steer(batch_id, "pause", "paused")

    def resume(self, batch_id: str) -> Batch:
        """Go on with a paused batch.

        Raises:
            UnknownBatch, WrongState, OutboxUnavailable
        """
        return self._steer(batch_id, "resume", "resumed")

    def cancel(self, batch_id: str) -> Batch:
        """Stop a batch for good: what has not been sent is cancelled.

        Raises:
            UnknownBatch, WrongState, OutboxUnavailable
        """
        self._steer(batch_id, "cancel", "cancelled")
        return self._walk(batch_id, "cancel")

    def retry_failed(self, batch_id: str) -> Batch:
        """Send to the failed recipients again, with fresh attempts.

        Raises:
            UnknownBatch, WrongState, OutboxUnavailable
        """
        return self._walk(batch_id, "retry", forbidden=BatchState.CANCELLED)

    def release_held(self, batch_id: str) -> Batch:
        """Send to the held recipients again: those who got the mail get a second copy.

        Raises:
            UnknownBatch, WrongState, OutboxUnavailable
        """
        return self._walk(batch_id, "release", forbidden=BatchState.CANCELLED)

    def drop_held(self, batch_id: str) -> Batch:
        """Let the held recipients be: they become failed.

        Raises:
            UnknownBatch, OutboxUnavailable
        """
        return self._walk(batch_id, "drop")

    def _steer(self, batch_id: str, verb: str, done: str) -> Batch:
        with self._wire.answered():
            match self._wire.run("batch_steer", batch_id, verb):
                case ["ok", *_]:
                    logger.info(f"batch.{done}", batch=batch_id)
                    return self._batch(batch_id)
                case ["state", _, state]:
                    raise WrongState(f"a batch that is {state} cannot be {done}")
        raise UnknownBatch

    def _walk(self, batch_id: str, verb: str, forbidden: BatchState | None = None) -> Batch:
        with self._wire.answered():
            if (state := self._batch(batch_id).state) is forbidden:
                raise WrongState(f"a batch that is {state} sends nothing any more")
            for _ in self._slices(batch_id, verb):
                pass
            if verb != "cancel":
                logger.info(f"batch.{_WALKED[verb]}", batch=batch_id)
            return self._batch(batch_id)

    def _slices(self, batch_id: str, verb: str) -> Iterator[None]:
        """Walks through a batch, slice by slice. What is done is not found by a later walk."""
        position, token = 0, str(uuid.uuid4())
        while position >= 0:
            _, position = self._wire.run("batch_walk", batch_id, verb, position, token, 200)
            yield

    # Looking after

    def tend(self) -> None:
        """Finish what somebody began and did not end: erase what was never accepted, cancel what is cancelled.
        One bounded step; the sweep calls it over and over.

        Raises:
            redis.RedisError
        """
        _, *found = self._wire.run("batch_tend", _ms(self._numbers.batch_patience))
        for batch_id, why in zip(found[::2], found[1::2], strict=True):
            if why == "erase":
                self.erase(batch_id, most=100)
            else:
                for _ in islice(self._slices(batch_id, why), 100):
                    pass

    def clean(self) -> bool:
        """Erase part of an old batch; whether there was one.

        Raises:
            redis.RedisError
        """
        seconds, micros = self._redis.time()
        cutoff = seconds * 1000 + micros // 1000 - _ms(self._numbers.retention)
        old = cast("list[str]", self._redis.zrangebyscore(self._wire.key("batches"), "-inf", cutoff, 0, 20))
        for batch_id in old:
            finished = cast("str | None", self._redis.hget(self._wire.key("batch", batch_id), "finished"))
            if finished is None or int(finished) > cutoff:
                continue
            # First, so that nobody revives what is half gone.
            ended = (BatchState.FINISHED, BatchState.CANCELLED)
            if self._wire.run("batch_abandon", batch_id, *ended)[0] == "erasing":
                self.erase(batch_id, most=20)
                return True
        return False

    def erase(self, batch_id: str, most: int = 1_000_000) -> None:
        """Remove a batch, at most so many chunks of it at once, the last ones first.

        Raises:
            redis.RedisError
        """
        number = int(cast("str | None", self._redis.hget(self._wire.key("batch", batch_id), "chunks")) or 0) - 1
        for _ in range(most):
            content = self._redis.hget(self._wire.key("chunk", batch_id, str(number)), "content")
            persons = [entry[0].casefold() for entry in json.loads(cast("str | None", content) or "[]")]
            self._wire.run("batch_erase", batch_id, number, json.dumps(persons, ensure_ascii=False))
            if number <= 0:
                return
            number -= 1


def _limit(state: BatchState, counts: Mapping[State, int], why: str) -> str | None:
    match state:
        case BatchState.PAUSED:
            return "paused by hand"
        case BatchState.QUEUED | BatchState.SENDING:
            return "not yet due" if State.SCHEDULED in counts else why
    return None


def _recipient(record: Record) -> BatchRecipient:
    place = Place.of(record.id)
    return BatchRecipient(
        id=record.id,
        position=place.position if place else 0,
        to=record.to,
        name=record.fields.get("name"),
        state=record.state,
        attempts=record.attempts,
        smtp_code=record.smtp_code,
        smtp_reply=record.smtp_reply,
        error=record.error,
        sent_at=record.sent_at,
        possible_duplicate=record.possible_duplicate,
    )


def _ms(period: timedelta) -> int:
    return int(period.total_seconds() * 1000)


def _cursor(position: int) -> str:
    return base64.urlsafe_b64encode(str(position).encode()).decode().rstrip("=")


def _read_cursor(cursor: str | None) -> int:
    if cursor is None:
        return 0
    try:
        position = int(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (binascii.Error, ValueError):
        position = -1
    if not 0 <= position <= 100_000_000:
        raise InvalidEmail([FieldError("cursor", "use the value of `next` from the page before")])
    return position

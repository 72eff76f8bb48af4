"""What the outbox knows of an email: its state, its timeline, its record as pages and programs see it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from mail.kinds import KINDS


class State(StrEnum):
    """Where an email is in its life. The word after the dash is Celery's for it."""

    SCHEDULED = "scheduled"  # waits for its send_at — PENDING
    QUEUED = "queued"  # waits for a worker — PENDING
    SENDING = "sending"  # a worker holds its lease — STARTED
    RETRYING = "retrying"  # a transient failure; the next attempt is known — RETRY
    SENT = "sent"  # the server answered 250 — SUCCESS
    FAILED = "failed"  # refused for good, or attempts used up: a dead letter — FAILURE
    HELD = "held"  # outcome unknown, a human decides — FAILURE
    CANCELLED = "cancelled"  # by hand, or superseded by a newer one — REVOKED
    EXPIRED = "expired"  # its link or its use ended before it could be sent — REVOKED
    SUPPRESSED = "suppressed"  # the recipient does not want it — REVOKED


CELERY_STATUS: Mapping[State, str] = {
    State.SCHEDULED: "PENDING",
    State.QUEUED: "PENDING",
    State.SENDING: "STARTED",
    State.RETRYING: "RETRY",
    State.SENT: "SUCCESS",
    State.FAILED: "FAILURE",
    State.HELD: "FAILURE",
    State.CANCELLED: "REVOKED",
    State.EXPIRED: "REVOKED",
    State.SUPPRESSED: "REVOKED",
}


@dataclass(frozen=True)
class Change:
    """One line of the timeline. `reply` is what the SMTP server said, `note` what we have to add."""

    at: datetime
    state: State
    worker: str | None = None
    attempt: int | None = None
    code: int | None = None
    reply: str | None = None
    error: str | None = None
    note: str | None = None
    next_attempt_at: datetime | None = None


@dataclass(frozen=True)
class Record:
    """One email as the outbox has it. Secret fields are not in it; `fields` shows `***` in their place.

    `batch` names the batch it belongs to; then `fields` has what is this recipient's own. `request_id` is that of the
    call that brought it, and stands in every log line about it.
    """

    id: str
    kind: str
    to: str
    lane: str
    state: State
    fields: Mapping[str, Any]
    attempts: int
    created_at: datetime
    updated_at: datetime
    send_at: datetime | None
    expires_at: datetime | None
    next_attempt_at: datetime | None
    sent_at: datetime | None
    smtp_code: int | None
    smtp_reply: str | None
    error: str | None
    possible_duplicate: bool
    batch: str | None
    request_id: str | None
    timeline: Sequence[Change]

    @classmethod
    def parse(cls, email_id: str, data: Mapping[str, str]) -> "Record":
        """Read a record from its Redis hash."""
        batch = data.get("batch")
        fields = json.loads(data["payload"])
        if batch is not None:
            fields = _own_fields(*fields)
        kind = KINDS.get(data["kind"])
        for name in kind.secret_fields() if kind else ():
            fields[name] = "***"
        log = [json.loads(line) for line in data["log"].split("\n") if line]
        if batch is not None:
            log.insert(0, {"at": data["created"], "state": State.QUEUED})
        state = State(data["state"])
        waits = state in (State.RETRYING, State.SCHEDULED)
        return cls(
            id=email_id,
            kind=data["kind"],
            to=data["to"],
            lane=data["lane"],
            state=state,
            fields=fields,
            attempts=int(data["attempts"]),
            created_at=moment(data["created"]),
            updated_at=moment(data["updated"]),
            send_at=_moment(data.get("send_at")),
            expires_at=_moment(data.get("expires")),
            next_attempt_at=_moment(data.get("next") or data.get("send_at")) if waits else None,
            sent_at=_moment(data.get("sent")),
            smtp_code=int(data["code"]) if "code" in data else None,
            smtp_reply=data.get("reply"),
            error=data.get("error"),
            possible_duplicate="duplicate" in data,
            batch=batch,
            request_id=data.get("request_id") or None,
            timeline=tuple(_change(entry) for entry in log),
        )


def moment(milliseconds: str | float) -> datetime:
    """Milliseconds of Redis time as an aware datetime."""
    return datetime.fromtimestamp(float(milliseconds) / 1000, UTC)


def milliseconds(moment: datetime) -> int:
    """An aware datetime as milliseconds of Redis time."""
    return int(moment.timestamp() * 1000)


def _own_fields(_: str, name: str | None = None, data: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The fields that belong to one recipient of a batch, from the form in which it is stored."""
    return {**({} if name is None else {"name": name}), **(data or {})}


def _moment(milliseconds: str | float | None) -> datetime | None:
    return None if milliseconds is None else moment(milliseconds)


def _change(entry: Mapping[str, Any]) -> Change:
    note = entry.get("note")
    if entry.get("copy"):
        note = "possible duplicate: the worker before died while sending"
    return Change(
        at=moment(entry["at"]),
        state=State(entry["state"]),
        worker=entry.get("worker"),
        attempt=entry.get("attempt"),
        code=entry.get("code"),
        reply=entry.get("reply"),
        error=entry.get("error"),
        note=note,
        next_attempt_at=_moment(entry.get("next")),
    )

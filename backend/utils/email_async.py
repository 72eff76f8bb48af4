"""Sending email through the queue: what must not be lost.

`send_x_async(...)` keeps the email in the outbox, wakes a worker, and returns the email id at once. When it has
returned, the email will be sent; when it raises, it will not. Call it after your own database commit: a worker
may be faster than your transaction.

These are plain functions that wait for Redis (under a millisecond; at most two seconds when it is frozen). From an
`async def`, call them in a thread: `await asyncio.to_thread(send_welcome_email_async, to, name)`.

Beside the fields of its kind (see utils/email.py) every form takes
    send_at           aware datetime: not before then
    expires_at        aware datetime: not after then; a reset or verification mail ends with its link by itself
    idempotency_key   any string: the same key with the same email within 24 h is taken once

A `request_id` bound with `structlog.contextvars.bind_contextvars` follows the email through the logs and its record;
else one is made (docs/logs.md).

Every form raises InvalidEmail, RecipientLimited (`retry_after` seconds), IdempotencyConflict, or OutboxUnavailable.
"""

import uuid
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import structlog
from typing_extensions import TypedDict  # pydantic cannot read the one of typing before Python 3.12

from logs import current_request_id, request_id
from mail.answers import Accepted, Due, Idempotency
from mail.batch_records import is_batch_id
from mail.batches import BATCH_STATUS, MISSED
from mail.check import Check
from mail.errors import FieldError, InvalidEmail, UnknownEmail
from mail.intake import Intake, OnUnknown, read_terms
from mail.kinds import (
    AnyEmail,
    CertificateEmail,
    CourseEnrollmentEmail,
    CustomEmail,
    EmailVerificationEmail,
    PasswordResetEmail,
    WelcomeEmail,
    new,
)
from mail.mailing import Mailing
from mail.records import CELERY_STATUS, State
from settings import get_settings
from utils.composition import get_batches, get_outbox, get_policy, get_service, get_wake_ups

__all__ = [
    "TaskStatus",
    "enqueue",
    "get_task_status",
    "open_batch",
    "send_bulk_emails_async",
    "send_certificate_email_async",
    "send_course_enrollment_email_async",
    "send_custom_email_async",
    "send_email_verification_async",
    "send_password_reset_email_async",
    "send_welcome_email_async",
]

logger = structlog.get_logger(__name__)

MAX_IDEMPOTENCY_KEY = 255
_EARLIEST, _LATEST = datetime(1970, 1, 2, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)


class TaskStatus(TypedDict):
    """Where an email is: `status` is Celery's word, `state` ours."""

    task_id: str
    status: str
    state: str | None
    attempts: int
    error: str | None


def enqueue(
    email: AnyEmail,
    *,
    send_at: datetime | None = None,
    expires_at: datetime | None = None,
    idempotency_key: str | None = None,
    scope: str = "python",
) -> Accepted:
    """Keep an email of any kind in the outbox and wake a worker. `scope` names the caller: idempotency keys of
    different callers never meet."""
    get_policy().check(email)
    errors = [*_time_faults(send_at=send_at, expires_at=expires_at), *_key_faults(idempotency_key)]
    if errors:
        raise InvalidEmail(errors)
    follow = request_id(current_request_id())
    due = Due(str(uuid.uuid4()), email.kind, email.to)
    wake_up = get_wake_ups().written(email.lane, due)
    accepted = get_outbox().accept(
        email,
        email_id=due.id,
        wake_up=wake_up,
        send_at=send_at,
        expires_at=expires_at,
        idempotency=Idempotency(scope, idempotency_key) if idempotency_key is not None else None,
        request_id=follow,
    )
    logger.info(
        "email.accepted",
        email_id=accepted.id,
        request_id=follow,
        kind=email.kind,
        lane=email.lane.value,
        to=email.to,
        state=accepted.state.value,
        replayed=accepted.replayed or None,
    )
    if wake_up is None and accepted.state is State.QUEUED and not accepted.replayed:
        get_wake_ups().publish(email.lane, due)
    return accepted


def _key_faults(idempotency_key: str | None) -> Iterator[FieldError]:
    if idempotency_key is not None and not 1 <= len(idempotency_key) <= MAX_IDEMPOTENCY_KEY:
        yield FieldError("idempotency_key", f"must have 1 to {MAX_IDEMPOTENCY_KEY} characters")


def _time_faults(**times: datetime | None) -> Iterator[FieldError]:
    for name, value in times.items():
        if value is None:
            continue
        if value.utcoffset() is None:
            yield FieldError(name, "must have a time zone, such as 2030-01-31T09:00:00Z")
        # The outbox keeps milliseconds since 1970, 0 for none, and must be able to read them back.
        elif not _EARLIEST < value < _LATEST:
            yield FieldError(name, "must lie between the years 1970 and 9999")


def open_batch(
    head: Mapping[str, Any],
    *,
    idempotency_key: str | None = None,
    scope: str = "python",
    limit: int | None = None,
) -> Intake:
    """Begin to take a batch in: hand recipients to the Intake's `take`, then call `finish`; `discard` on any error.

    Args:
        head: everything but the recipients: `subject` with `html` and/or `text`, which may hold `{{ placeholders }}`,
            or `kind` and its shared fields; `reply_to`, `from_name`; `course_id`; `send_at`, `expires_at` (aware
            datetimes or ISO 8601); `on_unknown`: what to do with a mail of which nobody can tell whether it
            arrived, `hold` (the default) or `resend`.
        limit: the most recipients; by default BATCH_STREAM_MAX_RECIPIENTS.

    Raises:
        InvalidEmail, BatchBeingAccepted, OutboxUnavailable
    """
    shared = dict(head)
    terms = read_terms(shared)
    errors = [*_time_faults(send_at=terms.send_at, expires_at=terms.expires_at), *_key_faults(idempotency_key)]
    if errors:
        raise InvalidEmail(errors)
    mailing = Mailing.parse(shared)
    check = Check(mailing, get_policy(), get_service().prepare(mailing))
    check.mailing()
    return Intake(
        get_outbox(),
        get_batches(),
        mailing,
        check,
        terms,
        limit=limit or get_settings().batch_stream_max_recipients,
        request_id=request_id(current_request_id()),
        idempotency=Idempotency(scope, idempotency_key) if idempotency_key is not None else None,
    )


def send_bulk_emails_async(
    recipients: Iterable[str | Mapping[str, Any]],
    subject: str,
    html: str | None = None,
    text: str | None = None,
    *,
    course_id: str | None = None,
    on_unknown: OnUnknown = "hold",
    reply_to: str | None = None,
    from_name: str | None = None,
    send_at: datetime | None = None,
    expires_at: datetime | None = None,
    idempotency_key: str | None = None,
) -> str:
    """Queue one mail to each of many recipients, all of them or none; returns the batch id.

    A recipient is an address or `{"to", "name", "data"}`; `{{ name }}` and `{{ key }}` in subject, html and text
    stand for its name and its data. The same address twice gets one mail. `recipients` may be a generator.
    """
    if isinstance(recipients, str | Mapping):
        raise InvalidEmail([FieldError("recipients", "must be a list of recipients, not one")])
    given = {
        "subject": subject,
        "html": html,
        "text": text,
        "course_id": course_id,
        "reply_to": reply_to,
        "from_name": from_name,
        "send_at": send_at,
        "expires_at": expires_at,
    }
    head = {name: value for name, value in given.items() if value is not None} | {"on_unknown": on_unknown}
    intake = open_batch(head, idempotency_key=idempotency_key)
    try:
        rest = iter(recipients)
        while part := list(islice(rest, 200)):
            intake.take(part)
        return intake.finish().id
    finally:
        intake.discard()


def get_task_status(task_id: str) -> TaskStatus:
    """Where an email or a batch is in its life; `UNKNOWN` for an id that was never accepted.

    Raises:
        OutboxUnavailable: Redis does not answer.
    """
    if is_batch_id(task_id):
        return _batch_status(task_id)
    try:
        record = get_outbox().record(task_id)
    except UnknownEmail:
        return TaskStatus(task_id=task_id, status="UNKNOWN", state=None, attempts=0, error=None)
    return TaskStatus(
        task_id=task_id,
        status=CELERY_STATUS[record.state],
        state=record.state.value,
        attempts=record.attempts,
        error=record.error,
    )


def _batch_status(batch_id: str) -> TaskStatus:
    try:
        batch = get_batches().batch(batch_id)
    except UnknownEmail:
        return TaskStatus(task_id=batch_id, status="UNKNOWN", state=None, attempts=0, error=None)
    missed = sum(count for state, count in batch.counts.items() if state in MISSED)
    return TaskStatus(
        task_id=batch_id,
        status=BATCH_STATUS[batch.state],
        state=batch.state.value,
        attempts=0,
        error=f"{missed} of {batch.total} ended without being sent" if missed else None,
    )


def send_welcome_email_async(
    to: str,
    name: str,
    *,
    reply_to: str | None = None,
    from_name: str | None = None,
    send_at: datetime | None = None,
    expires_at: datetime | None = None,
    idempotency_key: str | None = None,
) -> str:
    """Greet a person whose account was just made."""
    email = new(WelcomeEmail, to=to, name=name, reply_to=reply_to, from_name=from_name)
    return enqueue(email, send_at=send_at, expires_at=expires_at, idempotency_key=idempotency_key).id


def send_password_reset_email_async(
    to: str,
    name: str,
    reset_url: str,
    *,
    reply_to: str | None = None,
    from_name: str | None = None,
    send_at: datetime | None = None,
    expires_at: datetime | None = None,
    idempotency_key: str | None = None,
) -> str:
    """Queue the link that sets a new password. A newer one replaces an older one that still waits."""
    email = new(PasswordResetEmail, to=to, name=name, reset_url=reset_url, reply_to=reply_to, from_name=from_name)
    return enqueue(email, send_at=send_at, expires_at=expires_at, idempotency_key=idempotency_key).id


def send_email_verification_async(
    to: str,
    name: str,
    verification_url: str,
    *,
    reply_to: str | None = None,
    from_name: str | None = None,
    send_at: datetime | None = None,
    expires_at: datetime | None = None,
    idempotency_key: str | None = None,
) -> str:
    """Ask a person to confirm an address. A newer one replaces an older one that still waits."""
    email = new(
        EmailVerificationEmail,
        to=to,
        name=name,
        verification_url=verification_url,
        reply_to=reply_to,
        from_name=from_name,
    )
    return enqueue(email, send_at=send_at, expires_at=expires_at, idempotency_key=idempotency_key).id


def send_course_enrollment_email_async(
    to: str,
    name: str,
    course_name: str,
    course_url: str,
    *,
    reply_to: str | None = None,
    from_name: str | None = None,
    send_at: datetime | None = None,
    expires_at: datetime | None = None,
    idempotency_key: str | None = None,
) -> str:
    """Tell a person that they are enrolled in a course."""
    email = new(
        CourseEnrollmentEmail,
        to=to,
        name=name,
        course_name=course_name,
        course_url=course_url,
        reply_to=reply_to,
        from_name=from_name,
    )
    return enqueue(email, send_at=send_at, expires_at=expires_at, idempotency_key=idempotency_key).id


def send_certificate_email_async(
    to: str,
    name: str,
    course_name: str,
    certificate_url: str,
    *,
    reply_to: str | None = None,
    from_name: str | None = None,
    send_at: datetime | None = None,
    expires_at: datetime | None = None,
    idempotency_key: str | None = None,
) -> str:
    """Hand over the certificate of a finished course."""
    email = new(
        CertificateEmail,
        to=to,
        name=name,
        course_name=course_name,
        certificate_url=certificate_url,
        reply_to=reply_to,
        from_name=from_name,
    )
    return enqueue(email, send_at=send_at, expires_at=expires_at, idempotency_key=idempotency_key).id


def send_custom_email_async(
    to: str,
    subject: str,
    html: str | None = None,
    text: str | None = None,
    *,
    reply_to: str | None = None,
    from_name: str | None = None,
    send_at: datetime | None = None,
    expires_at: datetime | None = None,
    idempotency_key: str | None = None,
) -> str:
    """Queue a subject and a body of your own: `html` (sanitised), `text`, or both. Never compiled as a template."""
    email = new(CustomEmail, to=to, subject=subject, html=html, text=text, reply_to=reply_to, from_name=from_name)
    return enqueue(email, send_at=send_at, expires_at=expires_at, idempotency_key=idempotency_key).id

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

and raises InvalidEmail, RecipientLimited (`retry_after` seconds), IdempotencyConflict, or OutboxUnavailable.
"""

from collections.abc import Iterator
from datetime import UTC, datetime

from typing_extensions import TypedDict  # pydantic cannot read the one of typing before Python 3.12

from mail.errors import FieldError, InvalidEmail, UnknownEmail
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
from mail.outbox import Accepted, Due, Idempotency
from mail.records import CELERY_STATUS, State
from utils.composition import get_outbox, get_policy, get_wake_ups

__all__ = [
    "TaskStatus",
    "enqueue",
    "get_task_status",
    "send_certificate_email_async",
    "send_course_enrollment_email_async",
    "send_custom_email_async",
    "send_email_verification_async",
    "send_password_reset_email_async",
    "send_welcome_email_async",
]

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
    errors = [*_time_faults(send_at=send_at, expires_at=expires_at)]
    if idempotency_key is not None and not 1 <= len(idempotency_key) <= MAX_IDEMPOTENCY_KEY:
        errors.append(FieldError("idempotency_key", f"must have 1 to {MAX_IDEMPOTENCY_KEY} characters"))
    if errors:
        raise InvalidEmail(errors)
    accepted = get_outbox().accept(
        email,
        send_at=send_at,
        expires_at=expires_at,
        idempotency=Idempotency(scope, idempotency_key) if idempotency_key is not None else None,
    )
    if accepted.state is State.QUEUED and not accepted.replayed:
        get_wake_ups().publish(email.lane, Due(accepted.id, email.kind, email.to))
    return accepted


def _time_faults(**times: datetime | None) -> Iterator[FieldError]:
    for name, value in times.items():
        if value is None:
            continue
        if value.utcoffset() is None:
            yield FieldError(name, "must have a time zone, such as 2030-01-31T09:00:00Z")
        # The outbox keeps milliseconds since 1970, 0 for none, and must be able to read them back.
        elif not _EARLIEST < value < _LATEST:
            yield FieldError(name, "must lie between the years 1970 and 9999")


def get_task_status(task_id: str) -> TaskStatus:
    """Where an email is in its life; `UNKNOWN` for an id that was never accepted.

    Raises:
        OutboxUnavailable: Redis does not answer.
    """
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

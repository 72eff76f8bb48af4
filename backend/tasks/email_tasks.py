"""One thin Celery task per kind, and one for chunks of batches: wake a courier, and tell Celery the truth.

A task's argument is the id of an email or a chunk, and its task id is the same; content, state and schedule are in
the outbox.
"""

from collections.abc import Callable
from typing import Any, NoReturn

import redis
import structlog
from celery import Task
from celery.exceptions import Ignore, Retry

from celery_app import app
from mail.delivery import Ended
from mail.errors import UnknownEmail
from mail.kinds import (
    CertificateEmail,
    CourseEnrollmentEmail,
    CustomEmail,
    Email,
    EmailVerificationEmail,
    PasswordResetEmail,
    WelcomeEmail,
)
from mail.records import CELERY_STATUS, State
from mail.redaction import redact
from utils.composition import get_bulk_courier, get_courier
from utils.wake_ups import CHUNK_TASK, task_name

logger = structlog.get_logger(__name__)


class EmailFailed(Exception):
    """The email ended as a dead letter; the text is the reason in its record, addresses masked."""


class EmailWaits(Exception):
    """The email waits for its next attempt; the outbox knows when."""


def _sends(kind: type[Email]) -> "Task[Any, Any]":
    @app.task(name=task_name(kind.name_of_kind()), bind=True, throws=(EmailFailed,))
    def task(self: "Task[Any, Any]", email_id: str) -> str:
        return _wake(self, get_courier().wake, email_id)

    return task


def _wake(task: "Task[Any, Any]", wake: Callable[..., Ended], id_: str) -> str:
    try:
        ended = wake(id_, worker=task.request.hostname or "")
    except UnknownEmail:
        logger.warning("wake_up.unknown", email_id=id_)
        return "unknown: no such email in the outbox"
    except redis.RedisError as error:
        logger.warning("wake_up.not_answered", email_id=id_, error=type(error).__name__)
        # Acknowledge and let the sweep come back: handing it back to a broker that is up would spin.
        raise Retry(exc=EmailWaits(f"Redis does not answer: {type(error).__name__}")) from None
    status = CELERY_STATUS[ended.state]
    if status == "SUCCESS":
        return ended.detail if ended.state is State.SENT and task.name == CHUNK_TASK else ended.state
    if status == "FAILURE":
        raise EmailFailed(_masked(ended))
    if status == "REVOKED":
        _revoked(task, ended)
    # Raised, not called: Celery publishes nothing and keeps no ETA in memory.
    raise Retry(f"next look in {ended.seconds} s", EmailWaits(_masked(ended)))


def _revoked(task: "Task[Any, Any]", ended: Ended) -> NoReturn:
    # There is no exception for "revoked" that a task may raise; this is the event that Flower reads.
    task.send_event("task-revoked", terminated=False, signum=None, expired=ended.state == "expired")
    raise Ignore(_masked(ended))


def _masked(ended: Ended) -> str:
    return redact(f"{ended.state}: {ended.detail}")


send_welcome_email_task = _sends(WelcomeEmail)
send_password_reset_email_task = _sends(PasswordResetEmail)
send_email_verification_task = _sends(EmailVerificationEmail)
send_course_enrollment_email_task = _sends(CourseEnrollmentEmail)
send_certificate_email_task = _sends(CertificateEmail)
send_custom_email_task = _sends(CustomEmail)


@app.task(name=CHUNK_TASK, bind=True)
def send_bulk_chunk_task(self: "Task[Any, Any]", chunk_id: str) -> str:
    """Send to the recipients of one chunk of a batch (`batch-…:7`). How each mail ended is in its own record."""
    return _wake(self, get_bulk_courier().wake, chunk_id)

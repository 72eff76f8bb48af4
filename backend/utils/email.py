"""Sending email now: the direct forms. They need no Redis and no Celery.

    send_x_sync(...)         blocks until the SMTP server has answered  → Delivery
    await send_x(...)        the same in a thread                       → Delivery
    send_bulk_email_sync(...), await send_bulk_email(...)               → list of Delivery and NotDelivered
    send_x_async(...)        queues and returns at once                 → email id   (utils/email_async.py)

Every form takes the fields of its kind: `to` is one address; names have 1 to 100 characters; URLs begin with
http(s)://. `reply_to` is one address; `from_name` replaces the sender's display name.

All of them raise InvalidEmail (a field is wrong: names it and the fix), PermanentError (the server refuses this
mail), or TransientError (not now: the server cannot be reached, is busy, or refuses us). A mail sent this way is
tried once and leaves no record; what must not be lost goes through utils.email_async.
"""

import asyncio
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

import structlog

from mail.check import Check
from mail.delivery import Delivery, NotDelivered
from mail.errors import DeliveryError, FieldError, InvalidEmail, ServerBusy, ServerRefuses, ServerUnavailable
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
from mail.mailing import Mailing, Recipient
from utils.composition import get_policy, get_service
from utils.service import EmailService

logger = structlog.get_logger(__name__)

MAX_FAULTS = 20  # more nobody reads

__all__ = [
    "Delivery",
    "EmailService",
    "NotDelivered",
    "send",
    "send_bulk_email",
    "send_bulk_email_sync",
    "send_certificate_email",
    "send_certificate_email_sync",
    "send_course_enrollment_email",
    "send_course_enrollment_email_sync",
    "send_custom_email",
    "send_custom_email_sync",
    "send_email_verification",
    "send_email_verification_sync",
    "send_password_reset_email",
    "send_password_reset_email_sync",
    "send_sync",
    "send_welcome_email",
    "send_welcome_email_sync",
]


def send_sync(email: AnyEmail) -> Delivery:
    """Send an email of any kind and return when the SMTP server has taken it."""
    get_policy().check(email)
    try:
        sent = get_service().deliver(email)
    except DeliveryError as error:
        logger.warning("email.not_sent", kind=email.kind, to=email.to, code=error.code, error=str(error))
        raise
    logger.info(
        "email.sent", email_id=sent.id, kind=email.kind, to=email.to, code=sent.smtp_code, reply=sent.smtp_reply
    )
    return sent


async def send(email: AnyEmail) -> Delivery:
    """Send an email of any kind without blocking the event loop."""
    return await asyncio.to_thread(send_sync, email)


def send_welcome_email_sync(
    to: str, name: str, *, reply_to: str | None = None, from_name: str | None = None
) -> Delivery:
    """Greet a person whose account was just made."""
    return send_sync(new(WelcomeEmail, to=to, name=name, reply_to=reply_to, from_name=from_name))


async def send_welcome_email(
    to: str, name: str, *, reply_to: str | None = None, from_name: str | None = None
) -> Delivery:
    """Greet a person whose account was just made."""
    return await send(new(WelcomeEmail, to=to, name=name, reply_to=reply_to, from_name=from_name))


def send_password_reset_email_sync(
    to: str, name: str, reset_url: str, *, reply_to: str | None = None, from_name: str | None = None
) -> Delivery:
    """Send the link that sets a new password."""
    return send_sync(
        new(PasswordResetEmail, to=to, name=name, reset_url=reset_url, reply_to=reply_to, from_name=from_name)
    )


async def send_password_reset_email(
    to: str, name: str, reset_url: str, *, reply_to: str | None = None, from_name: str | None = None
) -> Delivery:
    """Send the link that sets a new password."""
    return await send(
        new(PasswordResetEmail, to=to, name=name, reset_url=reset_url, reply_to=reply_to, from_name=from_name)
    )


def send_email_verification_sync(
    to: str, name: str, verification_url: str, *, reply_to: str | None = None, from_name: str | None = None
) -> Delivery:
    """Ask a person to confirm an address."""
    return send_sync(
        new(
            EmailVerificationEmail,
            to=to,
            name=name,
            verification_url=verification_url,
            reply_to=reply_to,
            from_name=from_name,
        )
    )


async def send_email_verification(
    to: str, name: str, verification_url: str, *, reply_to: str | None = None, from_name: str | None = None
) -> Delivery:
    """Ask a person to confirm an address."""
    return await send(
        new(
            EmailVerificationEmail,
            to=to,
            name=name,
            verification_url=verification_url,
            reply_to=reply_to,
            from_name=from_name,
        )
    )


def send_course_enrollment_email_sync(
    to: str,
    name: str,
    course_name: str,
    course_url: str,
    *,
    reply_to: str | None = None,
    from_name: str | None = None,
) -> Delivery:
    """Tell a person that they are enrolled in a course."""
    return send_sync(
        new(
            CourseEnrollmentEmail,
            to=to,
            name=name,
            course_name=course_name,
            course_url=course_url,
            reply_to=reply_to,
            from_name=from_name,
        )
    )


async def send_course_enrollment_email(
    to: str,
    name: str,
    course_name: str,
    course_url: str,
    *,
    reply_to: str | None = None,
    from_name: str | None = None,
) -> Delivery:
    """Tell a person that they are enrolled in a course."""
    return await send(
        new(
            CourseEnrollmentEmail,
            to=to,
            name=name,
            course_name=course_name,
            course_url=course_url,
            reply_to=reply_to,
            from_name=from_name,
        )
    )


def send_certificate_email_sync(
    to: str,
    name: str,
    course_name: str,
    certificate_url: str,
    *,
    reply_to: str | None = None,
    from_name: str | None = None,
) -> Delivery:
    """Hand over the certificate of a finished course."""
    return send_sync(
        new(
            CertificateEmail,
            to=to,
            name=name,
            course_name=course_name,
            certificate_url=certificate_url,
            reply_to=reply_to,
            from_name=from_name,
        )
    )


async def send_certificate_email(
    to: str,
    name: str,
    course_name: str,
    certificate_url: str,
    *,
    reply_to: str | None = None,
    from_name: str | None = None,
) -> Delivery:
    """Hand over the certificate of a finished course."""
    return await send(
        new(
            CertificateEmail,
            to=to,
            name=name,
            course_name=course_name,
            certificate_url=certificate_url,
            reply_to=reply_to,
            from_name=from_name,
        )
    )


def send_custom_email_sync(
    to: str,
    subject: str,
    html: str | None = None,
    text: str | None = None,
    *,
    reply_to: str | None = None,
    from_name: str | None = None,
) -> Delivery:
    """Send a subject and a body of your own: `html` (sanitised), `text`, or both. Never compiled as a template."""
    email = new(CustomEmail, to=to, subject=subject, html=html, text=text, reply_to=reply_to, from_name=from_name)
    return send_sync(email)


async def send_custom_email(
    to: str,
    subject: str,
    html: str | None = None,
    text: str | None = None,
    *,
    reply_to: str | None = None,
    from_name: str | None = None,
) -> Delivery:
    """Send a subject and a body of your own: `html` (sanitised), `text`, or both. Never compiled as a template."""
    email = new(CustomEmail, to=to, subject=subject, html=html, text=text, reply_to=reply_to, from_name=from_name)
    return await send(email)


def send_bulk_email_sync(
    recipients: Iterable[str | Mapping[str, Any]],
    subject: str,
    html: str | None = None,
    text: str | None = None,
    *,
    reply_to: str | None = None,
    from_name: str | None = None,
) -> list[Delivery | NotDelivered]:
    """Send one mail to each of several recipients now, one after the other, and say what became of each.

    A recipient is an address or `{"to", "name", "data"}`; `{{ name }}` and `{{ key }}` in subject, html and text
    stand for its name and its data. The same address twice gets one mail. Everything is checked before the first
    mail leaves. A recipient who is refused stops nobody; when the server cannot be reached, is busy or refuses us,
    the rest is not tried, and has the same error.

    Raises:
        InvalidEmail: nothing was sent; fields such as `recipients.3.data.grade`.
    """
    given = {"subject": subject, "html": html, "text": text, "reply_to": reply_to, "from_name": from_name}
    mailing = Mailing.parse(given)
    service = get_service()
    check = Check(mailing, get_policy(), service.prepare(mailing))
    check.mailing()
    mails = [(str(uuid.uuid4()), recipient) for recipient in _checked(recipients, check)]
    results: list[Delivery | NotDelivered] = []
    for result in service.deliver_many(mailing, mails):
        results.append(result)
        if isinstance(result, NotDelivered) and isinstance(
            result.error, ServerUnavailable | ServerBusy | ServerRefuses
        ):
            rest = mails[len(results) :]
            return results + [NotDelivered(email_id, one.to, result.error) for email_id, one in rest]
    return results


async def send_bulk_email(
    recipients: Iterable[str | Mapping[str, Any]],
    subject: str,
    html: str | None = None,
    text: str | None = None,
    *,
    reply_to: str | None = None,
    from_name: str | None = None,
) -> list[Delivery | NotDelivered]:
    """Send one mail to each of several recipients without blocking the event loop; see `send_bulk_email_sync`."""
    return await asyncio.to_thread(
        send_bulk_email_sync, recipients, subject, html, text, reply_to=reply_to, from_name=from_name
    )


def _checked(recipients: Iterable[object], check: Check) -> list[Recipient]:
    errors: list[FieldError] = []
    people: dict[str, Recipient] = {}
    for position, raw in enumerate(recipients):
        try:
            recipient = check.recipient(raw)
        except InvalidEmail as error:
            for fault in error.errors:
                path = f"recipients.{position}" + ("" if fault.field == "body" else f".{fault.field}")
                errors.append(FieldError(path, fault.message))
            if len(errors) >= MAX_FAULTS:
                break
        else:
            people.setdefault(recipient.to.casefold(), recipient)
    if not people and not errors:
        errors.append(FieldError("recipients", "at least one recipient is required"))
    if errors:
        raise InvalidEmail(errors)
    return list(people.values())

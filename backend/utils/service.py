"""The one way from an email to the SMTP server, for every caller: direct forms, requests that wait, workers."""

import uuid
from datetime import UTC, datetime, timedelta

from mail.delivery import Delivery
from mail.errors import DeliveryError
from mail.kinds import AnyEmail
from mail.message import Sender, build
from mail.records import State
from mail.rendering import Renderer
from mail.smtp import Envelope, SmtpTransport


class EmailService:
    """Renders, builds and sends. Synchronous, safe to share between threads; needs neither Redis nor Celery."""

    def __init__(self, *, renderer: Renderer, transport: SmtpTransport, sender: Sender) -> None:
        self._renderer = renderer
        self._transport = transport
        self._sender = sender

    def deliver(
        self, email: AnyEmail, *, email_id: str | None = None, valid_for: timedelta | None = None
    ) -> Delivery:
        """Send one email now and return when the SMTP server has taken it.

        Args:
            email: any kind.
            email_id: names the mail; its Message-ID is made of it. A new one when absent.
            valid_for: how long the link in it lives, where that is not what its kind says.

        Raises:
            DeliveryError: the server refused it or could not be reached; see mail/errors.py for the tree.
        """
        email_id = email_id or str(uuid.uuid4())
        message = build(
            self._renderer.render(email, valid_for=valid_for),
            email_id=email_id,
            to=email.to,
            sender=self._sender,
            date=datetime.now(UTC),
            reply_to=email.reply_to,
            from_name=email.from_name,
        )
        try:
            reply = self._transport.send(Envelope(message.sender, message.recipient, message.smtputf8), message.data)
        except DeliveryError as error:
            # A content filter may quote the mail it refuses, secrets included.
            raise error.reworded(email.scrub) from None
        return Delivery(
            id=email_id,
            to=email.to,
            kind=email.kind,
            state=State.SENT,
            message_id=message.message_id,
            smtp_code=reply.code,
            smtp_reply=email.scrub(reply.text),
            sent_at=datetime.now(UTC),
        )

    def close(self) -> None:
        """Close idle SMTP connections."""
        self._transport.close()

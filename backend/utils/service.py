"""The one way from an email to the SMTP server, for every caller: direct forms, requests that wait, workers."""

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import structlog

from mail.delivery import Delivery, NotDelivered
from mail.errors import DeliveryError
from mail.kinds import AnyEmail
from mail.mailing import Mailing, Recipient
from mail.message import Message, Sender, build
from mail.records import State
from mail.rendering import Prepared, Rendered, Renderer
from mail.smtp import Chain, Envelope, Mail, Reply, SmtpTransport

KEPT_MAILINGS = 4

logger = structlog.get_logger(__name__)


class _Built(NamedTuple):
    """One mail, ready to be sent."""

    email_id: str
    to: str
    message: Message

    @property
    def mail(self) -> Mail:
        envelope = Envelope(self.message.sender, self.message.recipient, self.message.smtputf8)
        return Mail(envelope, self.message.data)


def _delivery(built: _Built, kind: str, reply: Reply, scrub: Callable[[str], str] = str) -> Delivery:
    return Delivery(
        id=built.email_id,
        to=built.to,
        kind=kind,
        state=State.SENT,
        message_id=built.message.message_id,
        smtp_code=reply.code,
        smtp_reply=scrub(reply.text),
        sent_at=datetime.now(UTC),
    )


def _sent(built: _Built, kind: str, chain: Chain, ahead: Mail | None) -> Delivery | NotDelivered:
    try:
        return _delivery(built, kind, chain.send(built.mail, ahead))
    except DeliveryError as error:
        return NotDelivered(built.email_id, built.to, error)


class EmailService:
    """Renders, builds and sends. Synchronous, safe to share between threads; needs neither Redis nor Celery."""

    def __init__(self, *, renderer: Renderer, transport: SmtpTransport, sender: Sender) -> None:
        self._renderer = renderer
        self._transport = transport
        self._sender = sender
        self._prepared: tuple[Prepared, ...] = ()  # replaced, never changed: threads share it

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
        try:
            return self._send(
                self._renderer.render(email, valid_for=valid_for),
                email_id or str(uuid.uuid4()),
                to=email.to,
                kind=email.kind,
                reply_to=email.reply_to,
                from_name=email.from_name,
                scrub=email.scrub,
            )
        except DeliveryError as error:
            # A content filter may quote the mail it refuses, secrets included.
            raise error.reworded(email.scrub) from None

    def prepare(self, mailing: Mailing) -> Prepared:
        """What recipients share, rendered once. Kept for the mailings used last, unless templates may change.

        Raises:
            jinja2.TemplateError: a template is wrong.
        """
        if self._renderer.auto_reload:
            return self._renderer.prepare(mailing)
        for prepared in self._prepared:
            if prepared.mailing == mailing:
                return prepared
        prepared = self._renderer.prepare(mailing)
        self._prepared = (prepared, *self._prepared[: KEPT_MAILINGS - 1])
        return prepared

    def deliver_many(
        self,
        mailing: Mailing,
        recipients: Iterable[tuple[str, Recipient]],
        *,
        pace: Callable[[], None] | None = None,
    ) -> Iterator[Delivery | NotDelivered]:
        """Send a mailing to several recipients, one after the other, over one connection. None stops the others.

        What became of each mail is yielded as soon as it is known. An error of the server itself (ServerUnavailable,
        ServerBusy, ServerRefuses) is yielded too: the next mail will hardly fare better, so stop iterating.

        Args:
            mailing: what they share.
            recipients: pairs of email id and recipient, each valid for this mailing.
            pace: called before each mail is sent; it may wait, and what it raises ends the sending.
        """
        with self._transport.chain() as chain:
            coming = self._built_in_turn(mailing, recipients)
            this = next(coming, None)
            while this is not None:
                following = next(coming, None)
                if isinstance(this, NotDelivered):
                    yield this
                else:
                    if pace is not None:
                        pace()
                    ahead = following.mail if isinstance(following, _Built) else None
                    yield _sent(this, mailing.kind, chain, ahead)
                this = following

    def _built_in_turn(
        self, mailing: Mailing, recipients: Iterable[tuple[str, Recipient]]
    ) -> Iterator["_Built | NotDelivered"]:
        prepared = None
        for email_id, recipient in recipients:
            try:
                prepared = prepared or self.prepare(mailing)
                message = self._built(
                    prepared.render(recipient),
                    email_id,
                    to=recipient.to,
                    reply_to=mailing.fields.get("reply_to"),
                    from_name=mailing.fields.get("from_name"),
                )
            except Exception as error:
                logger.exception("email.not_prepared", email_id=email_id)
                yield NotDelivered(email_id, recipient.to, error)
            else:
                yield _Built(email_id, recipient.to, message)

    def _send(
        self,
        rendered: Rendered,
        email_id: str,
        *,
        to: str,
        kind: str,
        reply_to: str | None,
        from_name: str | None,
        scrub: Callable[[str], str] = str,
    ) -> Delivery:
        message = self._built(rendered, email_id, to=to, reply_to=reply_to, from_name=from_name)
        built = _Built(email_id, to, message)
        return _delivery(built, kind, self._transport.send(*built.mail), scrub)

    def _built(
        self, rendered: Rendered, email_id: str, *, to: str, reply_to: str | None, from_name: str | None
    ) -> Message:
        return build(
            rendered,
            email_id=email_id,
            to=to,
            sender=self._sender,
            date=datetime.now(UTC),
            reply_to=reply_to,
            from_name=from_name,
        )

    def preview(self, email: AnyEmail) -> tuple[Rendered, Message]:
        """What `deliver` would send, secrets included."""
        rendered = self._renderer.render(email)
        built = self._built(rendered, "preview", to=email.to, reply_to=email.reply_to, from_name=email.from_name)
        return rendered, built

    def measured(self) -> Mapping[str, Any]:
        """Connections and timings of the SMTP server; see SmtpTransport."""
        return self._transport.measured()

    def trim(self, count: int) -> None:
        """Close idle SMTP connections but for `count`."""
        self._transport.trim(count)

    def close(self) -> None:
        """Close idle SMTP connections."""
        self._transport.close()

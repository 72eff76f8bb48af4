"""Every error this service raises on purpose.

EmailError
├── InvalidEmail            bad input; names each field and the fix, never echoes the input
├── OutboxUnavailable       Redis refuses, is frozen, or is nearly full: nothing was accepted
├── RecipientLimited        too many mails of this kind to one person: try again after `retry_after`
├── IdempotencyConflict     the same Idempotency-Key came before with another email
├── BatchBeingAccepted      the batch of this Idempotency-Key is still being taken in
├── UnknownEmail            no such id in the outbox
│   └── UnknownBatch            no such batch
├── WrongState              the email's state forbids the action (sending, sent, ...)
└── DeliveryError           what SMTP said; `stage` tells where
    ├── PermanentError      this mail is refused for good: a 5xx to RCPT or DATA
    └── TransientError      not now; `retry_after` is the server's hint, if any
        ├── OutcomeUnknown      cut between the final dot and the reply: it may have been taken
        ├── ServerUnavailable   nobody answers: nothing to do with this mail, uses up no attempt
        ├── ServerBusy          421, 454, or a 4xx before RCPT: go slower, uses up no attempt
        └── ServerRefuses       wrong password, TLS fault, 5xx before RCPT: the operator must act
ConfigurationError          a setting is wrong; stops the start. Not an EmailError on purpose:
                            code that forgives failed mail must not forgive a wrong set-up.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Self


class ConfigurationError(Exception):
    """A setting is missing or wrong. The message names the setting and the fix."""


class EmailError(Exception):
    """Base of everything that accepting or delivering an email raises on purpose."""


class FieldError(NamedTuple):
    """One fault of the input: the dotted path of the field and what to do about it."""

    field: str
    message: str


class InvalidEmail(EmailError, ValueError):
    """The email cannot be accepted. `errors` names every field at fault."""

    def __init__(self, errors: Sequence[FieldError]) -> None:
        self.errors = tuple(errors)
        super().__init__("; ".join(f"{error.field}: {error.message}" for error in self.errors))


class OutboxUnavailable(EmailError):
    """The outbox did not take the email.

    `email_id` is set when only the answer was lost: the email may have been taken under this id just before
    the connection broke. Repeating with the same idempotency key is safe.
    """

    def __init__(self, reason: str, *, email_id: str | None = None, retry_after: int = 2) -> None:
        self.email_id = email_id
        self.retry_after = retry_after
        super().__init__(reason)


class RecipientLimited(EmailError):
    """This person got as many mails of this kind as the hourly limit allows. `retry_after` is in seconds."""

    def __init__(self, retry_after: int) -> None:
        self.retry_after = retry_after
        super().__init__(f"too many mails of this kind to this recipient; try again in {retry_after} s")


class IdempotencyConflict(EmailError):
    """The idempotency key was used before, with a different email."""

    def __init__(self) -> None:
        super().__init__("this Idempotency-Key was used before with a different body; use a new key")


class BatchBeingAccepted(EmailError):
    """An earlier call with this idempotency key is still taking its batch in."""

    def __init__(self) -> None:
        super().__init__("the batch of this Idempotency-Key is still being taken in; repeat the call in a while")


class UnknownEmail(EmailError):
    """No email with this id was ever accepted, or its record has been removed."""

    def __init__(self, message: str = "no email with this id") -> None:
        super().__init__(message)


class UnknownBatch(UnknownEmail):
    """No batch with this id was ever accepted, or it has been removed."""

    def __init__(self) -> None:
        super().__init__("no batch with this id")


class WrongState(EmailError):
    """The email's state forbids the action."""


class DeliveryError(EmailError):
    """An attempt to hand the mail to the SMTP server did not end with a 250.

    `code` and `reply` are the server's own words where it spoke (RFC 5321 section 4.2), else None and "".
    """

    def __init__(self, message: str, *, code: int | None = None, reply: str = "", stage: str = "") -> None:
        self.code = code
        self.reply = reply
        self.stage = stage
        super().__init__(message)

    def reworded(self, change: Callable[[str], str]) -> Self:
        """The same error with its words passed through `change`."""
        return type(self)(change(str(self)), code=self.code, reply=change(self.reply), stage=self.stage)


class PermanentError(DeliveryError):
    """The server refused this mail for good (RFC 5321 section 4.2.1: 5yz to RCPT or DATA)."""


class TransientError(DeliveryError):
    """The mail was not taken now. `retry_after` is in seconds, None for the caller's own policy."""

    retry_after: float | None = None


class OutcomeUnknown(TransientError):
    """The connection broke after the final dot and before the reply (RFC 1047): sent or not, nobody knows."""


class ServerUnavailable(TransientError):
    """The server cannot be reached, or went away before it saw this mail."""


class ServerBusy(TransientError):
    """The server asks for patience: 421 or 454 anywhere, or 4xx to the greeting or MAIL."""


class ServerRefuses(TransientError):
    """The server refuses us, not this mail: authentication, TLS, or 5xx to the greeting or MAIL."""

"""One wake-up, from claim to settlement, and the retry policy: the only place that decides what a failure means."""

import random
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple, Protocol, TypeVar

import redis
import structlog
from structlog.contextvars import bound_contextvars

from mail.answers import Claim, Outcome, Settled, Waits
from mail.errors import (
    DeliveryError,
    OutcomeUnknown,
    PermanentError,
    ServerBusy,
    ServerRefuses,
    ServerUnavailable,
    UnknownEmail,
)
from mail.kinds import AnyEmail
from mail.leases import LeaseKeeper
from mail.outbox import Outbox
from mail.permits import Permits
from mail.records import State

logger = structlog.get_logger(__name__)

T = TypeVar("T")

_chance = random.SystemRandom()  # processes that start together must not draw the same


@dataclass(frozen=True)
class Delivery:
    """A mail that the SMTP server has taken: `smtp_code` and `smtp_reply` are its own words."""

    id: str
    to: str
    kind: str
    state: State
    message_id: str
    smtp_code: int
    smtp_reply: str
    sent_at: datetime


@dataclass(frozen=True)
class NotDelivered:
    """One mail of several that the SMTP server has not taken, or that could not be made."""

    id: str
    to: str
    error: Exception


class Deliver(Protocol):
    """Renders, builds and sends one email; `EmailService.deliver` is the one implementation."""

    def __call__(self, email: AnyEmail, *, email_id: str, valid_for: timedelta | None) -> Delivery:
        """Raises DeliveryError."""
        ...


@dataclass(frozen=True)
class RetryPolicy:
    """When to try again. Periods in seconds.

    Attempts of one mail back off exponentially with full jitter, so that a thousand refused mails do not come
    back together. Faults of the server use up no attempts; a closed gate is probed at growing intervals instead.
    """

    base: float = 10
    maximum: float = 3600
    attempts: int = 50
    probe_unreachable: float = 30
    probe_refusing: float = 60

    def delay(self, attempts: int) -> float:
        """Seconds until the next attempt after `attempts` failed ones."""
        return jitter(1, max(1, min(self.maximum, self.base * 2**attempts)))

    def verdict(self, error: Exception, attempts: int) -> tuple[Outcome, dict[str, Any]]:
        """What an error means for the mail and for its lane: the arguments of `Outbox.settle`."""
        retry = {"delay": int(self.delay(attempts) * 1000), "attempts": self.attempts}
        match error:
            case PermanentError():
                return "failed", {"refused": error.code is not None, "cap": int(self.probe_refusing * 1000)}
            case ServerUnavailable():
                return "release", {"gate": "smtp", "cap": int(self.probe_unreachable * 1000)}
            case ServerRefuses():
                return "release", {"gate": "smtp", "cap": int(self.probe_refusing * 1000)}
            case ServerBusy():
                return "release", {"slow": True}
            case OutcomeUnknown():
                return "retry", {
                    **retry,
                    "unknown": True,
                    "note": "possible duplicate: the reply to the mail was lost",
                }
            case DeliveryError():
                return "retry", retry
            case _:
                return "retry", {**retry, "unasked": True}

    def settlement(self, error: Exception, attempts: int) -> tuple[Outcome, dict[str, Any]]:
        """The verdict with the words that belong into the record."""
        outcome, arguments = self.verdict(error, attempts)
        if isinstance(error, DeliveryError):
            return outcome, {"code": error.code, "reply": error.reply or None, "error": str(error), **arguments}
        return outcome, {"error": f"could not be prepared: {type(error).__name__}", **arguments}


def jitter(low: float, high: float) -> float:
    """A time in between, so that many that wait for the same thing do not come back together."""
    return _chance.uniform(low, high)


def milliseconds_since(began: float) -> float:
    """From a reading of the monotonic clock until now."""
    return round((time.monotonic() - began) * 1000, 1)


def until_written(what: str, write: Callable[[], T]) -> T:
    """Tries until Redis has it: an outcome that is forgotten becomes a second copy of the mail."""
    pause = 0.1
    while True:
        try:
            return write()
        except redis.RedisError as error:
            logger.warning("outcome.not_written", id=what, error=type(error).__name__)
            time.sleep(pause)
            pause = min(2.0, pause * 2)


def tell(settled: Settled, outcome: Outcome, arguments: dict[str, Any], **facts: Any) -> None:
    """Log how an attempt to send one mail ended."""
    facts |= {"code": arguments.get("code"), "error": arguments.get("error")}
    match settled.state:
        case None:
            logger.warning("lease.lost", outcome=outcome, **facts)
        case State.SENT:
            logger.info("email.sent", reply=arguments.get("reply"), **facts)
        case State.RETRYING if outcome == "retry":
            logger.warning("email.retrying", next_in=settled.seconds, note=arguments.get("note"), **facts)
        case State.RETRYING:
            logger.info("email.released", next_in=settled.seconds, **facts)
        case State.FAILED | State.HELD:
            logger.error(f"email.{settled.state}", **facts)
        case state:
            logger.info(f"email.{state}", **facts)


class Ended(NamedTuple):
    """What came of a wake-up. `seconds` until the next look where the email still waits."""

    state: State
    detail: str = ""
    seconds: int = 0


class Courier:
    """Delivers emails from the outbox, one wake-up at a time. Safe to share between threads."""

    def __init__(
        self, outbox: Outbox, deliver: Deliver, leases: LeaseKeeper, permits: Permits, policy: RetryPolicy
    ) -> None:
        self._outbox = outbox
        self._deliver = deliver
        self._leases = leases
        self._permits = permits
        self._policy = policy

    def wake(self, email_id: str, worker: str) -> Ended:
        """Deliver one email if it is ours to deliver. Any number of wake-ups for one email does no harm.

        `worker` is the name of this worker node, for the timeline.

        Raises:
            UnknownEmail: no such record.
            redis.RedisError: Redis did not grant the claim; the sweep wakes the email again.
        """
        asked_at = time.monotonic()
        with self._permits.permit() as permit:
            claim = self._outbox.claim(email_id, str(uuid.uuid4()), worker, permit.name)
            match claim:
                case Waits():
                    permit.granted &= not claim.full
                    logger.debug("email.waits", email_id=email_id, reason=claim.reason, next_in=claim.seconds)
                    return Ended(claim.state, claim.reason, claim.seconds)
                case State():
                    logger.debug("email.ended_before", email_id=email_id, state=claim.value)
                    return Ended(claim, self._reason(email_id))
            permit.granted = True
            with (
                bound_contextvars(
                    email_id=claim.id,
                    request_id=claim.request_id or None,
                    kind=claim.kind,
                    lane=claim.lane.value,
                    attempt=claim.attempts + 1,
                ),
                self._leases.hold(claim, asked_at),
            ):
                time.sleep(claim.delay)
                return self._send(claim)

    def _send(self, claim: Claim) -> Ended:
        began = time.monotonic()
        outcome, arguments = self._attempt(claim)
        ms = milliseconds_since(began)
        settled = until_written(claim.id, lambda: self._outbox.settle(claim.id, claim.token, outcome, **arguments))
        tell(settled, outcome, arguments, to=claim.to, ms=ms)
        if settled.state is None:
            return Ended(State.SENDING, "another worker has taken over")
        return Ended(settled.state, arguments.get("error") or arguments.get("reply", ""), settled.seconds)

    def _attempt(self, claim: Claim) -> tuple[Outcome, dict[str, Any]]:
        try:
            email = self._outbox.open(claim)
            if not self._leases.may_begin(claim):
                return "release", {"error": "this worker was frozen and has lost its lease"}
            delivery = self._deliver(email, email_id=claim.id, valid_for=claim.valid_for)
        except Exception as error:
            if not isinstance(error, DeliveryError):
                # A broken template or a missing key: an operator can mend it, so the mail waits for that.
                logger.exception("email.not_prepared")
            return self._policy.settlement(error, claim.attempts)
        return "sent", {"code": delivery.smtp_code, "reply": delivery.smtp_reply}

    def _reason(self, email_id: str) -> str:
        try:
            return self._outbox.record(email_id).error or ""
        except UnknownEmail:
            return ""

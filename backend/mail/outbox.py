"""The outbox: the Redis record of every accepted email, and the truth about its state.

With listing.py, which reads them, the only module that knows the Redis keys of single emails; docs/outbox.md has the
table. Every change is one atomic script in `scripts/`, and every script may run twice with the same result: ids and
tokens are made by the caller, so a call whose answer was lost can be repeated.
"""

import hashlib
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from typing import Any

import redis
import structlog

from mail.answers import (
    Accepted,
    Claim,
    Due,
    Idempotency,
    Numbers,
    Outcome,
    Page,
    Settled,
    Sweep,
    Waits,
)
from mail.batch_records import BatchRecords
from mail.errors import (
    FieldError,
    IdempotencyConflict,
    InvalidEmail,
    OutboxUnavailable,
    RecipientLimited,
    UnknownEmail,
    WrongState,
)
from mail.fields import mailbox_of
from mail.findings import nearly_full
from mail.kinds import AnyEmail, Email, Lane, parse
from mail.listing import Listing
from mail.mailing import Recipient
from mail.measures import Measurement, Minute, last_hour, measure
from mail.records import Record, State, milliseconds
from mail.vault import Vault
from mail.wire import Wire

logger = structlog.get_logger(__name__)


class Outbox:
    """Accepts, grants, settles and lists emails.

    Args:
        client: see Wire.
        prefix: begins every key.
        vault: seals secret fields.
    """

    def __init__(self, client: "redis.Redis", *, prefix: str, vault: Vault, numbers: Numbers | None = None) -> None:
        self.numbers = numbers or Numbers()
        self._vault = vault
        self._redis = client
        self.wire = self._wire = Wire(
            client,
            prefix=prefix,
            answer_within=self.numbers.answer_within,
            gap=self.numbers.lease.total_seconds() / 4,
        )
        self.batch_records = BatchRecords(self._wire)
        self._listing = Listing(self._wire, self.batch_records)
        self._memory_checked = float("-inf")

    # Accepting

    def accept(
        self,
        email: AnyEmail,
        *,
        email_id: str | None = None,
        send_at: datetime | None = None,
        expires_at: datetime | None = None,
        idempotency: Idempotency | None = None,
        request_id: str = "",
        wake_up: tuple[str, str] | None = None,
    ) -> Accepted:
        """Take an email in. When this returns, the email is kept and will be sent. `request_id` follows it.
        `wake_up`: a Redis list and what to push on it, in the same step, if it is to be sent now.

        Raises:
            InvalidEmail: a time lies in the past or out of order.
            RecipientLimited: the hourly limit of this kind for this person.
            IdempotencyConflict: the key came before with another email.
            OutboxUnavailable: Redis did not take it.
        """
        email_id = email_id or str(uuid.uuid4())
        secrets = {name: getattr(email, name) for name in email.secret_fields()}
        payload = email.model_dump(mode="json", exclude={"kind", "to", *secrets}, exclude_none=True)
        with self._wire.answered():
            self.refuse_when_full()
        with self._wire.answered(email_id):
            reply = self._wire.run_in_time(
                "accept",
                email_id,
                email.kind,
                email.lane,
                email.to,
                email.to.casefold(),
                mailbox_of(email.to) if email.limited else "",
                json.dumps(payload, ensure_ascii=False),
                self._vault.seal(secrets) if secrets else "",
                _ms(send_at),
                _ms(expires_at),
                _ms(email.valid_for),
                idempotency.stored() if idempotency else "",
                _fingerprint(email, send_at, expires_at),
                _ms(self.numbers.idempotency),
                self.numbers.recipient_hourly_limit if email.limited else 0,
                int(email.supersedes),
                _ms(self.numbers.first_look),
                request_id,
                *(wake_up or ("", "")),
            )
        match reply:
            case ["accepted", _, known_id, state]:
                return Accepted(known_id, State(state))
            case ["replayed", _, known_id, state]:
                return Accepted(known_id, State(state), replayed=True)
            case ["conflict", *_]:
                raise IdempotencyConflict
            case ["limited", _, seconds]:
                raise RecipientLimited(seconds)
            case ["invalid", _, field, message]:
                raise InvalidEmail([FieldError(field, message)])
        raise OutboxUnavailable("Redis answered too late; nothing was accepted")

    def admit(self, email: AnyEmail) -> None:
        """Count an email that is sent past the outbox against the recipient's limit.

        Raises:
            RecipientLimited, OutboxUnavailable
        """
        if not email.limited:
            return
        with self._wire.answered():
            reply = self._wire.run_in_time(
                "admit",
                str(uuid.uuid4()),
                email.kind,
                mailbox_of(email.to),
                self.numbers.recipient_hourly_limit,
            )
        if reply[0] == "limited":
            raise RecipientLimited(reply[2])

    # Delivering

    def claim(self, email_id: str, token: str, worker: str, permit: str = "") -> Claim | Waits | State:
        """Ask for the right to send. A `State` means that the email has ended; `Waits` means later. `permit` names
        the connection that it will be sent over; see permits.py.

        Raises:
            UnknownEmail: no such record.
            redis.RedisError: Redis did not answer; the sweep will wake the email again.
        """
        reply = self._wire.run(
            "claim",
            email_id,
            token,
            worker,
            _ms(self.numbers.lease),
            self.lapsed_until(),
            self.numbers.death_limit,
            _ms(self.numbers.death_pause),
            permit,
            *self.numbers.limits,
        )
        match reply:
            case ["claimed", _, kind, to, payload, secret, attempts, lane, life, batch, delay, request_id]:
                valid_for = timedelta(milliseconds=int(life)) if life != "" else None
                given = (email_id, token, kind, to, Lane(lane), int(attempts), payload, secret, valid_for)
                return Claim(*given, batch, delay / 1000, request_id)
            case ["wait", _, state, seconds, reason]:
                return Waits(State(state), seconds, reason)
            case ["full", _, state, seconds, reason]:
                return Waits(State(state), seconds, reason, full=True)
            case ["done", _, state]:
                return State(state)
        raise UnknownEmail

    def open(self, claim: Claim) -> AnyEmail:
        """The email of a claim, secrets included.

        Raises:
            SecretLost: no key opens its secret.
            InvalidEmail: the record does not fit the kind any more.
            UnknownBatch, redis.RedisError: what its batch shares cannot be read.
        """
        if claim.batch:
            return self.batch_records.mailing(claim.batch).email(Recipient.restored(json.loads(claim.payload)))
        fields = json.loads(claim.payload)
        if claim.secret:
            fields |= self._vault.open(claim.secret)
        return parse({"kind": claim.kind, "to": claim.to, **fields})

    def renew(self, leases: Mapping[str, str], permits: Sequence[str] = ()) -> set[str]:
        """Extend leases of emails and chunks, given as id → token, and permits for connections. Answers with the
        ids whose lease is still ours."""
        pairs = [part for lease in leases.items() for part in lease]
        return set(self._wire.run("renew", _ms(self.numbers.lease), len(permits), *permits, *pairs)[1:])

    def release(self, permits: Sequence[str]) -> None:
        """Give permits for connections back."""
        self._wire.run("release", *permits)

    def settle(self, email_id: str, token: str, outcome: Outcome, **arguments: Any) -> Settled:
        """Write down how an attempt ended; scripts/settle.lua says what each outcome means.

        Raises:
            redis.RedisError: not written. Repeat with the same arguments.
        """
        given = {name: value for name, value in arguments.items() if value is not None}
        state, _, *rest = self._wire.run("settle", email_id, token, outcome, json.dumps(given))
        return Settled.parse(state, *rest)

    def sweep(self, lane: Lane, room: int, node: str) -> Sweep:
        """Pick at most `room` emails of a lane that are due, and note that `node` serves the lane."""
        now, held, waiting, last_wake_up, *rest = self._wire.run(
            "sweep",
            lane,
            room,
            _ms(self.numbers.first_look),
            node,
            _ms(timedelta(seconds=30)),
            *self.numbers.limits,
        )
        due = [Due(*rest[start : start + 3]) for start in range(0, len(rest), 3)]
        return Sweep(now, bool(held), waiting, last_wake_up, due)

    def probe_soon(self) -> None:
        """Let the next mail try a server that was refusing."""
        self._wire.run("probe_soon")

    def lapsed_until(self) -> int:
        """Up to which Redis time, in milliseconds, an expired lease means a dead worker; 0 if it never does now.

        After an outage of Redis, and after its clock was moved, the workers that live need one lease length to renew
        what they hold. By the time that is expected of it, a script knows a clock that has just been moved on.
        """
        lease = self.numbers.lease.total_seconds()
        return int((self._wire.now() + lease / 2) * 1000) if self._wire.in_contact_for() > lease else 0

    def clean(self, skip: int = 0, count: int = 200) -> tuple[int, int]:
        """Remove old records, at most `count`. Returns how many went, and how many old ones are still alive."""
        _, removed, kept = self._wire.run("clean", _ms(self.numbers.retention), skip, count)
        return removed, kept

    # By hand

    def cancel(self, email_id: str, reason: str = "cancelled by hand") -> Record:
        """Stop an email that has not been sent.

        Raises:
            UnknownEmail, WrongState, OutboxUnavailable
        """
        return self._by_hand(email_id, "cancel", reason, verb="cancelled")

    def drop(self, email_id: str, reason: str) -> Record:
        """Give a failed or held email up: it becomes cancelled, and is no dead letter any more.

        Raises:
            UnknownEmail, WrongState, OutboxUnavailable
        """
        return self._by_hand(email_id, "drop", reason, verb="dropped")

    def retry(self, email_id: str) -> Record:
        """Send a failed or held email again, with fresh attempts.

        Raises:
            UnknownEmail, WrongState, OutboxUnavailable
        """
        return self._by_hand(email_id, "retry", verb="retried")

    def _by_hand(self, email_id: str, script: str, *arguments: object, verb: str) -> Record:
        with self._wire.answered():
            reply = self._wire.run(script, email_id, str(uuid.uuid4()), *arguments)
        match reply:
            case ["ok", *_]:
                logger.info(f"email.{verb}", email_id=email_id, by_hand=True)
                return self.record(email_id)
            case ["state", _, state]:
                raise WrongState(f"an email that is {state} cannot be {verb}")
            case ["expired", *_]:
                raise WrongState("the email's time has run out; send a new one")
            case ["erased", *_]:
                raise WrongState("the email's secret was erased; send a new one")
            case ["cancelled", *_]:
                raise WrongState("its batch was cancelled; send a new one")
        # A recipient of a batch without a record of its own is in no state for this, or there is none.
        raise WrongState(f"an email that is {self.record(email_id).state} cannot be {verb}")

    # Reading

    def record(self, email_id: str) -> Record:
        """One email with its timeline.

        Raises:
            UnknownEmail, OutboxUnavailable
        """
        with self._wire.answered():
            record = self._listing.record(email_id)
        if record is None:
            raise UnknownEmail
        return record

    def email_of(self, record: Record) -> AnyEmail:
        """What this record's recipient reads, with a made-up link in the place of each secret.

        Raises:
            InvalidEmail: an older version of the service took it, and its kind is another by now.
            UnknownBatch, OutboxUnavailable
        """
        with self._wire.answered():
            return self._listing.email_of(record)

    def list(
        self,
        *,
        to: str | None = None,
        kind: str | None = None,
        state: State | None = None,
        batch: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page:
        """Emails newest first, accepted from `since` on and before `until`. Recipients of batches are among them when
        asked for by address, and with a record of their own by state. One call reads at most 2,000 entries: a page
        may hold fewer than `limit` emails and still have a next one.

        Raises:
            InvalidEmail: the cursor is not one of ours.
            OutboxUnavailable
        """
        with self._wire.answered():
            return self._listing.page(
                to=to, kind=kind, state=state, batch=batch, since=since, until=until, cursor=cursor, limit=limit
            )

    def info(self) -> Mapping[str, Any]:
        """Redis's own INFO; empty where its ACL forbids it.

        Raises:
            redis.RedisError: no answer.
        """
        return self._wire.info()

    def lanes(self) -> Mapping[Lane, Mapping[str, Any]]:
        """Per lane: how many emails (of bulk: chunks of batches) are due, the age in seconds of the oldest, its
        worker nodes, and what holds it back. Includes the account's own gate under each lane.

        Raises:
            redis.RedisError
        """
        found = self.measure()
        return {
            lane: {
                "due": one.due,
                "oldest_due_seconds": one.oldest_due,
                "nodes": one.nodes,
                "closed": closed._asdict() if (closed := found.closed(lane)) else None,
                "slowed": one.slowed._asdict() if one.slowed else None,
            }
            for lane, one in found.lanes.items()
        }

    def measure(self) -> Measurement:
        """Counts, lanes, limits and worker nodes at this moment.

        Raises:
            redis.RedisError
        """
        return measure(self._wire, self.numbers.limits)

    def last_hour(self) -> Sequence[Minute]:
        """How many emails came to which state, minute by minute, the oldest first.

        Raises:
            redis.RedisError
        """
        return last_hour(self._wire)

    def set_aside(self) -> Mapping[State, tuple[int, int]]:
        """How many emails are failed and held: in all, and among those accepted in the last 24 hours.

        Raises:
            redis.RedisError
        """
        day_ago = (self._redis.time()[0] - 86_400) * 1000
        found = {}
        for state in (State.FAILED, State.HELD):
            index = self._wire.key("state", state)
            found[state] = (int(self._redis.zcard(index)), int(self._redis.zcount(index, day_ago, "+inf")))
        return found

    def close(self) -> None:
        """Close the connections to Redis."""
        self._redis.close()

    def answered(self) -> AbstractContextManager[None]:
        """Around several reads of one request. Raises OutboxUnavailable."""
        return self._wire.answered()

    def refuse_when_full(self) -> None:
        """Raises OutboxUnavailable while Redis has too little memory to take more in."""
        now = time.monotonic()
        if now - self._memory_checked < 1:
            return
        if nearly_full(self._wire.info("memory")):
            raise OutboxUnavailable("Redis memory is nearly full; accepting has stopped", retry_after=30)
        self._memory_checked = now


def _ms(value: datetime | timedelta | None) -> int:
    match value:
        case None:
            return 0
        case datetime():
            return milliseconds(value)
        case timedelta():
            return int(value.total_seconds() * 1000)


def _fingerprint(email: Email, *times: datetime | None) -> str:
    content = [email.model_dump(mode="json"), *(_ms(moment) for moment in times)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

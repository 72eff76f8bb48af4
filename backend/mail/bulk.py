"""One wake-up of a chunk: claim a few recipients, send, settle, and so on until nothing is left to begin."""

import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import redis
import structlog
from structlog.contextvars import bind_contextvars, bound_contextvars

from mail.batch_records import CHUNK, Place
from mail.chunks import CLAIM, Chunk, ChunkClaim, ChunkDone, ChunkId, Chunks, ChunkWaits, Result
from mail.delivery import Delivery, Ended, NotDelivered, RetryPolicy, jitter, milliseconds_since, tell, until_written
from mail.leases import LeaseKeeper
from mail.mailing import Mailing, Recipient
from mail.permits import Permits
from mail.records import State

logger = structlog.get_logger(__name__)

AT_STAKE = 0.5
"""Seconds of sending that one claim is for: a pause takes hold sooner where the server is slow."""
TURN = 300.0
"""Seconds after which a chunk goes back: RabbitMQ cuts a consumer off that keeps a wake-up for half an hour."""
PATIENCE = 5.0
"""Seconds that a thread waits for its turn; then the chunk goes back and the sweep brings it again."""


class DeliverMany(Protocol):
    """Sends to several recipients in turn; `EmailService.deliver_many` is the one implementation."""

    def __call__(
        self, mailing: Mailing, recipients: Iterable[tuple[str, Recipient]], *, pace: Callable[[], None] | None
    ) -> Iterator[Delivery | NotDelivered]:
        """`pace` is called before each mail."""
        ...


class _ClaimLost(Exception):
    """This process was frozen, and another may have taken over."""


class _TurnOver(Exception):
    """The node is stopping, or has had this chunk for long: another may go on."""


class BulkCourier:
    """Delivers chunks. Safe to share between threads."""

    def __init__(
        self, chunks: Chunks, deliver_many: DeliverMany, leases: LeaseKeeper, permits: Permits, policy: RetryPolicy
    ) -> None:
        self._chunks = chunks
        self._deliver_many = deliver_many
        self._leases = leases
        self._permits = permits
        self._policy = policy
        self._seconds_per_mail = 0.0
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Let every thread end with what it has in hand."""
        self._stopping.set()

    def wake(self, chunk_id: str, worker: str) -> Ended:
        """Send to the recipients of a chunk that are still to be sent to, as far as it is this worker's turn.

        Raises:
            UnknownBatch: no such chunk.
            redis.RedisError: Redis did not grant the claim; the sweep wakes the chunk again.
        """
        chunk = self._chunks.open(ChunkId.parse(chunk_id))
        ended: Counter[str] = Counter()
        began = time.monotonic()
        with bound_contextvars(
            batch=chunk.id.batch, chunk=chunk.id.number, kind=chunk.mailing.kind, lane="bulk", request_id=None
        ):
            try:
                return self._send_all(chunk, worker, ended)
            finally:
                if ended:
                    logger.info("chunk.sent", **ended, ms=milliseconds_since(began))

    def _send_all(self, chunk: Chunk, worker: str, ended: Counter[str]) -> Ended:
        waited, until = 0.0, time.monotonic() + TURN
        with self._permits.permit() as permit:
            while True:
                asked_at = time.monotonic()
                claim = self._chunks.claim(chunk.id, str(uuid.uuid4()), worker, size=self._size(), permit=permit.name)
                match claim:
                    case ChunkDone():
                        return Ended(State.SENT, _summary(ended) or claim.why)
                    case ChunkWaits():
                        permit.granted &= not claim.full
                        waited += claim.seconds
                        logger.debug("chunk.waits", reason=claim.reason, next_in=claim.seconds)
                        if not claim.slot or waited > PATIENCE or self._stopping.is_set():
                            return Ended(State.QUEUED, claim.reason, int(claim.seconds) + 1)
                        self._stopping.wait(claim.seconds * jitter(0.2, 1))
                    case ChunkClaim():
                        permit.granted, waited = True, 0.0
                        bind_contextvars(request_id=claim.request_id or None)
                        with self._leases.hold(claim, asked_at):
                            ended.update(self._send(chunk, claim, worker, until))
                        if self._is_over(until):
                            return Ended(State.QUEUED, _summary(ended), 1)

    def _size(self) -> int:
        return max(1, min(CLAIM, int(AT_STAKE / max(self._seconds_per_mail, 0.001))))

    def _is_over(self, until: float) -> bool:
        return self._stopping.is_set() or time.monotonic() > until

    def _send(self, chunk: Chunk, claim: ChunkClaim, worker: str, until: float) -> Counter[str]:
        results = self._attempt(chunk, claim, worker, until)
        leave = self._is_over(until)
        settled = until_written(claim.id, lambda: self._chunks.settle(claim, worker, results, leave=leave))
        for at, outcome, arguments in results:
            facts = {"email_id": Place(chunk.id.batch, at).email_id, "to": chunk.recipients[at % CHUNK].to}
            if at in settled:
                tell(settled[at], outcome, arguments, **facts)
            elif outcome == "sent":
                logger.debug("email.sent", code=arguments["code"], reply=arguments["reply"], **facts)
        return Counter(result.outcome for result in results)

    def _attempt(self, chunk: Chunk, claim: ChunkClaim, worker: str, until: float) -> list[Result]:
        """Sends to each recipient of the claim, until one mail is not taken, the turn is over, or the claim is no
        longer ours.

        The rest is released, and claimed anew if all is well: what was not sent is written down before the next mail
        begins, so that a crash leaves in doubt only what was in SMTP.
        """
        results: list[Result] = []
        slot = time.monotonic() + claim.delay
        began = slot

        def pace() -> None:
            nonlocal slot, began
            self._stopping.wait(max(0.0, slot - time.monotonic()))
            if self._is_over(until):
                raise _TurnOver
            position, before = claim.positions[len(results)], results[-1] if results else None
            if not self._leases.may_begin(claim) or not self._chunks.mark(claim, position, worker, before):
                raise _ClaimLost
            began = time.monotonic()
            slot = max(slot, began - claim.gap) + claim.gap

        error = "this worker was stopped or frozen, or lost Redis, before it could begin"
        mails = self._deliver_many(chunk.mailing, chunk.mails(claim.positions), pace=pace)
        try:
            for position, done in zip(claim.positions, mails, strict=False):
                self._seconds_per_mail += 0.2 * (time.monotonic() - began - self._seconds_per_mail)
                results.append(self._result(position, done))
                if isinstance(done, NotDelivered):
                    error = str(done.error)
                    if results[-1].outcome == "release":
                        logger.info("email.released", email_id=done.id, to=done.to, error=error)
                    break
        except _TurnOver:
            pass
        except (_ClaimLost, redis.RedisError) as lost:
            logger.warning("lease.lost", error=type(lost).__name__, mails=len(claim.positions) - len(results))
        return [*results, *(Result(at, "release", {"error": error}) for at in claim.positions[len(results) :])]

    def _result(self, position: int, done: Delivery | NotDelivered) -> Result:
        if isinstance(done, Delivery):
            return Result(position, "sent", {"code": done.smtp_code, "reply": done.smtp_reply})
        return Result(position, *self._policy.settlement(done.error, 0))


def _summary(ended: Counter[str]) -> str:
    return ", ".join(f"{count} {outcome}" for outcome, count in sorted(ended.items()))

"""The worker's side of a batch: claims of a few recipients of a chunk at a time, settled together."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mail.answers import Outcome, Settled
from mail.batch_records import CHUNK, Place
from mail.errors import UnknownBatch
from mail.mailing import Mailing, Recipient
from mail.outbox import Outbox

CLAIM = 10
"""At most so many recipients in one claim: what a pause lets through."""


class ChunkId(NamedTuple):
    """A hundred recipients of a batch; written `batch-…:7`."""

    batch: str
    number: int

    @classmethod
    def parse(cls, text: str) -> "ChunkId":
        """Raises UnknownBatch when it is not one."""
        batch, colon, number = text.rpartition(":")
        if not colon or not number.isdecimal():
            raise UnknownBatch
        return cls(batch, int(number))

    def __str__(self) -> str:
        return f"{self.batch}:{self.number}"


class ChunkClaim(NamedTuple):
    """The right to send to some recipients of a chunk. `id` and `token` are those of its lease.

    `delay`: seconds until the first mail may go; `gap`: seconds between two. `request_id`: of the call that brought
    the batch.
    """

    id: str
    token: str
    positions: Sequence[int]
    delay: float
    gap: float
    request_id: str


class ChunkWaits(NamedTuple):
    """Not now; there may be more to do in `seconds`. `slot`: because of the pace, so it is worth waiting for.
    `full`: because every connection is in use, the caller's permit is void."""

    seconds: float
    reason: str
    slot: bool = False
    full: bool = False


class ChunkDone(NamedTuple):
    """Nothing is left to begin in this chunk: finished, cancelled or expired."""

    why: str


class Result(NamedTuple):
    """How the mail to one position ended; scripts/settle.lua says what each outcome means."""

    position: int
    outcome: Outcome
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Chunk:
    """What is needed to send a chunk: the shared mailing and its recipients. Neither ever changes."""

    id: ChunkId
    mailing: Mailing
    recipients: Sequence[Recipient]

    def mails(self, positions: Sequence[int]) -> list[tuple[str, Recipient]]:
        """Email id and recipient of each position."""
        return [(Place(self.id.batch, at).email_id, self.recipients[at % CHUNK]) for at in positions]


class Chunks:
    """Grants and settles. Safe to share between threads."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._wire = outbox.wire
        self._records = outbox.batch_records

    def open(self, chunk: ChunkId) -> Chunk:
        """Read a chunk.

        Raises:
            UnknownBatch, redis.RedisError
        """
        return Chunk(chunk, self._records.mailing(chunk.batch), self._records.content(*chunk))

    def claim(
        self, chunk: ChunkId, token: str, worker: str, *, size: int = CLAIM, permit: str = ""
    ) -> ChunkClaim | ChunkWaits | ChunkDone:
        """Ask for the next recipients, at most `size`.

        Raises:
            UnknownBatch
            redis.RedisError: no answer; the sweep wakes the chunk again.
        """
        numbers = self._outbox.numbers
        reply = self._wire.run(
            "claim_chunk",
            *chunk,
            token,
            worker,
            int(numbers.lease.total_seconds() * 1000),
            self._outbox.lapsed_until(),
            size,
            permit,
            *numbers.limits,
        )
        match reply:
            case ["claimed", _, delay, gap, request_id, *positions]:
                return ChunkClaim(str(chunk), token, positions, delay / 1000, gap / 1000, request_id)
            case ["wait", _, milliseconds, reason]:
                return ChunkWaits(milliseconds / 1000, reason)
            case ["full", _, milliseconds, reason]:
                return ChunkWaits(milliseconds / 1000, reason, full=True)
            case ["slot", _, milliseconds, reason]:
                return ChunkWaits(milliseconds / 1000, reason, slot=True)
            case ["done", _, why]:
                return ChunkDone(why)
        raise UnknownBatch

    def mark(self, claim: ChunkClaim, position: int, worker: str, before: "Result | None") -> bool:
        """Say that the mail to `position` begins, and that the one `before` was sent. False: it must not begin,
        another worker has taken over.

        Raises:
            redis.RedisError: not written; the mail must not begin.
        """
        sent: tuple[object, ...] = ("", "", "")
        if before is not None:
            sent = (before.position, before.arguments["code"], before.arguments["reply"])
        chunk = ChunkId.parse(claim.id)
        return bool(self._wire.run("chunk_mark", *chunk, claim.token, position, worker, *sent)[1])

    def settle(
        self, claim: ChunkClaim, worker: str, results: Sequence[Result], *, leave: bool
    ) -> Mapping[int, Settled]:
        """Write down how the mails of a claim ended. `leave`: this worker does not come back, another may go on.
        Answers with how those stand that were tried and not sent, by position.

        Raises:
            redis.RedisError: not written. Repeat with the same arguments.
        """
        chunk = ChunkId.parse(claim.id)
        given = [
            (at, outcome, {name: value for name, value in arguments.items() if value is not None})
            for at, outcome, arguments in results
        ]
        reply = self._wire.run("settle_chunk", *chunk, claim.token, worker, json.dumps(given), int(leave))
        settled = zip(reply[2::3], reply[3::3], reply[4::3], strict=True)
        return {position: Settled.parse(state, seconds) for position, state, seconds in settled}

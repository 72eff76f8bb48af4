"""What the outbox is asked with and what it answers: the types that pass between it and its callers."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, NamedTuple

from mail.kinds import Lane
from mail.records import Record, State

Outcome = Literal["sent", "failed", "retry", "release"]


@dataclass(frozen=True)
class Numbers:
    """The outbox's periods and limits."""

    lease: timedelta = timedelta(seconds=20)
    first_look: timedelta = timedelta(seconds=10)
    answer_within: timedelta = timedelta(seconds=1)
    idempotency: timedelta = timedelta(hours=24)
    retention: timedelta = timedelta(days=30)
    recipient_hourly_limit: int = 5
    death_limit: int = 5
    death_pause: timedelta = timedelta(seconds=10)
    batch_patience: timedelta = timedelta(minutes=10)
    max_per_second: float = 0
    max_per_day: int = 0
    max_connections: int = 0

    @property
    def limits(self) -> tuple[float, int, int]:
        """The SMTP account's limits, over all processes and machines; 0 for none."""
        return self.max_per_second, self.max_per_day, self.max_connections


class Idempotency(NamedTuple):
    """Who repeats and what they call it: keys of different callers never meet."""

    scope: str
    key: str

    def stored(self) -> str:
        """The name under which Redis keeps it."""
        return f"{self.scope}:{hashlib.sha256(self.key.encode()).hexdigest()}"


class Accepted(NamedTuple):
    """The answer to accepting: `replayed` when an earlier call with the same idempotency key took it in."""

    id: str
    state: State
    replayed: bool = False


class Claim(NamedTuple):
    """The right to send one email, for as long as its lease is renewed. `valid_for`: from accepting to its end.
    `delay`: seconds to wait before it is sent. `request_id`: of the call that brought it."""

    id: str
    token: str
    kind: str
    to: str
    lane: Lane
    attempts: int
    payload: str
    secret: str
    valid_for: timedelta | None
    batch: str = ""
    delay: float = 0.0
    request_id: str = ""


class Waits(NamedTuple):
    """Not now; look again in `seconds`. `full`: because every connection is in use, the caller's permit is void."""

    state: State
    seconds: int
    reason: str
    full: bool = False


class Settled(NamedTuple):
    """How the email stands after an attempt. `stale` when another worker owned it by then."""

    state: State | None
    seconds: int = 0
    stale: bool = False

    @classmethod
    def parse(cls, word: str, seconds: int = 0) -> "Settled":
        """Read the answer of scripts/settle.lua."""
        return cls(None, stale=True) if word in ("stale", "unknown") else cls(State(word), seconds)


class Due(NamedTuple):
    """One email that someone must look at now."""

    id: str
    kind: str
    to: str


class Sweep(NamedTuple):
    """What a look at one lane found. Times are Redis milliseconds."""

    now: int
    held: bool
    waiting: int
    last_wake_up: int
    due: Sequence[Due]


class Page(NamedTuple):
    """Some emails, newest first, and the cursor of the next page."""

    items: Sequence[Record]
    next: str | None

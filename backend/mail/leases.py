"""Keeps the leases of this process alive while it works, and only while it lives."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import redis
import structlog

from mail.outbox import Outbox
from mail.permits import Permits

logger = structlog.get_logger(__name__)


class Leased(Protocol):
    """What a lease is for: an email or part of a chunk."""

    @property
    def id(self) -> str: ...

    @property
    def token(self) -> str: ...


@dataclass
class _Held:
    token: str
    until: float
    began: float


class LeaseKeeper:
    """Renews every lease this process holds, four times per lease length, from one daemon thread; and its permits
    for connections.

    SMTP may take minutes that way, while the mails of a killed process are free within one lease length.
    """

    def __init__(self, outbox: Outbox, permits: Permits) -> None:
        self._outbox = outbox
        self._permits = permits
        self._length = outbox.numbers.lease.total_seconds()
        self._held: dict[str, _Held] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    @contextmanager
    def hold(self, claim: Leased, granted_at: float) -> Iterator[None]:
        """Keep the lease of `claim` alive inside the block. `granted_at`: monotonic time before it was asked for."""
        with self._lock:
            self._held[claim.id] = _Held(claim.token, granted_at + self._length, time.monotonic())
            if self._thread is None:
                self._thread = threading.Thread(target=self._renew_forever, name="leases", daemon=True)
                self._thread.start()
        self._wake.set()
        try:
            yield
        finally:
            with self._lock:
                self._held.pop(claim.id, None)

    def may_begin(self, claim: Leased) -> bool:
        """Whether the lease is certain to last, by this process's own clock, so that a mail may go to SMTP now.

        A process that was frozen (SIGSTOP, a paused VM) wakes up with leases that others may have taken over.
        """
        now = time.monotonic()
        with self._lock:
            held = self._held.get(claim.id)
            if held is None or held.token != claim.token or now >= held.until:
                return False
            held.began = now
            return True

    @property
    def in_hand(self) -> list[str]:
        """The emails, and chunks of batches, that this process has in hand: one for each thread that sends."""
        with self._lock:
            return [*self._held]

    def sending_for(self, seconds: float) -> list[str]:
        """Those whose mail began longer ago than that and has not ended."""
        began = time.monotonic() - seconds
        with self._lock:
            return [id_ for id_, held in self._held.items() if held.began < began]

    def _renew_forever(self) -> None:
        while True:
            self._wake.clear()  # before the look: what is held from now on sets it again
            if not self._held and not self._permits.held():
                self._wake.wait()
            self._wait(self._length / 4)
            with self._lock:
                tokens = {email_id: held.token for email_id, held in self._held.items()}
            if tokens or self._permits.held():
                self._renew(tokens)

    def _wait(self, seconds: float) -> None:
        """Until it is time to renew; permits that nobody uses go back meanwhile."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 0.5) if self._permits.limited else left)
            if old := self._permits.lapse():
                try:
                    self._outbox.release(old)
                except redis.RedisError as error:
                    logger.warning("permits.not_returned", permits=len(old), error=type(error).__name__)

    def _renew(self, tokens: dict[str, str]) -> None:
        asked_at = time.monotonic()
        try:
            kept = self._outbox.renew(tokens, self._permits.held())
        except redis.RedisError as error:
            logger.warning("leases.not_renewed", leases=len(tokens), error=type(error).__name__)
            return
        with self._lock:
            for email_id in kept:
                held = self._held.get(email_id)
                if held is not None and held.token == tokens[email_id]:
                    held.until = asked_at + self._length

"""Keeps the leases of this process alive while it works, and only while it lives."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import redis

from mail.outbox import Claim, Outbox

logger = logging.getLogger(__name__)


class LeaseKeeper:
    """Renews every lease this process holds, four times per lease length, from one daemon thread.

    SMTP may take minutes that way, while the mails of a killed process are free within one lease length.
    """

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._length = outbox.numbers.lease.total_seconds()
        self._held: dict[str, tuple[str, float]] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    @contextmanager
    def hold(self, claim: Claim, granted_at: float) -> Iterator[None]:
        """Keep the lease of `claim` alive inside the block. `granted_at`: monotonic time before it was asked for."""
        with self._lock:
            self._held[claim.id] = (claim.token, granted_at + self._length)
            if self._thread is None:
                self._thread = threading.Thread(target=self._renew_forever, name="leases", daemon=True)
                self._thread.start()
        self._wake.set()
        try:
            yield
        finally:
            with self._lock:
                self._held.pop(claim.id, None)

    def still_ours(self, claim: Claim) -> bool:
        """Whether the lease is certain to last, by this process's own clock.

        A process that was frozen (SIGSTOP, a paused VM) wakes up with leases that others may have taken over.
        """
        with self._lock:
            token, until = self._held.get(claim.id, ("", 0.0))
        return token == claim.token and time.monotonic() < until

    @property
    def count(self) -> int:
        """How many mails this process has in hand."""
        return len(self._held)

    def _renew_forever(self) -> None:
        while True:
            if not self._held:
                self._wake.clear()
                self._wake.wait()
            time.sleep(self._length / 4)
            with self._lock:
                tokens = {email_id: token for email_id, (token, _) in self._held.items()}
            if tokens:
                self._renew(tokens)

    def _renew(self, tokens: dict[str, str]) -> None:
        asked_at = time.monotonic()
        try:
            kept = self._outbox.renew(tokens)
        except redis.RedisError as error:
            logger.warning("leases not renewed, will try again: %s", type(error).__name__)
            return
        with self._lock:
            for email_id in kept:
                if self._held.get(email_id, ("",))[0] == tokens[email_id]:
                    self._held[email_id] = (tokens[email_id], asked_at + self._length)

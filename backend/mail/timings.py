"""How long the SMTP server takes for a mail, counted in this process."""

import threading
import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from typing import NamedTuple

from mail.errors import DeliveryError, PermanentError

BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""Seconds. The last is what SMTP_DATA_TIMEOUT allows by default."""


class Answer(StrEnum):
    """What the SMTP server said to a mail."""

    TAKEN = "taken"  # 250 to the final dot
    REFUSED = "refused"  # a code that means no, now or for good
    NONE = "none"  # unreachable, cut, or silent


class Histogram(NamedTuple):
    """Seconds that mails took: how many fell into each bucket (`BOUNDS`, then above the last), and their sum."""

    buckets: list[int]
    total: float


class Timings:
    """A histogram per answer, since the process began. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._buckets = {answer: [0] * (len(BOUNDS) + 1) for answer in Answer}
        self._totals = dict.fromkeys(Answer, 0.0)
        self.running = 0
        """Mails that are with the server now."""

    @contextmanager
    def mail(self) -> Iterator[None]:
        """Around the sending of one mail."""
        began = time.monotonic()
        with self._lock:
            self.running += 1
        answer = Answer.NONE
        try:
            yield
            answer = Answer.TAKEN
        except DeliveryError as error:
            if isinstance(error, PermanentError) or error.code is not None:
                answer = Answer.REFUSED
            raise
        finally:
            seconds = time.monotonic() - began
            with self._lock:
                self.running -= 1
                self._buckets[answer][bisect_left(BOUNDS, seconds)] += 1
                self._totals[answer] += seconds

    def histograms(self) -> Mapping[Answer, Histogram]:
        """As they are now."""
        with self._lock:
            return {answer: Histogram(self._buckets[answer].copy(), self._totals[answer]) for answer in Answer}

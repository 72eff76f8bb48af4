"""How often somebody may call: token buckets in the memory of one process."""

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

MOST_NAMES = 10_000


class Allowance(NamedTuple):
    """What a bucket answered: whether a call may go on, how many more may follow at once, and the seconds until the
    next one may (0 when it may now)."""

    granted: bool
    remaining: int
    retry_after: int


class Rate:
    """So many calls a minute for each name, all of them at once if need be. Safe to share between threads.

    Of more names than `MOST_NAMES` the longest unseen is forgotten: ever new ones fill no memory.

    Args:
        per_minute: the size of a bucket, and how much of it comes back in a minute.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, when

    def take(self, name: str) -> Allowance:
        """Count one call."""
        now = self._clock()
        with self._lock:
            tokens, since = self._buckets.get(name, (float(self.per_minute), now))
            tokens = min(self.per_minute, tokens + (now - since) * self.per_minute / 60)
            granted = tokens >= 1
            self._buckets[name] = (tokens - granted, now)
            self._buckets.move_to_end(name)
            if len(self._buckets) > MOST_NAMES:
                self._buckets.popitem(last=False)
        retry_after = 0 if granted else math.ceil((1 - tokens) * 60 / self.per_minute)
        return Allowance(granted, int(tokens - granted), retry_after)

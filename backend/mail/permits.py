"""Permits for connections to the SMTP server, where SMTP_MAX_CONNECTIONS limits them over all processes.

A permit is a name in Redis that lapses unless renewed. A process holds one for each mail it is sending, and keeps
those of idle connections for a moment, because a connection is worth many round trips.
"""

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LINGER = 1.0  # seconds that an idle connection may keep others out


class Permit:
    """The name under which a connection is asked for. Who asks notes in `granted` whether it is theirs."""

    def __init__(self, name: str, *, granted: bool) -> None:
        self.name = name
        self.granted = granted


class Permits:
    """The permits of this process. Safe to share between threads.

    Args:
        limited: without a limit there is nothing to hold.
        trim: closes idle connections but for so many.
    """

    def __init__(self, *, limited: bool, trim: Callable[[int], None]) -> None:
        self.limited = limited
        self._trim = trim
        self._lock = threading.Lock()
        self._used: set[str] = set()
        self._idle: dict[str, float] = {}

    @contextmanager
    def permit(self) -> Iterator[Permit]:
        """A permit for one mail or one chunk: one that lingers, or a new name to ask with."""
        if not self.limited:
            yield Permit("", granted=False)
            return
        with self._lock:
            lingering = next(reversed(self._idle), None)
            name = lingering or str(uuid.uuid4())
            self._idle.pop(name, None)
            self._used.add(name)
        permit = Permit(name, granted=lingering is not None)
        try:
            yield permit
        finally:
            with self._lock:
                self._used.discard(name)
                if permit.granted:
                    self._idle[name] = time.monotonic()
            if not permit.granted:
                self._trim(self.idle)

    @property
    def idle(self) -> int:
        return len(self._idle)

    def held(self) -> list[str]:
        """Every name that is to be renewed."""
        with self._lock:
            return [*self._used, *self._idle]

    def lapse(self) -> list[str]:
        """The permits that have lingered long enough, to be given back; their connections are closed."""
        now = time.monotonic()
        with self._lock:
            old = [name for name, since in self._idle.items() if now - since > LINGER]
            for name in old:
                del self._idle[name]
        if old:
            self._trim(self.idle)
        return old

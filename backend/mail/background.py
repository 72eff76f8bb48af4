"""What goes round in a thread of its own beside the work: the sweep, the watchdog, the alerts."""

import threading
from abc import ABC, abstractmethod
from typing import ClassVar


class Background(ABC):
    """A daemon thread that runs until it is told to end. Subclasses give `name`, and look at `_stop`."""

    name: ClassVar[str]
    waited_for: ClassVar[float] = 5.0  # seconds

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def end_soon(self) -> None:
        """End after this round. Waits for nothing, so that a signal handler may call it."""
        self._stop.set()

    def stop(self) -> None:
        """End, and wait for the last round, but no longer than `waited_for`."""
        self._stop.set()
        self._thread.join(timeout=self.waited_for)

    @abstractmethod
    def _run(self) -> None: ...

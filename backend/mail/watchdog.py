"""Notices that a worker node has stopped working without ending, so that it is ended and started anew."""

import faulthandler
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from mail.background import Background
from mail.kinds import Lane
from mail.leases import LeaseKeeper

SLOWEST_STEP = 30.0  # seconds that the sweep may need for one call, with Redis frozen and a slow DNS
LAST_RESORT = 10  # times `patience`, because it cannot tell a stuck process from one that was frozen
STDERR = 2  # sys.stderr is Celery's log in a worker, which has no file descriptor


class Look(NamedTuple):
    """What the sweep saw of a lane: how many wake-ups wait in the broker, and when a worker was last woken for it, in
    Redis milliseconds."""

    backlog: int
    last_wake_up: int


class Watchdog(Background):
    """Calls `end` with the reason when this node stands still. Each part is watched from another:

    - the consumer, by the sweep: wake-ups of a lane wait in the broker, a thread is free, and no worker anywhere was
      woken for the lane for `patience` seconds. Wake-ups travel whatever may hold the mail back, so no pause, gate or
      limit looks like this;
    - the threads, by the sweep: a mail has been in SMTP for longer than `longest`, which no conversation lasts;
    - the sweep, by a thread of the watchdog's own: its calls do not come back;
    - that thread, by one that needs no interpreter (faulthandler): code in C that does not release the interpreter's
      lock stops all others. Exit code 1, after ten times `patience`.

    But for the last, time in which the process was frozen does not count.

    Args:
        lanes: those of this node, the one that its consumer prefers first.
        threads: how many mails this node sends at the same time.
        patience: seconds.
        longest: seconds from the beginning of a mail in SMTP to its end.
        end: ends the process, and does not return.
    """

    name = "watchdog"

    def __init__(
        self,
        leases: LeaseKeeper,
        *,
        lanes: Sequence[Lane],
        threads: int,
        patience: float,
        longest: float,
        end: Callable[[str], None],
    ) -> None:
        super().__init__()
        self._leases = leases
        self._lanes = lanes
        self._threads = threads
        self._patience = patience
        self._longest = longest
        self._end = end
        self._tick = min(1.0, patience / 8)
        self._clock = 0.0  # seconds in which this process was awake
        self._stepped_at = 0.0
        self._cut_off_at = 0.0
        self._seen: Mapping[Lane, Look] = {}
        self._silent_since: dict[Lane, float] = {}

    def stepped(self) -> None:
        """A call of the sweep came back."""
        self._stepped_at = self._clock

    def looked(self, looks: Mapping[Lane, Look]) -> None:
        """Judge what the sweep saw in one round. A lane is missing if Redis or the broker did not answer."""
        now, behind = self._clock, False
        if len(looks) < len(self._lanes):
            self._cut_off_at = now
        for lane in self._lanes:
            if lane not in looks or behind or not self._is_silent(looks[lane], self._seen.get(lane)):
                self._silent_since[lane] = now
            # Whose consumer is busy with a lane that it prefers is not deaf to the next.
            behind = behind or lane not in looks or looks[lane].backlog > 0
        self._seen = looks
        for lane, since in self._silent_since.items():
            if now - since > self._patience:
                self._bark(f"wake-ups wait in lane {lane}, and none has come for {now - since:.0f} s")
        # A mail that has ended stays in hand until Redis has its outcome.
        if now - self._cut_off_at > self._patience and (stuck := self._leases.sending_for(self._longest)):
            self._bark(f"in SMTP for more than {self._longest:.0f} s: {', '.join(stuck)}")

    def _is_silent(self, look: Look, before: Look | None) -> bool:
        return (
            before is not None
            and look.backlog > 0
            and look.last_wake_up == before.last_wake_up
            and len(self._leases.in_hand) < self._threads
        )

    def _run(self) -> None:
        while not self._stop.wait(self._tick):
            self._clock += self._tick
            faulthandler.dump_traceback_later(LAST_RESORT * self._patience, exit=True, file=STDERR)
            silent = self._clock - self._stepped_at
            if silent > max(self._patience, SLOWEST_STEP):
                self._bark(f"the sweep has not come round for {silent:.0f} s")
        faulthandler.cancel_dump_traceback_later()

    def _bark(self, reason: str) -> None:
        if not self._stop.is_set():
            self._stop.set()
            self._end(reason)

"""Looks after what is due: lost wake-ups, killed workers, scheduled mail, retries. One daemon thread per node."""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import redis
import structlog

from mail.answers import Due
from mail.background import Background
from mail.batches import Batches
from mail.kinds import Lane
from mail.outbox import Outbox
from mail.watchdog import Look, Watchdog

logger = structlog.get_logger(__name__)

BUSY_TICK = 0.05
REPORT_EVERY = 5.0
CLEAN_EVERY = 60.0


class WakeUps(Protocol):
    """The way to a worker. Carries ids only."""

    def publish(self, lane: Lane, due: Due) -> bool:
        """Wake a worker up for one email; False when the broker did not take it."""
        ...

    def backlog(self, lane: Lane) -> int:
        """How many wake-ups of this lane wait for a worker. Raises ConnectionError."""
        ...


class Sweeper(Background):
    """Publishes a wake-up for whatever is due, but never more than the lane can take; removes old records.

    What it sees of its lanes it tells the node's watchdog.
    """

    name = "sweeper"

    def __init__(
        self,
        outbox: Outbox,
        batches: Batches,
        wake_ups: WakeUps,
        watchdog: Watchdog,
        *,
        lanes: Sequence[Lane],
        node: str,
        room: int,
        report: Callable[[], None],
    ) -> None:
        super().__init__()
        self._outbox = outbox
        self._batches = batches
        self._wake_ups = wake_ups
        self._watchdog = watchdog
        self._lanes = lanes
        self._node = node
        self._room = room
        self._report = report
        # Often enough for the outbox to know that Redis was there all the time; see Outbox.lapsed_until.
        self._tick = min(1.0, outbox.numbers.lease.total_seconds() / 8)
        self._looks: dict[Lane, Look] = {}
        self._failing: set[tuple[str | None, ...]] = set()
        self._skip = 0
        self._cleaned_at = time.monotonic()
        self._reported_at = float("-inf")

    def stop(self) -> None:
        """End, wait for the last round, and report what came of the mails since."""
        super().stop()
        self._outbox_call(self._report)

    def _run(self) -> None:
        self._outbox_call(self._outbox.probe_soon)
        pause = 0.0
        while not self._stop.wait(pause):
            self._looks.clear()
            more = [self._outbox_call(self._sweep, lane) for lane in self._lanes]
            self._watchdog.looked(dict(self._looks))
            pause = BUSY_TICK if any(more) else self._tick
            if Lane.BULK in self._lanes:
                self._outbox_call(self._batches.tend)
            if time.monotonic() - self._cleaned_at > CLEAN_EVERY:
                self._outbox_call(self._clean)
            if time.monotonic() - self._reported_at > REPORT_EVERY:
                self._reported_at = time.monotonic()
                self._outbox_call(self._report)

    def _outbox_call(self, call: Callable[..., bool | None], *args: Lane) -> bool:
        step = {"step": call.__name__, "lane": next(iter(args), None)}
        place = tuple(step.values())
        try:
            answer = bool(call(*args))
        except (redis.RedisError, ConnectionError) as error:
            # An outage is one event, however often the sweep runs into it.
            log = logger.debug if place in self._failing else logger.warning
            log("sweep.failing", error=str(error) or type(error).__name__, **step)
            self._failing.add(place)
        except Exception:
            # This thread is the last line of defence: it must outlive a bug.
            logger.exception("sweep.broken", **step)
        else:
            if place in self._failing:
                self._failing.discard(place)
                logger.info("sweep.recovered", **step)
            return answer
        finally:
            self._watchdog.stepped()
        return False

    def _sweep(self, lane: Lane) -> bool:
        """One look at a lane. Returns whether there may be more to publish at once."""
        try:
            backlog = self._wake_ups.backlog(lane)
        except ConnectionError:
            # Nothing can be published, but this node is there, and what has expired must end.
            self._outbox.sweep(lane, 0, self._node)
            raise
        room = max(0, self._room - backlog)
        found = self._outbox.sweep(lane, room, self._node)
        published = [self._wake_ups.publish(lane, due) for due in found.due]
        if found.due:
            logger.debug("sweep.published", lane=lane.value, wake_ups=sum(published))
        if not all(published):
            raise ConnectionError("the broker does not take wake-ups")
        self._looks[lane] = Look(backlog, found.last_wake_up)
        return room > 0 and len(found.due) == room

    def _clean(self) -> None:
        removed, kept = self._outbox.clean(self._skip)
        # Old emails that are still alive stay at the head of the index; step over them next time.
        self._skip = self._skip + kept if removed + kept else 0
        erased = self._batches.clean()
        if not removed and not erased:
            self._cleaned_at = time.monotonic()

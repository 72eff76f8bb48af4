"""Alerts: what has changed for the worse, or back, since somebody was last told.

What was told, and what is still to be delivered, is in Redis: one alert per change over all processes, and none is
lost with a process. An alert holds counts and words of ours, nothing of any email. docs/monitoring.md has the format.
"""

import json
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple, Protocol, cast

import redis
import structlog

from mail.background import Background
from mail.delivery import jitter
from mail.kinds import Lane
from mail.measures import DROPPED, Measurement
from mail.outbox import Outbox
from mail.records import State

logger = structlog.get_logger(__name__)

LOOK_EVERY = 5.0  # seconds
LEASE = timedelta(seconds=60)
"""How long one process may take to send an alert before another does; more than a `Post` takes."""
MAX_PENDING = 50
FIRST_PAUSE = 5.0
LONGEST_PAUSE = 600.0

ADVICE = {
    "no_worker": "No worker node serves this lane: run ./start_celery.sh, or look why its nodes have ended.",
    "no_progress": "Its worker nodes live and take no mail: look at their log, and restart them.",
    "smtp": "The SMTP server does not take mail: GET /health/ready says why, python test_smtp.py finds the step.",
}
"""Why a lane stands still, and the way out."""


class NotPosted(Exception):
    """The receiver has not taken an alert. The text says why, without its address."""


class Post(Protocol):
    """The way to the receiver; utils/webhook.py has the one implementation."""

    def __call__(self, message_id: str, body: str) -> None:
        """Raises NotPosted."""
        ...


@dataclass(frozen=True)
class Thresholds:
    """When somebody is told. `dead_letters`: so many more failed or held emails, at most once per `interval`.
    `lane_still`: a lane with due mail stands still for so long."""

    dead_letters: int = 1
    interval: timedelta = timedelta(seconds=60)
    lane_still: timedelta = timedelta(minutes=5)


class Alert(NamedTuple):
    """One change: `dead_letters.grown`, `lane.stopped`, `lane.moving`."""

    type: str
    data: Mapping[str, Any]

    def body(self, at: datetime) -> str:
        """As JSON, in the form that https://www.standardwebhooks.com recommends."""
        return json.dumps({"type": self.type, "timestamp": at.isoformat(), "data": self.data})


class Told(NamedTuple):
    """What was told so far: dead letters by `(state, kind, lane, cause)`, when, and which lanes stand still."""

    dead: Mapping[tuple[str, ...], int]
    at: datetime | None
    still: frozenset[str]

    @classmethod
    def parse(cls, stored: str | None) -> "Told":
        found = json.loads(stored) if stored else {"dead": [], "at": None, "still": []}
        at = datetime.fromisoformat(found["at"]) if found["at"] else None
        return cls({tuple(key): count for key, count in found["dead"]}, at, frozenset(found["still"]))

    def stored(self) -> str:
        at = self.at.isoformat() if self.at else None
        return json.dumps({"dead": [*self.dead.items()], "at": at, "still": sorted(self.still)})


def news(found: Measurement, told: Told, thresholds: Thresholds) -> tuple[Alert, Told] | None:
    """The first change that somebody must be told of, and what has been told then. None where there is none."""
    for lane in Lane:
        stopped = _stopped(found, lane, thresholds.lane_still)
        if stopped and lane not in told.still:
            return Alert("lane.stopped", stopped), told._replace(still=told.still | {lane})
        if not stopped and lane in told.still:
            return Alert("lane.moving", {"lane": lane}), told._replace(still=told.still - {lane})
    # While an older alert waits for its receiver, dead letters gather for one to come.
    early = told.at is not None and found.at - told.at < thresholds.interval
    if early or found.alerts_pending:
        return None
    dead: Counter[tuple[str, ...]] = Counter()
    for move in found.moves:
        if move.after in (State.FAILED, State.HELD) and move.cause != DROPPED:
            dead[move.after, move.kind, move.lane, move.cause or ""] += move.number
    grown = dead - Counter(told.dead)
    if grown.total() < thresholds.dead_letters:
        return None
    return Alert("dead_letters.grown", _grown(grown, told.at)), told._replace(dead=dead, at=found.at)


def _stopped(found: Measurement, lane: Lane, limit: timedelta) -> Mapping[str, Any] | None:
    """Why and since when a lane stands still, if it does; pause, throttle and idling are no reason."""
    one, closed = found.lanes[lane], found.closed(lane)
    if one.still >= limit.total_seconds():
        reason, since = "no_progress" if one.nodes else "no_worker", found.at - timedelta(seconds=one.still)
    elif closed and one.due and found.at - closed.since >= limit:
        reason, since = "smtp", closed.since
    else:
        return None
    return {"lane": lane, "reason": reason, "since": since.isoformat(), "due": one.due, "advice": ADVICE[reason]}


def _grown(grown: Mapping[tuple[str, ...], int], since: datetime | None) -> Mapping[str, Any]:
    return {
        "count": sum(grown.values()),
        "since": since.isoformat() if since else None,
        "groups": [
            {"state": state, "kind": kind, "lane": lane, "cause": cause, "count": count}
            for (state, kind, lane, cause), count in sorted(grown.items())
        ],
        "look": [f"/api/emails?state={state}" for state in sorted({state for state, *_ in grown})],
    }


class Alerter(Background):
    """Looks for changes and tells the receiver, in a thread of its own: one that hangs holds nothing else up.

    Any number of processes may run one.
    """

    name = "alerts"
    waited_for = 1.0  # whoever waits for the receiver is left: another process sends the same alert later

    def __init__(self, outbox: Outbox, post: Post, thresholds: Thresholds) -> None:
        super().__init__()
        self._outbox = outbox
        self._wire = outbox.wire
        self._post = post
        self._thresholds = thresholds

    def _run(self) -> None:
        while not self._stop.wait(LOOK_EVERY * jitter(0.8, 1.2)):
            try:
                while not self._stop.is_set() and (self.look() or self.deliver()):
                    pass
            except redis.RedisError as error:
                logger.warning("alerts.redis_away", error=type(error).__name__)
            except Exception:
                logger.exception("alerts.failed")

    def look(self) -> bool:
        """Queue an alert if there is news; whether there was, and may be more.

        Raises:
            redis.RedisError
        """
        # Before measuring: what somebody else tells meanwhile must make ours void.
        kept = self._wire.client.hmget(self._wire.key("alerts"), "version", "told")
        version, told = cast("list[str | None]", kept)
        found = self._outbox.measure()
        changed = news(found, Told.parse(told), self._thresholds)
        if changed is None or found.alerts_pending >= MAX_PENDING:
            return False
        alert, told_now = changed
        message_id = f"msg_{uuid.uuid4().hex}"
        raised = self._wire.run("alert_raise", version or "0", told_now.stored(), message_id, alert.body(found.at))
        if raised[1]:
            logger.warning("alert.raised", type=alert.type, message=message_id, **_plain(alert.data))
        return True

    def deliver(self) -> bool:
        """Send the oldest alert that waits, if it is time and nobody else does; whether it has arrived.

        Raises:
            redis.RedisError
        """
        token = uuid.uuid4().hex
        match self._wire.run("alert_take", token, int(LEASE.total_seconds() * 1000)):
            case [_, message_id, body, tries]:
                return self._send(token, message_id, body, tries)
        return False

    def _send(self, token: str, message_id: str, body: str, tries: int) -> bool:
        try:
            self._post(message_id, body)
        except NotPosted as error:
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(tries, 20))
            logger.warning("webhook.failed", message=message_id, tries=tries + 1, pause=pause, error=str(error))
            self._wire.run("alert_settle", token, message_id, int(1000 * pause * jitter(0.8, 1.2)))
            return False
        logger.info("webhook.delivered", message=message_id, tries=tries + 1)
        self._wire.run("alert_settle", token, message_id, "")
        return True


def _plain(data: Mapping[str, Any]) -> Mapping[str, Any]:
    return {name: data[name] for name in ("lane", "reason", "count") if name in data}

"""What is watched from outside: counts that hold over all processes and restarts, lanes, limits, worker nodes.

Counts live in Redis and are made by the scripts that change states (`count` in scripts/_common.lua). What only a
worker process knows, its sweep thread puts there (`Reporter`).
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, NamedTuple, cast

from mail.kinds import Lane
from mail.records import State, moment
from mail.timings import Answer, Histogram
from mail.wire import Wire

REPORT_KEPT = timedelta(minutes=5)
"""So that the last numbers of a node that has ended are still seen."""
REPORT_FRESH = timedelta(seconds=30)


DROPPED = "dropped"
CAUSES = {
    State.FAILED: ("refused", "unfit", "attempts_used_up", "worker_died", DROPPED),
    State.HELD: ("reply_lost", "worker_died"),
}
"""Why emails fail or are held: the server refuses them; it cannot take such mail (too large, say); no attempt
is left; their worker died; a human dropped them; the server's reply was lost."""


class Move(NamedTuple):
    """So many emails went from one state to another. From None: accepted; to None: the record was removed."""

    kind: str
    lane: Lane
    before: State | None
    after: State | None
    cause: str | None
    number: int


class Hold(NamedTuple):
    """What holds mail back, in words that may quote the server, and since when."""

    reason: str
    since: datetime


@dataclass(frozen=True)
class LaneMeasure:
    """One lane. Times are in seconds.

    `due`: emails (of bulk: chunks of batches) whose time has come. `still`: for how long a worker should have asked
    for one of them and none has; 0 while a limit of the account, or the SMTP server alone, is the reason. `closed` is
    the lane's own gate, `slowed` the pace that the server asked for, `pace` its mails per second. `per_second`: mails
    taken lately. `limits`: which of gate, day, pace, rate, connections holds it back now.
    """

    due: int
    oldest_due: float
    still: float
    nodes: int
    per_second: float
    closed: Hold | None
    slowed: Hold | None
    pace: float | None
    limits: Mapping[str, bool]


@dataclass(frozen=True)
class NodeReport:
    """What one worker node said of itself: its connections to the SMTP server, those with a mail and all that are
    open; at most one per thread. `fresh`: it was said a moment ago."""

    fresh: bool
    threads: int
    in_use: int
    open: int
    histograms: Mapping[Answer, Histogram]


@dataclass(frozen=True)
class Measurement:
    """All of it at one moment."""

    at: datetime
    moves: Sequence[Move]
    copies: Mapping[tuple[str, Lane], int]
    lanes: Mapping[Lane, LaneMeasure]
    account_closed: Hold | None
    used_today: int
    connections: int
    nodes: Mapping[str, NodeReport]
    alerts_pending: int

    def closed(self, lane: Lane) -> Hold | None:
        """The gate that keeps mail of a lane back."""
        return self.account_closed or self.lanes[lane].closed

    def emails(self) -> Counter[tuple[str, Lane, State]]:
        """How many records there are, by kind, lane and state."""
        found: Counter[tuple[str, Lane, State]] = Counter()
        for move in self.moves:
            if move.before:
                found[move.kind, move.lane, move.before] -= move.number
            if move.after:
                found[move.kind, move.lane, move.after] += move.number
        return found

    @classmethod
    def parse(cls, now: int, found: Mapping[str, Any]) -> "Measurement":
        """Read the answer of scripts/measure.lua. `now`: milliseconds."""
        moves, copies = [], {}
        for name, count in found["counts"].items():
            kind, lane, *rest = name.split(" ")
            if rest == ["duplicate"]:
                copies[kind, Lane(lane)] = int(count)
            else:
                before, after, *cause = rest
                why = cause[0] if cause else None
                moves.append(Move(kind, Lane(lane), _state(before), _state(after), why, int(count)))
        account = found["account"]
        return cls(
            at=moment(now),
            moves=moves,
            copies=copies,
            lanes={lane: _lane(found["lanes"][lane]) for lane in Lane},
            account_closed=_hold(account["gate"]),
            used_today=account["used_today"],
            connections=account["connections"],
            nodes={node: _report(now, report) for node, report in found["nodes"].items()},
            alerts_pending=found["alerts"],
        )


def measure(wire: Wire, limits: Sequence[float]) -> Measurement:
    """Measure now. `limits`: those of the account (`Numbers.limits`).

    Raises:
        redis.RedisError
    """
    now, found = wire.run("measure", *limits)
    return Measurement.parse(now, json.loads(found))


class Minute(NamedTuple):
    """How many emails came to each state in the minute that ends at this time."""

    ends: datetime
    reached: Mapping[State, int]


def last_hour(wire: Wire) -> Sequence[Minute]:
    """Minute by minute, the oldest first, the last one not over yet. Minutes in which no worker node ran are part of
    the one after.

    Raises:
        redis.RedisError
    """
    marks = [mark.partition(" ") for mark in cast("list[str]", wire.client.lrange(wire.key("history"), 0, -1))]
    counts = [(int(minute), Counter[str](json.loads(reached))) for minute, _, reached in marks]
    if counts:
        counts.append(
            (int(wire.now() // 60) + 1, _reached(cast("dict[str, str]", wire.client.hgetall(wire.key("counts")))))
        )
    return [
        Minute(moment(minute * 60_000), {State(word): number for word, number in (now - before).items()})
        for (_, before), (minute, now) in pairwise(counts)
    ]


def _reached(counts: Mapping[str, str]) -> Counter[str]:
    """As scripts/report.lua adds them up."""
    found: Counter[str] = Counter()
    for name, number in counts.items():
        _, _, *move = name.split(" ")
        if len(move) > 1 and move[1] != "-":
            found[move[1]] += int(number)
    return found


class Reporter:
    """Tells Redis what a worker node knows of itself."""

    def __init__(self, wire: Wire, node: str, look: Callable[[], Mapping[str, Any]], threads: int) -> None:
        """`look` gives `in_use`, `open`, `histograms` of the node's connections (`SmtpTransport.measured`)."""
        self._wire = wire
        self._node = node
        self._look = look
        self._threads = threads

    def report(self) -> None:
        """Raises redis.RedisError."""
        said = json.dumps({"threads": self._threads, **self._look()})
        self._wire.run("report", self._node, said, int(REPORT_KEPT.total_seconds() * 1000))


def _state(word: str) -> State | None:
    return None if word == "-" else State(word)


def _hold(found: Mapping[str, str]) -> Hold | None:
    return Hold(found["reason"], moment(found["since"])) if "since" in found else None


def _lane(found: Mapping[str, Any]) -> LaneMeasure:
    pace = found["pace"]
    return LaneMeasure(
        due=found["due"],
        oldest_due=found["oldest_ms"] / 1000,
        still=found["still_ms"] / 1000,
        nodes=found["nodes"],
        per_second=found["speed"],
        closed=_hold(found["gate"]),
        slowed=_hold(pace),
        pace=float(pace["limit"]) if "limit" in pace else None,
        limits=found["limits"],
    )


def _report(now: int, stored: str) -> NodeReport:
    at, _, said = stored.partition(" ")
    found = json.loads(said)
    return NodeReport(
        fresh=now - int(at) < REPORT_FRESH.total_seconds() * 1000,
        threads=found["threads"],
        in_use=found["in_use"],
        open=found["open"],
        histograms={Answer(name): Histogram(*values) for name, values in found["histograms"].items()},
    )

"""Whether Redis and the lanes are fit for the mail, by what they say of themselves.

No network: facts in, words out. `/health/ready` shows what is not well, `python doctor.py` everything, and a start
ends on a Redis that will never do.
"""

from collections.abc import Iterator, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

import redis

from mail.errors import ConfigurationError, OutboxUnavailable
from mail.kinds import Lane
from mail.measures import Hold, LaneMeasure, Measurement

MEMORY_LIMIT = 0.9
OLDEST_REDIS = 7  # knows the flags in the first line of a script
PATIENCE = {Lane.CRITICAL: 60, Lane.STANDARD: 300, Lane.BULK: 3600}
"""Seconds that mail may be due in a lane that nothing holds back. Batches wait for each other."""


class Level(StrEnum):
    """How bad it is, the worst last. A fault keeps mail from being accepted, kept or sent, or lays a secret open."""

    SKIPPED = "skipped"
    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"


class Finding(NamedTuple):
    """One thing that was looked at: a dotted name that stays the same, what was found, what mends it, and since when
    it is so, where that is known."""

    name: str
    level: Level
    text: str
    fix: str = ""
    since: datetime | None = None

    @property
    def well(self) -> bool:
        return self.level in {Level.OK, Level.SKIPPED}

    @property
    def words(self) -> str:
        """The text, with its time."""
        return f"{self.text} (since {self.since.isoformat()})" if self.since else self.text

    @property
    def lane(self) -> str:
        """The lane that it is about, or ""."""
        room, _, lane = self.name.partition(".")
        return lane if room == "lanes" else ""

    @property
    def sentence(self) -> str:
        """The words, with the lane where it is about one."""
        return f"{self.lane}: {self.words}" if self.lane else self.words


def redis_findings(info: Mapping[str, Any]) -> Iterator[Finding]:
    """What Redis's INFO tells; an empty one was forbidden."""
    if not info:
        text = "Redis forbids INFO: persistence and memory cannot be checked"
        yield Finding("redis.info", Level.WARNING, text, "ACL SETUSER <the user in REDIS_URL> +info")
        return
    yield _fitness(info)
    yield _role(info)
    yield _persistence(info)
    yield _eviction(info)
    yield _memory(info)


def refuse_unfit(info: Mapping[str, Any]) -> None:
    """Stop the start on a Redis, known by its INFO, that cannot hold an outbox.

    Raises:
        ConfigurationError: a Cluster, whose scripts cannot reach keys of several slots, or too old for our scripts.
    """
    found = _fitness(info)
    if not found.well:
        raise ConfigurationError(f"REDIS_URL: {found.text}")


def nearly_full(info: Mapping[str, Any]) -> bool:
    """Whether Redis, by its INFO, is so full that accepting must stop for delivering to go on."""
    return bool(info.get("maxmemory") and info["used_memory"] > MEMORY_LIMIT * info["maxmemory"])


def out_of_reach(error: OutboxUnavailable) -> Finding:
    """What it means that Redis did not answer as it should."""
    cause = error.__cause__
    text, fix = str(error), "Look at its log and its disk. Does it speak TLS (rediss://), or not? Is it frozen?"
    match cause:
        case redis.AuthenticationError():
            return Finding("redis", Level.FAULT, text, "It must read redis://user:password@host:port/number")
        case redis.exceptions.BusyLoadingError():
            text, fix = f"{text}: it is reading its data in", "Wait; see its log"
        case redis.ResponseError():
            text, fix = f"Redis refuses a command: {cause}", "Correct REDIS_URL, or the rights of its user (ACL)"
        case redis.TimeoutError():
            pass
        case redis.ConnectionError():
            # redis-py names host and port in a sentence of its own.
            text = f"{text}: {str(cause).rstrip('.').rpartition('. ')[2]}"
            if isinstance(cause.__cause__ or cause.__context__, OSError):
                fix = "Start it, or correct REDIS_URL"
    return Finding("redis", Level.FAULT, text, fix)


def lane_findings(found: Measurement) -> Iterator[Finding]:
    """What `Outbox.measure` tells: one finding for a lane that is well, else one for each thing that is not."""
    for lane, status in found.lanes.items():
        nodes = f"{status.nodes} worker node{'s' * (status.nodes != 1)}"
        well = Finding(f"lanes.{lane}", Level.OK, f"{nodes}; {_due(status) or 'nothing due'}")
        yield from list(_lane_troubles(lane, status, found.closed(lane))) or [well]


def _due(status: LaneMeasure) -> str:
    return f"{status.due} due, the oldest for {status.oldest_due:.0f} s" if status.due else ""


def _lane_troubles(lane: Lane, status: LaneMeasure, closed: Hold | None) -> Iterator[Finding]:
    name = f"lanes.{lane}"
    if not status.nodes:
        text = "; ".join(part for part in ("no worker node serves this lane", _due(status)) if part)
        yield Finding(name, Level.FAULT, text, "Run ./start_celery.sh")
    if closed:
        fix = "python test_smtp.py names the cause; the mail then goes by itself"
        yield Finding(name, Level.FAULT, f"mail is kept back: {closed.reason}", fix, closed.since)
    if status.slowed:
        fix = "It goes faster again by itself; SMTP_MAX_PER_SECOND avoids it"
        yield Finding(name, Level.WARNING, f"mail is slowed: {status.slowed.reason}", fix, status.slowed.since)
    if status.due and status.limits.get("day"):
        text = f"SMTP_MAX_PER_DAY is used up; {_due(status)}"
        yield Finding(name, Level.WARNING, text, "It goes on by itself; a higher limit of the SMTP account")
    elif status.nodes and not closed and not any(status.limits.values()) and status.oldest_due > PATIENCE[lane]:
        text = f"{_due(status)}: the workers do not keep up"
        yield Finding(name, Level.WARNING, text, "A higher WORKER_CONCURRENCY, or another node (docs/operations.md)")


def _fitness(info: Mapping[str, Any]) -> Finding:
    name, fix = "redis.version", "Name another one in REDIS_URL"
    if info.get("cluster_enabled"):
        text = "this is a Redis Cluster; the outbox needs one Redis, or a primary with replicas"
        return Finding(name, Level.FAULT, text, fix)
    version = str(info.get("redis_version", OLDEST_REDIS))
    if int(version.partition(".")[0]) < OLDEST_REDIS:
        text = f"this is Redis {version}; the outbox needs Redis 7 or newer, or Valkey"
        return Finding(name, Level.FAULT, text, fix)
    # Valkey goes on calling itself the Redis whose protocol it speaks.
    shown = f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {version}"
    return Finding(name, Level.OK, shown)


def _role(info: Mapping[str, Any]) -> Finding:
    if info.get("role") == "slave" and info.get("slave_read_only"):
        text = "Redis is a replica that may only be read: nothing is accepted"
        return Finding("redis.role", Level.FAULT, text, "Name the primary in REDIS_URL")
    return Finding("redis.role", Level.OK, f"primary, replicas: {info.get('connected_slaves', 0)}")


def _persistence(info: Mapping[str, Any]) -> Finding:
    name = "redis.persistence"
    if not info.get("aof_enabled"):
        text = "Redis keeps no append-only file: accepted emails die with it"
        return Finding(name, Level.FAULT, text, "redis-cli CONFIG SET appendonly yes; then CONFIG REWRITE")
    if info.get("aof_last_write_status") != "ok":
        text = "Redis cannot write its append-only file: nothing is accepted"
        return Finding(name, Level.FAULT, text, "Look at its disk and log")
    if info.get("aof_last_bgrewrite_status", "ok") != "ok":
        text = "Redis could not rewrite its append-only file, which grows on"
        return Finding(name, Level.WARNING, text, "Look at its disk, memory and log")
    if info.get("rdb_last_bgsave_status", "ok") != "ok":
        text = "Redis could not write its snapshot; by default it then refuses every write"
        return Finding(name, Level.FAULT, text, "Look at its disk, memory and log")
    return Finding(name, Level.OK, "append-only file, written without fault")


def _eviction(info: Mapping[str, Any]) -> Finding:
    policy = info.get("maxmemory_policy", "noeviction")
    if info.get("maxmemory") and policy != "noeviction":
        text = f"Redis may evict emails: maxmemory-policy is {policy}"
        return Finding("redis.eviction", Level.FAULT, text, "redis-cli CONFIG SET maxmemory-policy noeviction")
    return Finding("redis.eviction", Level.OK, policy if policy == "noeviction" else f"{policy}, but no maxmemory")


def _memory(info: Mapping[str, Any]) -> Finding:
    used, limit = info.get("used_memory", 0), info.get("maxmemory", 0)
    if nearly_full(info):
        text = f"Redis memory is over {MEMORY_LIMIT:.0%} of maxmemory: accepting has stopped".replace("%", " %")
        return Finding("redis.memory", Level.FAULT, text, "A larger maxmemory, or a lower OUTBOX_RETENTION_DAYS")
    share = f"{used / limit:.0%} of maxmemory".replace("%", " %") if limit else "no maxmemory"
    return Finding("redis.memory", Level.OK, f"{used / 1e6:.0f} MB used, {share}")

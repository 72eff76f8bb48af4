"""What Redis and the lanes say of themselves, judged. The Redis is real; what it cannot be made to say is changed."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from mail.findings import PATIENCE, Finding, Level, lane_findings, redis_findings
from mail.kinds import Lane, WelcomeEmail
from mail.measures import LaneMeasure, Measurement
from mail.outbox import Outbox


def by_name(found: Any) -> dict[str, Finding]:
    findings = list(found)
    assert len({one.name for one in findings}) == len(findings)
    return {one.name: one for one in findings}


def test_a_redis_that_is_well(store: Any) -> None:
    found = by_name(redis_findings(store.info()))
    assert {one.level for one in found.values()} == {Level.OK}
    assert found["redis.version"].text.startswith("Valkey ")


@pytest.mark.parametrize(
    ("said", "name", "level", "words"),
    [
        ({"redis_version": "6.2.14"}, "redis.version", Level.FAULT, "Redis 6.2.14"),
        ({"cluster_enabled": 1}, "redis.version", Level.FAULT, "Cluster"),
        ({"role": "slave", "slave_read_only": 1}, "redis.role", Level.FAULT, "replica"),
        ({"aof_enabled": 0}, "redis.persistence", Level.FAULT, "no append-only file"),
        ({"aof_last_write_status": "err"}, "redis.persistence", Level.FAULT, "cannot write"),
        ({"aof_last_bgrewrite_status": "err"}, "redis.persistence", Level.WARNING, "rewrite"),
        ({"rdb_last_bgsave_status": "err"}, "redis.persistence", Level.FAULT, "snapshot"),
        ({"maxmemory": 10**9, "maxmemory_policy": "allkeys-lru"}, "redis.eviction", Level.FAULT, "allkeys-lru"),
        ({"maxmemory": 10**9, "used_memory": 901 * 10**6}, "redis.memory", Level.FAULT, "90 %"),
    ],
)
def test_each_fault_of_redis(store: Any, said: dict[str, Any], name: str, level: Level, words: str) -> None:
    found = by_name(redis_findings({**store.info(), **said}))
    assert [one.name for one in found.values() if not one.well] == [name]
    assert found[name].level == level
    assert words in found[name].text
    assert found[name].fix


def test_eviction_without_a_limit_evicts_nothing(store: Any) -> None:
    found = by_name(redis_findings({**store.info(), "maxmemory": 0, "maxmemory_policy": "allkeys-lru"}))
    assert found["redis.eviction"].well


def test_redis_forbids_info() -> None:
    assert [(one.name, one.level) for one in redis_findings({})] == [("redis.info", Level.WARNING)]


@pytest.fixture
def outbox(configure: Any) -> Outbox:
    from utils.composition import get_outbox

    return get_outbox()


def with_lane(found: Measurement, lane: Lane, **said: Any) -> Measurement:
    changed: LaneMeasure = replace(found.lanes[lane], **said)
    return replace(found, lanes={**found.lanes, lane: changed})


def test_lanes_that_are_well(outbox: Outbox) -> None:
    for lane in Lane:
        outbox.sweep(lane, 1, "node@here")
    found = by_name(lane_findings(outbox.measure()))
    assert {(one.name, one.level) for one in found.values()} == {(f"lanes.{lane}", Level.OK) for lane in Lane}


@pytest.mark.parametrize("lane", Lane)
def test_mail_that_is_due_for_too_long(outbox: Outbox, lane: Lane) -> None:
    outbox.sweep(lane, 1, "node@here")
    measured = outbox.measure()
    patient = with_lane(measured, lane, due=3, oldest_due=PATIENCE[lane] - 1)
    assert by_name(lane_findings(patient))[f"lanes.{lane}"].level == Level.OK
    late = with_lane(measured, lane, due=3, oldest_due=PATIENCE[lane] + 1)
    found = by_name(lane_findings(late))[f"lanes.{lane}"]
    assert found.level == Level.WARNING
    assert "3 due" in found.text


def test_mail_that_a_limit_holds_back_is_no_matter_of_workers(outbox: Outbox) -> None:
    outbox.sweep(Lane.BULK, 1, "node@here")
    limits = dict.fromkeys(outbox.measure().lanes[Lane.BULK].limits, False)
    waiting = {"due": 3, "oldest_due": 5000.0}
    paced = with_lane(outbox.measure(), Lane.BULK, **waiting, limits={**limits, "rate": True})
    assert by_name(lane_findings(paced))["lanes.bulk"].level == Level.OK
    spent = with_lane(outbox.measure(), Lane.BULK, **waiting, limits={**limits, "day": True})
    assert "SMTP_MAX_PER_DAY" in by_name(lane_findings(spent))["lanes.bulk"].text


def test_set_aside(outbox: Outbox) -> None:
    email_id = outbox.accept(WelcomeEmail.sample()).id
    outbox.claim(email_id, "t", "node")
    outbox.settle(email_id, "t", "failed", code=550, error="550 no")
    assert outbox.set_aside() == {"failed": (1, 1), "held": (0, 0)}
    store, prefix = outbox.wire.client, outbox.wire.prefix
    store.zincrby(f"{prefix}state:failed", -timedelta(hours=25).total_seconds() * 1000, email_id)
    assert outbox.set_aside() == {"failed": (1, 0), "held": (0, 0)}

"""What the service leans on: Redis, what is in it, the broker, the SMTP server."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import redis

from mail.errors import OutboxUnavailable
from mail.findings import Finding, Level, lane_findings, out_of_reach, redis_findings
from mail.outbox import Outbox
from mail.records import State
from mail.smtp_check import Result, SmtpCheck
from mail.smtp_session import is_local
from settings import Settings
from utils.composition import get_onlooker, get_sender, get_smtp_config, get_wake_ups
from utils.doctor.installation import disk

CLOCK = 2.0  # seconds
LATENCY = 0.020
PINGS = 5
SMTP_WAIT = 5.0


def redis_and_outbox(settings: Settings) -> Iterator[Finding]:
    """Redis, and when it answers, the lanes and the emails that somebody must look at."""
    outbox = get_onlooker()
    try:
        with outbox.answered():
            yield _reached(outbox, settings)
            yield _clock(outbox)
            info = outbox.info()
            yield from redis_findings(info)
            yield from _configuration(outbox, settings, bool(info.get("aof_enabled")))
            yield from lane_findings(outbox.measure())
            yield from _set_aside(outbox)
    except OutboxUnavailable as error:
        yield out_of_reach(error)
        for name in ("lanes", "outbox"):
            yield Finding(name, Level.SKIPPED, "not tried, for want of Redis")
    finally:
        outbox.close()


def _place(settings: Settings) -> str:
    parts = urlsplit(settings.redis_url.get_secret_value())
    return parts.path if parts.scheme == "unix" else f"{parts.hostname or 'localhost'}:{parts.port or 6379}"


def _reached(outbox: Outbox, settings: Settings) -> Finding:
    client = outbox.wire.client
    client.ping()  # connects
    times = []
    for _ in range(PINGS):
        begun = time.perf_counter()
        client.ping()
        times.append(time.perf_counter() - begun)
    took = min(times)  # what a busy machine, or this busy program, adds is not Redis's
    text = f"{_place(settings)}, answers in {took * 1000:.1f} ms"
    if took > LATENCY:
        return Finding(
            "redis", Level.WARNING, text, "Each mail asks it several times: move it nearer, or look at its load"
        )
    return Finding("redis", Level.OK, text)


def _clock(outbox: Outbox) -> Finding:
    before = time.time()
    seconds, micros = outbox.wire.client.time()
    ahead = (before + time.time()) / 2 - (seconds + micros / 1e6)
    if abs(ahead) <= CLOCK:
        return Finding("clock", Level.OK, "this machine's and Redis's agree")
    text = f"this machine's clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} Redis's"
    return Finding("clock", Level.WARNING, text, "Set both by NTP: send_at, expires_at and certificates go by them")


def _configuration(outbox: Outbox, settings: Settings, aof: bool) -> Iterator[Finding]:
    """What INFO does not tell."""
    try:
        given = cast("dict[str, str]", outbox.wire.client.config_get("appendfsync", "dir"))
    except redis.ResponseError:
        text = "Redis forbids CONFIG GET: when it writes to disk, and where, cannot be checked"
        yield Finding("redis.fsync", Level.WARNING, text, "ACL SETUSER <the user in REDIS_URL> +config|get")
        return
    if aof:
        yield _fsync(given["appendfsync"], strict=not settings.development)
    parts = urlsplit(settings.redis_url.get_secret_value())
    # In a container of its own Redis has a directory that is not there for us.
    if (parts.scheme == "unix" or is_local(parts.hostname or "localhost")) and Path(given["dir"]).exists():
        yield disk("disk.redis", Path(given["dir"]), write=False)


def _fsync(policy: str, *, strict: bool) -> Finding:
    loss = {"always": "nothing", "everysec": "about the last second"}.get(policy, "what Linux had not written yet")
    level = Level.WARNING if policy == "no" or (strict and policy != "always") else Level.OK
    text = f"appendfsync {policy}: a power cut loses {loss}"
    fix = "redis-cli CONFIG SET appendfsync always; then CONFIG REWRITE" if level is Level.WARNING else ""
    return Finding("redis.fsync", level, text, fix)


def _set_aside(outbox: Outbox) -> Iterator[Finding]:
    words = {
        State.FAILED: "Look at them: GET /api/emails?state=failed, each with the server's reply",
        State.HELD: "Decide: GET /api/emails?state=held, then retry or cancel",
    }
    for state, (count, lately) in outbox.set_aside().items():
        odd = bool(lately if state is State.FAILED else count)
        text = f"{count} {state}" + (f", {lately} of them accepted in the last 24 hours" if count else "")
        level = Level.WARNING if odd else Level.OK
        yield Finding(f"outbox.{state}", level, text, words[state] if odd else "")


def broker(settings: Settings) -> Iterator[Finding]:
    """The broker, where it is not the Redis of the outbox."""
    if settings.celery_broker_url is None:
        yield Finding("broker", Level.OK, "the same Redis")
        return
    parts = urlsplit(settings.broker_url)
    place = f"{parts.scheme}, {parts.hostname or parts.path or 'localhost'}"
    try:
        get_wake_ups().reach()
    except ConnectionError as error:
        fix = "Start it, or correct CELERY_BROKER_URL. Mail is accepted meanwhile, and goes when it is back"
        yield Finding("broker", Level.FAULT, f"{place}: {error}", fix)
    else:
        yield Finding("broker", Level.OK, f"{place}: it lets us in")


def smtp() -> Iterator[Finding]:
    """The steps of test_smtp.py; nothing is sent."""
    check = SmtpCheck(replace(get_smtp_config(), timeout=SMTP_WAIT), get_sender())
    for result in check.run():
        yield from _step(result)


def _step(result: Result) -> Iterator[Finding]:
    name = f"smtp.{result.step.title.lower().replace(' ', '_')}"
    if result.failure is None:
        yield Finding(name, Level.OK, "; ".join(result.found))
    for warning in result.warnings:
        yield Finding(name, Level.WARNING, warning, "docs/smtp.md says what the settings mean")
    if result.failure is not None:
        said, cause, fix = result.failure
        yield Finding(
            name, Level.FAULT, " ".join((f"{said}. {cause}" if said else cause).split()), " ".join(fix.split())
        )

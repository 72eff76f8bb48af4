"""Wake-ups written by hand are what Celery writes, and are one step with the record."""

import base64
import json
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mail.answers import Due
from mail.kinds import KINDS, Lane
from support.processes import Valkey
from utils.composition import get_outbox, get_wake_ups
from utils.email_async import send_password_reset_email_async, send_welcome_email_async
from utils.wake_ups import CHUNK_KIND

ONLY_ONCE = ("delivery_tag", "reply_to")
"""What differs from message to message, and from thread to thread."""


def waiting(lane: Lane) -> list[Any]:
    wire = get_outbox().wire
    return [json.loads(one) for one in wire.client.lrange(wire.key(lane), 0, -1)]


def readable(message: Any) -> Any:
    properties = {name: value for name, value in message["properties"].items() if name not in ONLY_ONCE}
    return {**message, "body": json.loads(base64.b64decode(message["body"])), "properties": properties}


@pytest.mark.parametrize("to", ["ada@example.com", "\u00e4d\u2603@example.com", "o'brien@example.com"])
@pytest.mark.parametrize("lane", list(Lane))
@pytest.mark.parametrize("kind", [*KINDS, CHUNK_KIND])
def test_field_by_field(configure: Callable[..., None], valkey: Valkey, kind: str, lane: Lane, to: str) -> None:
    configure(REDIS_URL=valkey.url)
    due = Due("0d2f7b1c-7d6c-4a53-9a60-3f3f0ad6f1b5", kind, "" if kind == CHUNK_KIND else to)
    written = get_wake_ups().written(lane, due)
    assert written is not None
    assert get_wake_ups().publish(lane, due)
    wire = get_outbox().wire
    assert written.queue == wire.key(lane)
    (published,) = waiting(lane)
    ours = json.loads(written.message)
    assert readable(ours) == readable(published)
    assert list(ours) == list(published)
    assert set(ours["properties"]) == set(published["properties"])
    for name in ONLY_ONCE:
        assert str(uuid.UUID(ours["properties"][name])) == ours["properties"][name]
        assert str(uuid.UUID(published["properties"][name])) == published["properties"][name]
    again = get_wake_ups().written(lane, due)
    assert again is not None
    assert json.loads(again.message)["properties"]["delivery_tag"] != ours["properties"]["delivery_tag"]


def test_one_step_with_the_record(configure: Callable[..., None], valkey: Valkey) -> None:
    configure(REDIS_URL=valkey.url)
    first = send_welcome_email_async("ada@example.com", "Ada", idempotency_key="k")
    assert send_welcome_email_async("ada@example.com", "Ada", idempotency_key="k") == first
    assert [one["headers"]["id"] for one in waiting(Lane.STANDARD)] == [first]
    link = "https://lms.example.com/reset?token=s3cr3t"
    reset = send_password_reset_email_async("ada@example.com", "Ada", link)
    (critical,) = waiting(Lane.CRITICAL)
    assert (critical["headers"]["id"], "s3cr3t" in json.dumps(critical)) == (reset, False)


def test_what_is_for_later_wakes_nobody(configure: Callable[..., None], valkey: Valkey) -> None:
    configure(REDIS_URL=valkey.url)
    send_welcome_email_async("ada@example.com", "Ada", send_at=datetime.now(UTC) + timedelta(hours=1))
    assert waiting(Lane.STANDARD) == []


def test_celery_publishes_to_any_other_broker(configure: Callable[..., None], valkey: Valkey) -> None:
    configure(REDIS_URL=valkey.url, CELERY_BROKER_URL=f"{valkey.url.rpartition('/')[0]}/1")
    assert get_wake_ups().written(Lane.STANDARD, Due("x", "welcome", "ada@example.com")) is None
    send_welcome_email_async("ada@example.com", "Ada")
    assert waiting(Lane.STANDARD) == []
    assert get_wake_ups().backlog(Lane.STANDARD) == 1

"""The queued forms with Redis or the broker stopped or frozen: a clear error in time, or no delay at all."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mail.errors import OutboxUnavailable
from mail.kinds import KINDS
from support.processes import Valkey, wait_until
from utils.composition import get_outbox
from utils.email_async import enqueue, get_task_status, send_welcome_email_async

Configure = Callable[..., None]


@pytest.fixture
def frozen(tmp_path: Path) -> Iterator[Valkey]:
    """A Valkey that takes connections and answers nothing, until the test thaws it."""
    with Valkey(tmp_path) as server:
        server.freeze()
        yield server


def test_redis_is_not_there(settings: Configure, dead: str) -> None:
    settings(REDIS_URL=dead)
    begun = time.monotonic()
    with pytest.raises(OutboxUnavailable, match="cannot be reached"):
        send_welcome_email_async("ada@example.com", "Ada")
    with pytest.raises(OutboxUnavailable):
        get_task_status("some-id")
    assert time.monotonic() - begun < 2


def test_redis_is_frozen(settings: Configure, frozen: Valkey) -> None:
    settings(REDIS_URL=frozen.url)
    for attempt in (lambda: send_welcome_email_async("ada@example.com", "Ada"), lambda: get_task_status("some-id")):
        begun = time.monotonic()
        with pytest.raises(OutboxUnavailable):
            attempt()
        assert time.monotonic() - begun < 2
    frozen.thaw()
    time.sleep(1.1)  # for a second after a timeout the outbox does not ask again
    assert get_outbox().list().items == []


def test_the_broker_is_not_there(settings: Configure, dead: str) -> None:
    settings(CELERY_BROKER_URL=dead)
    begun = time.monotonic()
    ids = [send_welcome_email_async("ada@example.com", "Ada") for _ in range(5)]
    assert time.monotonic() - begun < 2
    assert [get_task_status(one)["state"] for one in ids] == ["queued"] * 5


def test_the_broker_is_frozen(settings: Configure, frozen: Valkey) -> None:
    settings(CELERY_BROKER_URL=frozen.url)
    took = []
    for _ in range(5):
        begun = time.monotonic()
        email_id = send_welcome_email_async("ada@example.com", "Ada")
        took.append(time.monotonic() - begun)
        assert get_task_status(email_id)["state"] == "queued"
    assert took[0] < 1.5
    assert max(took[1:]) < 0.3, "after the first, nobody waits for a broker that is known to hang"
    frozen.thaw()

    def published() -> bool:
        email = KINDS["welcome"].sample()
        enqueue(email)
        with frozen.client() as client:
            return bool(client.keys("*standard"))

    wait_until(published, timeout=15, what="publishing to come back by itself")

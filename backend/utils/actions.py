"""What was done by hand in the console, by whom: the last KEPT actions, in Redis and in the log."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple, cast

import structlog

from mail.records import moment
from mail.wire import Wire

logger = structlog.get_logger(__name__)

KEPT = 1_000


class Action(NamedTuple):
    """One of them. `what`: a verb and what it was done to; `place`: the page where it can be seen."""

    at: datetime
    name: str
    what: str
    place: str


class Actions:
    """Notes and lists them."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._key = wire.key("console", "actions")

    def note(self, name: str, what: str, place: str) -> None:
        """Write one down. Raises OutboxUnavailable."""
        logger.info("console.action", key=name, what=what, place=place)
        with self._wire.answered():
            line = json.dumps([self._wire.now() * 1000, name, what, place])
            pipe = self._wire.client.pipeline()
            pipe.lpush(self._key, line)
            pipe.ltrim(self._key, 0, KEPT - 1)
            pipe.execute()

    def latest(self, most: int) -> Sequence[Action]:
        """The last ones, newest first. Raises OutboxUnavailable."""
        with self._wire.answered():
            lines = cast("list[str]", self._wire.client.lrange(self._key, 0, most - 1))
        return [Action(moment(at), name, what, place) for at, name, what, place in map(json.loads, lines)]

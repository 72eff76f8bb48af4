"""Wake-ups written by hand, for a broker that is the outbox's own Redis.

There the email's record and its wake-up are one atomic step, in one round trip; Celery's `send_task` costs as much as
all else of accepting an email, and a second trip. A test compares each field with what Celery and kombu write
(message protocol 2, https://docs.celeryq.dev/en/stable/internals/protocol.html; kombu's transport for Redis), and
stock workers run what is written here. For any other broker Celery publishes itself: wake_ups.py.
"""

import json
import uuid
from base64 import b64encode
from typing import NamedTuple

from mail.answers import Due
from mail.kinds import Lane


class WakeUp(NamedTuple):
    """A message, and the Redis list that a worker of its lane takes it from."""

    queue: str
    message: str


class RedisWakeUps:
    """Writes them.

    Args:
        prefix: of every key of the broker (`global_keyprefix`).
        origin: the name of this process, as Celery says it.
        reply_to: where answers would go, if there were any.
    """

    def __init__(self, *, prefix: str, origin: str, reply_to: str) -> None:
        self._prefix = prefix
        self._origin = origin
        self._reply_to = reply_to

    def write(self, lane: Lane, task: str, due: Due, argsrepr: str) -> WakeUp:
        """A task's message, whose only argument is the id. `argsrepr` is what Flower shows in its place."""
        embed = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
        body = json.dumps([[due.id], {}, embed])
        shown = {"argsrepr": argsrepr, "kwargsrepr": "{}"}
        message = {
            "body": b64encode(body.encode()).decode(),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {
                "lang": "py",
                "task": task,
                "id": due.id,
                "shadow": None,
                "eta": None,
                "expires": None,
                "group": None,
                "group_index": None,
                "retries": 0,
                "timelimit": [None, None],
                "root_id": due.id,
                "parent_id": None,
                **shown,
                "origin": self._origin,
                "ignore_result": True,
                "replaced_task_nesting": 0,
                "stamped_headers": None,
                "stamps": {},
            },
            "properties": {
                "correlation_id": due.id,
                "reply_to": self._reply_to,
                **shown,
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": lane.value},
                "priority": 0,
                "body_encoding": "base64",
                "delivery_tag": str(uuid.uuid4()),
            },
        }
        return WakeUp(f"{self._prefix}{lane.value}", json.dumps(message))

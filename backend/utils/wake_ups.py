"""Publishes wake-ups through Celery: a task per kind, the email id as its only argument."""

from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout

import redis
import structlog
from amqp import AMQPError
from celery import Celery
from kombu.exceptions import KombuError, OperationalError

from mail.answers import Due
from mail.fields import mask_address
from mail.kinds import KINDS, Lane

logger = structlog.get_logger(__name__)

CHUNK_KIND = "bulk_chunk"  # as scripts/sweep.lua calls it
CHUNK_TASK = "tasks.email_tasks.send_bulk_chunk_task"


def task_name(kind: str) -> str:
    """The Celery task that sends emails of this kind, or chunks of batches."""
    if kind == CHUNK_KIND:
        return CHUNK_TASK
    return f"tasks.email_tasks.send_{KINDS[kind].noun()}_task"


class CeleryWakeUps:
    """Wake-ups over Celery's broker.

    A wake-up is worth little time: the email is safe in the outbox, and the sweep wakes it within seconds. But
    publishing to a frozen broker can take minutes, in three layers of retries. So it happens in one thread of its
    own, and nobody waits for it longer than `patience` seconds.
    """

    def __init__(self, app: Celery, *, patience: float = 0.5) -> None:
        self._app = app
        self._patience = patience
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="wake-ups")
        self._stuck = False

    def publish(self, lane: Lane, due: Due) -> bool:
        """Wake a worker up for one email; False when the broker did not take it in time. Never raises."""
        if due.kind not in KINDS and due.kind != CHUNK_KIND:
            # Written by a newer version, or its kind was removed: it waits for a worker that knows it.
            logger.warning("email.of_unknown_kind", email_id=due.id, kind=due.kind)
            return True
        if self._stuck:
            return False
        sending = self._thread.submit(self._send, lane, due)
        try:
            sending.result(timeout=self._patience)
        except FutureTimeout:
            self._stuck = True
            logger.warning("wake_up.stuck", email_id=due.id, hint="the broker hangs; the sweep wakes what it misses")
            sending.add_done_callback(lambda _: setattr(self, "_stuck", False))
        except (OperationalError, KombuError, OSError, redis.RedisError) as error:
            logger.warning(
                "wake_up.not_published", email_id=due.id, error=type(error).__name__, hint="the sweep will"
            )
        else:
            return True
        return False

    def _send(self, lane: Lane, due: Due) -> None:
        self._app.send_task(
            task_name(due.kind),
            args=[due.id],
            task_id=due.id,
            queue=lane,
            # What Flower and the worker's log show.
            argsrepr=f"('{due.id}', '{mask_address(due.to)}')" if due.to else f"('{due.id}',)",
            kwargsrepr="{}",
            ignore_result=True,
            retry=False,
        )

    def backlog(self, lane: Lane) -> int:
        """How many wake-ups of this lane wait for a worker, on any broker that Celery knows.

        Raises:
            ConnectionError: the broker cannot be reached.
        """
        try:
            with self._app.connection_or_acquire() as connection:
                # Declared as the workers do, not passively: on Redis kombu looks for a passive queue without the
                # key prefix, and never finds it.
                declared = connection.default_channel.queue_declare(lane, durable=True, auto_delete=False)
                return int(declared.message_count)
        except (OperationalError, KombuError, OSError, redis.RedisError) as error:
            raise ConnectionError(f"the broker does not answer: {type(error).__name__}") from None

    def reach(self) -> None:
        """Connect to the broker, once and anew.

        Raises:
            ConnectionError: in words that show no password.
        """
        try:
            with self._app.connection_for_write() as connection:
                connection.connect()
        except OSError as error:
            raise ConnectionError(f"it cannot be reached: {error.strerror or error}") from None
        except (AMQPError, KombuError, redis.RedisError) as error:
            raise ConnectionError(f"it turns us away: {type(error).__name__}") from None

    def close(self) -> None:
        """End the thread that publishes."""
        self._thread.shutdown(wait=False)

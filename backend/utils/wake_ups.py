"""Publishes wake-ups through Celery: a task per kind, the email id as its only argument."""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

import redis
import structlog
from amqp import AMQPError
from celery import Celery
from celery.utils.nodenames import anon_nodename
from kombu.exceptions import KombuError, OperationalError

from mail.answers import Due
from mail.fields import mask_address
from mail.kinds import KINDS, Lane
from utils.redis_wake_ups import RedisWakeUps, WakeUp

logger = structlog.get_logger(__name__)

T = TypeVar("T")

CHUNK_KIND = "bulk_chunk"  # as scripts/sweep.lua calls it
CHUNK_TASK = "tasks.email_tasks.send_bulk_chunk_task"


_NO_ANSWER = (OperationalError, KombuError, AMQPError, OSError, redis.RedisError)


def task_name(kind: str) -> str:
    """The Celery task that sends emails of this kind, or chunks of batches."""
    if kind == CHUNK_KIND:
        return CHUNK_TASK
    return f"tasks.email_tasks.send_{KINDS[kind].noun()}_task"


def _shown(due: Due) -> str:
    """What Flower and the worker's log show of the arguments."""
    return f"('{due.id}', '{mask_address(due.to)}')" if due.to else f"('{due.id}',)"


class CeleryWakeUps:
    """Wake-ups over Celery's broker.

    A wake-up is worth little time: the email is safe in the outbox, and the sweep wakes it within seconds. But a
    frozen broker can hold a caller up for minutes, in three layers of retries, or for ever (AMQP). So one thread
    talks to it, and nobody waits for that longer than `patience` seconds. It is a daemon: Python ends without it, but
    not without the threads of a ThreadPoolExecutor.
    """

    def __init__(self, app: Celery, *, patience: float = 0.5, prefix: str | None = None) -> None:
        """`prefix`: of the broker's keys, where it is the outbox's own Redis."""
        self._app = app
        self._by_hand = prefix is not None and RedisWakeUps(
            prefix=prefix, origin=anon_nodename(), reply_to=app.thread_oid
        )
        self._patience = patience
        self._stuck = False
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def written(self, lane: Lane, due: Due) -> WakeUp | None:
        """The wake-up for the outbox to push by itself when it takes the email in; None where it cannot."""
        return self._by_hand.write(lane, task_name(due.kind), due, _shown(due)) if self._by_hand else None

    def publish(self, lane: Lane, due: Due) -> bool:
        """Wake a worker up for one email; False when the broker did not take it in time. Never raises."""
        if due.kind not in KINDS and due.kind != CHUNK_KIND:
            # Written by a newer version, or its kind was removed: it waits for a worker that knows it.
            logger.warning("email.of_unknown_kind", email_id=due.id, kind=due.kind)
            return True
        try:
            self._ask(partial(self._send, lane, due))
        except TimeoutError:
            return False
        except _NO_ANSWER as error:
            logger.warning(
                "wake_up.not_published", email_id=due.id, error=type(error).__name__, hint="the sweep will"
            )
            return False
        return True

    def _send(self, lane: Lane, due: Due) -> None:
        self._app.send_task(
            task_name(due.kind),
            args=[due.id],
            task_id=due.id,
            queue=lane,
            argsrepr=_shown(due),
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
            return self._ask(partial(self._count, lane))
        except _NO_ANSWER as error:
            raise ConnectionError(f"the broker does not answer: {type(error).__name__}") from None

    def _count(self, lane: Lane) -> int:
        with self._app.connection_or_acquire() as connection:
            # Declared as the workers do, not passively: on Redis kombu looks for a passive queue without the
            # key prefix, and never finds it.
            declared = connection.default_channel.queue_declare(lane, durable=True, auto_delete=False)
            return int(declared.message_count)

    def _ask(self, call: Callable[[], T]) -> T:
        """Run a call in the thread that talks to the broker. Raises TimeoutError, at once while one is stuck."""
        if self._stuck:
            raise TimeoutError
        answer: Future[T] = Future()
        self._calls.put((answer, call))
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="wake-ups", daemon=True)
                self._thread.start()
        try:
            return answer.result(self._patience)
        except TimeoutError:
            if not answer.done():
                self._stuck = True
                logger.warning("broker.stuck", hint="it hangs; the sweep wakes what it misses")
                answer.add_done_callback(lambda _: setattr(self, "_stuck", False))
            raise

    def _run(self) -> None:
        while (item := self._calls.get()) is not None:
            answer, call = item
            try:
                answer.set_result(call())
            except _NO_ANSWER as error:
                answer.set_exception(error)
            except Exception as error:
                logger.exception("broker.broken")
                answer.set_exception(OperationalError(str(error)))

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
        self._calls.put(None)

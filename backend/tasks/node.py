"""What runs in a worker node beside its tasks: the sweep, the watchdog, and `revoke` that cancels."""

import os
from typing import Any

import structlog
from celery.signals import worker_ready, worker_shutdown, worker_shutting_down
from celery.worker.control import control_command

from mail.alerts import Alerter
from mail.errors import EmailError
from mail.kinds import Lane
from mail.sweeper import Sweeper
from settings import get_settings
from utils.composition import (
    close,
    get_bulk_courier,
    get_courier,
    get_leases,
    get_wake_ups,
    get_worker_batches,
    get_worker_outbox,
    new_alerter,
    new_reporter,
)

logger = structlog.get_logger(__name__)

EX_SOFTWARE = 70  # sysexits.h; any non-zero code makes the supervisor start the node anew

_beside: list[Sweeper | Alerter] = []


@worker_ready.connect
def _start(sender: Any, **_: object) -> None:
    settings = get_settings()
    lanes = [Lane(name) for name in sender.app.amqp.queues.consume_from if name in set(Lane)]
    sweeper = Sweeper(
        get_worker_outbox(),
        get_worker_batches(),
        get_wake_ups(),
        [get_courier(), get_bulk_courier()],
        get_leases(),
        lanes=lanes,
        node=sender.hostname,
        room=4 * settings.worker_concurrency,
        deaf_after=settings.watchdog_seconds,
        # No clean-up: what is in hand comes back through its lease, and a deaf consumer may not stop when asked.
        on_deaf=lambda: os._exit(EX_SOFTWARE),
        report=new_reporter(sender.hostname).report,
    )
    _beside.append(sweeper)
    if alerter := new_alerter():
        _beside.append(alerter)
    for thread in _beside:
        thread.start()
    logger.info(
        "node.started",
        lanes=[lane.value for lane in lanes],
        threads=settings.worker_concurrency,
        broker=sender.app.connection_for_read().as_uri(),
        smtp=f"{settings.smtp_host}:{settings.smtp_port}",
    )


@worker_shutting_down.connect
def _begin_to_stop(**_: object) -> None:
    # Celery waits for its tasks, and a chunk is a hundred mails: let each end with the few it has in hand.
    get_bulk_courier().stop()


@worker_shutdown.connect
def _stop(**_: object) -> None:
    while _beside:
        _beside.pop().stop()
    close()
    logger.info("node.stopped")


@control_command(name="revoke", variadic="task_id", signature="[id1 [id2 [... [idN]]]]")
def _revoke(_state: object, task_id: str | list[str], **_: object) -> dict[str, str]:
    """Cancel the email. In place of Celery's own revoke, whose memory of the id would swallow later wake-ups."""
    ids = [task_id] if isinstance(task_id, str) else task_id
    done = []
    for email_id in ids:
        try:
            get_worker_outbox().cancel(email_id, "revoked")
            done.append(f"{email_id} cancelled")
        except EmailError as error:
            done.append(f"{email_id}: {error}")
    return {"ok": "; ".join(done)}

"""What runs in a worker node beside its tasks: the sweep, the watchdog, stopping in time, `revoke` that cancels."""

import faulthandler
import os
import signal
import threading
import time
from typing import Any, cast

import structlog
from celery.signals import worker_ready, worker_shutdown, worker_shutting_down
from celery.worker import state as celery_state
from celery.worker.control import control_command

from mail.alerts import Alerter
from mail.errors import EmailError
from mail.kinds import Lane
from mail.sweeper import Sweeper
from mail.watchdog import STDERR, Watchdog
from settings import get_settings
from utils.composition import (
    close,
    get_bulk_courier,
    get_leases,
    get_smtp_config,
    get_wake_ups,
    get_worker_batches,
    get_worker_outbox,
    new_alerter,
    new_reporter,
)

logger = structlog.get_logger(__name__)

EX_SOFTWARE = 70  # sysexits.h; any non-zero code makes the supervisor start the node anew

_beside: list[Sweeper | Watchdog | Alerter] = []


@worker_ready.connect
def _start(sender: Any, **_: object) -> None:
    settings = get_settings()
    lanes = [Lane(name) for name in sender.app.amqp.queues.consume_from if name in set(Lane)]
    threads = sender.pool.limit
    watchdog = Watchdog(
        get_leases(),
        lanes=lanes,
        threads=threads,
        patience=settings.watchdog_seconds,
        longest=get_smtp_config().longest,
        end=_give_up,
    )
    sweeper = Sweeper(
        get_worker_outbox(),
        get_worker_batches(),
        get_wake_ups(),
        watchdog,
        lanes=lanes,
        node=sender.hostname,
        room=4 * threads,
        report=new_reporter(sender.hostname).report,
    )
    _beside.extend([sweeper, watchdog])
    if alerter := new_alerter():
        _beside.append(alerter)
    for thread in _beside:
        thread.start()
    # Celery's cold stop kills what its pool runs. Threads cannot be killed: it fails halfway, and a second one makes
    # Python forget a thread that it waits for (Thread._wait_for_tstate_lock), with the outcome of a mail.
    for number in (signal.SIGQUIT, signal.SIGINT):
        signal.signal(number, signal.getsignal(signal.SIGTERM))
    logger.info(
        "node.started",
        lanes=[lane.value for lane in lanes],
        threads=threads,
        broker=sender.app.connection_for_read().as_uri(),
        smtp=f"{settings.smtp_host}:{settings.smtp_port}",
    )


@worker_shutting_down.connect
def _begin_to_stop(**_: object) -> None:
    # A node that is stopping takes no wake-ups, so it should neither publish them nor be thought deaf.
    for part in _beside:
        part.end_soon()
    # Celery waits for its tasks, and a chunk is a hundred mails: let each end with the few it has in hand.
    get_bulk_courier().stop()
    # Celery would wait for ever, for a mail whose outcome Redis does not take among others.
    timer = threading.Timer(get_settings().stop_grace_seconds, _out_of_time)
    timer.daemon = True
    timer.start()


@worker_shutdown.connect
def _stop(**_: object) -> None:
    while _beside:
        _beside.pop().stop()
    close()
    logger.info("node.stopped")


def _out_of_time() -> None:
    logger.error("node.out_of_time", in_hand=get_leases().in_hand, hint="free after one lease, and may arrive twice")
    os._exit(EX_SOFTWARE)


def _give_up(reason: str) -> None:
    """End this process for the supervisor to start anew, after the mails that are in SMTP. Does not return."""
    until = time.monotonic() + get_settings().stop_grace_seconds
    # If nothing works any more: not even the log, which whoever is stuck may hold.
    faulthandler.dump_traceback_later(get_settings().stop_grace_seconds + 5, exit=True, file=STDERR)
    logger.critical("watchdog.ending", reason=reason, in_hand=len(get_leases().in_hand))
    faulthandler.dump_traceback(STDERR)
    _begin_to_stop()
    cast("Any", celery_state).should_stop = EX_SOFTWARE
    while get_leases().in_hand and time.monotonic() < until:
        time.sleep(0.1)
    os._exit(EX_SOFTWARE)


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

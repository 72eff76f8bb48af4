"""The Celery application: lanes and the settings that make it reliable on Redis.

Celery carries wake-ups, nothing else: the outbox holds the email, its state and its schedule. A wake-up that is
lost, repeated or late does no harm, which is why some of Celery's own safety nets are off here.
"""

import ssl
import sys
from contextlib import suppress
from typing import Any

from celery import Celery
from celery.signals import celeryd_init, setup_logging
from kombu import Exchange, Queue

import logs
from mail.errors import ConfigurationError, OutboxUnavailable
from mail.findings import refuse_unfit
from mail.kinds import Lane
from settings import Settings, get_settings, read_settings

EXCHANGE = Exchange("lms-mail", type="direct")


def _transport_options(settings: Settings) -> dict[str, Any]:
    """The same in every process: Redis restores by the shortest visibility timeout of all that are connected."""
    if not settings.broker_url.startswith("redis"):
        return {}
    return {
        # Without a prefix this short timeout would restore other applications' long tasks on the same Redis.
        "global_keyprefix": settings.key_prefix,
        "visibility_timeout": 60,
        # kombu's default sweep takes about 100 s to see that the timeout has passed.
        "unacked_restore_interval": 5,
        "unacked_restore_throttle": 1,
        # A worker of two lanes looks into the critical one first.
        "queue_order_strategy": "priority",
        "socket_timeout": 5,
        "socket_connect_timeout": 2,
        "socket_keepalive": True,
        "health_check_interval": 10,
        # redis-py, kombu and Celery each retry; the three multiply to minutes.
        "retry_on_timeout": False,
    }


def _unverified(url: str) -> bool:
    return url.startswith("rediss") and "ssl_cert_reqs" not in url


def create_app(settings: Settings) -> Celery:
    """Build the Celery application from settings."""
    app = Celery("lms-mail", include=["tasks.email_tasks", "tasks.node"])
    app.conf.update(
        broker_url=settings.broker_url,
        broker_transport_options=_transport_options(settings),
        # redis-py checks a server's certificate unless told not to; Celery only if told to.
        broker_use_ssl={"ssl_cert_reqs": ssl.CERT_REQUIRED} if _unverified(settings.broker_url) else None,
        # A worker waits for its broker as long as it takes; the default gives up after 100 tries.
        broker_connection_max_retries=None,
        broker_connection_retry_on_startup=True,
        # The outbox is the status. A result backend would hold a pub/sub channel per live AsyncResult.
        result_backend=None,
        task_ignore_result=True,
        task_queues=[Queue(lane, EXCHANGE, routing_key=lane) for lane in Lane],
        task_default_queue=Lane.STANDARD,
        task_default_exchange=EXCHANGE.name,
        task_default_routing_key=Lane.STANDARD,
        task_create_missing_queues=False,
        # A wake-up stays with the broker until its email is settled; a killed worker gives it back.
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        # One wake-up per thread, so that none waits in a busy worker while another is idle.
        worker_prefetch_multiplier=1,
        # After a lost connection Celery would lower the prefetch count, and raise it again from the threads of its
        # pool. py-amqp is not safe for that: the consumer then waits for ever for the answer to a basic.qos.
        worker_enable_prefetch_count_reduction=False,
        # SMTP is waiting: threads hold 200 slow connections in 84 MB, where 64 processes take 4 GB. They have no
        # time limits; the SMTP timeouts are the limit.
        worker_pool="threads",
        worker_concurrency=settings.worker_concurrency,
        worker_send_task_events=True,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        task_publish_retry=False,
        task_serializer="json",
        accept_content=["json"],
        enable_utc=True,
        timezone="UTC",
    )
    return app


@celeryd_init.connect
def _begin_to_log(sender: str, instance: Any, **_: object) -> None:
    logs.set_up(sender, read_settings())
    instance.quiet = True  # the banner is no log line; what it tells is in node.started


@setup_logging.connect
def _keep_logging(**_: object) -> None:
    """Celery sets logging up by itself unless somebody listens to this signal."""


@celeryd_init.connect
def _refuse_unfit_redis(**_: object) -> None:
    """End a worker whose Redis will never do. Of one that is not there yet Celery says so itself, and waits."""
    from utils.composition import get_worker_outbox  # which imports this module, when it publishes

    outbox = get_worker_outbox()
    try:
        with suppress(OutboxUnavailable), outbox.answered():
            refuse_unfit(outbox.info())
    except ConfigurationError as error:
        sys.exit(str(error))


try:
    app = create_app(get_settings())
except ConfigurationError as error:
    sys.exit(str(error))

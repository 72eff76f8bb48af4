"""The one place where settings become objects. Each is built once per process, when it is first needed."""

import os
import tempfile
import threading
from collections.abc import Callable
from datetime import timedelta
from functools import update_wrapper
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

import redis
import structlog
from cryptography.fernet import Fernet
from redis.backoff import NoBackoff
from redis.retry import Retry

from mail.alerts import Alerter, Thresholds
from mail.answers import Numbers
from mail.batches import Batches
from mail.brand import Brand
from mail.bulk import BulkCourier
from mail.chunks import Chunks
from mail.delivery import Courier, RetryPolicy
from mail.leases import LeaseKeeper
from mail.measures import Reporter
from mail.message import Sender
from mail.outbox import Outbox
from mail.permits import Permits
from mail.policy import Policy
from mail.rendering import Renderer
from mail.smtp import Security, SmtpConfig, SmtpTransport
from mail.vault import Vault
from settings import BACKEND, KEY_FILE, get_settings
from utils.actions import Actions
from utils.rates import Rate
from utils.service import EmailService
from utils.sessions import Sessions
from utils.webhook import Webhook

if TYPE_CHECKING:
    from utils.wake_ups import CeleryWakeUps

logger = structlog.get_logger(__name__)

T = TypeVar("T")

PRODUCER_TIMEOUT = 1.0  # seconds: a request is answered within two, whatever Redis does
WORKER_TIMEOUT = 5.0
WRONG_KEYS_PER_MINUTE = 60
SIGN_INS_PER_MINUTE = 10

_building = threading.RLock()


class Once(Generic[T]):
    """Builds something when it is first needed, and once, also when several threads are the first: functools has no
    cache that does (`lru_cache` lets each of them build its own)."""

    def __init__(self, build: Callable[[], T]) -> None:
        self._build = build
        self.built: list[T] = []
        update_wrapper(self, build)

    def __call__(self) -> T:
        if not self.built:
            with _building:
                if not self.built:
                    self.built.append(self._build())
        return self.built[0]


@Once
def get_service() -> EmailService:
    """Renders and sends; needs neither Redis nor Celery."""
    brand = get_brand()
    if brand.notice:
        logger.warning("settings.doubtful", hint=brand.notice)
    return EmailService(
        renderer=get_renderer(),
        transport=SmtpTransport(get_smtp_config()),
        sender=get_sender(),
    )


def get_renderer() -> Renderer:
    """Renders every kind."""
    return Renderer(BACKEND / "templates" / "emails", get_brand(), auto_reload=get_settings().development)


def get_brand() -> Brand:
    """Whose mails these are."""
    settings = get_settings()
    return Brand(
        name=settings.brand_name,
        url=settings.brand_url,
        support_email=settings.brand_support_email,
        address=settings.brand_address,
        color=settings.brand_color,
        logo_url=settings.brand_logo_url or "",
    )


def get_smtp_config() -> SmtpConfig:
    """The SMTP server, and how it is used."""
    settings = get_settings()
    return SmtpConfig(
        host=settings.smtp_host,
        port=settings.smtp_port,
        username=settings.smtp_username,
        password=settings.smtp_password.get_secret_value(),
        security=Security(settings.smtp_security),
        timeout=settings.smtp_timeout,
        data_timeout=settings.smtp_data_timeout,
        ca_file=str(settings.smtp_ca_file) if settings.smtp_ca_file else None,
    )


def get_sender() -> Sender:
    """Who the mails come from."""
    settings = get_settings()
    return Sender(
        address=settings.smtp_mail_from,
        name=settings.smtp_from_name or settings.brand_name,
        redirect_to=settings.mail_redirect_to or "",
        idempotency_header=settings.smtp_idempotency_header,
    )


@Once
def get_policy() -> Policy:
    """What this installation allows in an email."""
    settings = get_settings()
    return Policy(link_hosts=settings.allowed_link_hosts, test_domains=settings.development)


@Once
def get_key_rate() -> Rate | None:
    """How often each API key may call this process; None for no limit."""
    per_minute = get_settings().api_requests_per_minute
    return Rate(per_minute) if per_minute else None


@Once
def get_stranger_rate() -> Rate:
    """How often each client address may try a wrong key."""
    return Rate(WRONG_KEYS_PER_MINUTE)


@Once
def get_sign_in_rate() -> Rate:
    """How often each client address may try to sign in to the console."""
    return Rate(SIGN_INS_PER_MINUTE)


@Once
def get_sessions() -> Sessions:
    """Who is signed in to the console."""
    return Sessions(get_outbox().wire, _outbox_keys(), get_settings().keys)


@Once
def get_actions() -> Actions:
    """What was done by hand in the console."""
    return Actions(get_outbox().wire)


@Once
def get_outbox() -> Outbox:
    """The outbox of a process that accepts: it fails fast."""
    return _outbox(PRODUCER_TIMEOUT, _vault())


@Once
def get_worker_outbox() -> Outbox:
    """The outbox of a worker node: patient with a slow disk."""
    return _outbox(WORKER_TIMEOUT, _vault())


def get_onlooker() -> Outbox:
    """The outbox of who only looks, and so needs no key and makes none."""
    return _outbox(PRODUCER_TIMEOUT, Vault((Fernet.generate_key().decode(),)))


def _outbox(timeout: float, vault: Vault) -> Outbox:
    settings = get_settings()
    client = redis.Redis.from_url(
        settings.redis_url.get_secret_value(),
        decode_responses=True,
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        # redis-py would retry ten times, and repeat calls that timed out; the outbox decides that itself.
        retry=Retry(NoBackoff(), 0),
    )
    return Outbox(
        client,
        prefix=settings.key_prefix,
        vault=vault,
        numbers=Numbers(
            lease=settings.lease,
            retention=settings.retention,
            recipient_hourly_limit=settings.recipient_hourly_limit,
            max_per_second=settings.smtp_max_per_second or 0,
            max_per_day=settings.smtp_max_per_day or 0,
            max_connections=settings.smtp_max_connections or 0,
        ),
    )


def _vault() -> Vault:
    return Vault(_outbox_keys())


def _outbox_keys() -> tuple[str, ...]:
    return get_settings().outbox_key_list or (_development_key(KEY_FILE),)


def _development_key(path: Path) -> str:
    """The key shared by web and worker on a developer's machine. Whoever comes first makes it."""
    if not path.exists():
        descriptor, draft = tempfile.mkstemp(dir=path.parent)  # mode 0600
        with os.fdopen(descriptor, "wb") as file:
            file.write(Fernet.generate_key())
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            os.unlink(draft)
    return path.read_text().strip()


@Once
def get_wake_ups() -> "CeleryWakeUps":
    """The way to the workers. The direct forms, which import this module too, never load Celery."""
    from celery_app import app
    from utils.wake_ups import CeleryWakeUps

    settings = get_settings()
    same = settings.broker_url == settings.redis_url.get_secret_value()
    return CeleryWakeUps(app, prefix=settings.key_prefix if same else None)


@Once
def get_batches() -> Batches:
    """The batches, for a process that accepts."""
    return Batches(get_outbox())


@Once
def get_worker_batches() -> Batches:
    """The batches, for a worker node."""
    return Batches(get_worker_outbox())


@Once
def get_permits() -> Permits:
    """The permits for connections of this worker process."""
    return Permits(limited=get_settings().smtp_max_connections is not None, trim=get_service().trim)


@Once
def get_leases() -> LeaseKeeper:
    """The leases of this worker process."""
    return LeaseKeeper(get_worker_outbox(), get_permits())


def new_reporter(node: str) -> Reporter:
    """Tells the outbox what a worker node of this name knows of itself."""
    return Reporter(get_worker_outbox().wire, node, get_service().measured, get_settings().worker_concurrency)


def new_alerter() -> Alerter | None:
    """Tells ALERT_WEBHOOK_URL what goes wrong; None where nobody wants to know."""
    settings = get_settings()
    if settings.alert_webhook_url is None:
        return None
    post = Webhook(settings.alert_webhook_url.get_secret_value(), settings.alert_webhook_secret.get_secret_value())
    thresholds = Thresholds(
        dead_letters=settings.alert_dead_letters,
        interval=timedelta(seconds=settings.alert_interval_seconds),
        lane_still=timedelta(seconds=settings.alert_lane_still_seconds),
    )
    return Alerter(get_outbox(), post, thresholds)


def get_retry_policy() -> RetryPolicy:
    """When a mail is tried again."""
    settings = get_settings()
    return RetryPolicy(
        base=settings.retry_base_seconds, maximum=settings.retry_max_seconds, attempts=settings.retry_attempts
    )


@Once
def get_courier() -> Courier:
    """Delivers single emails from the outbox, in worker nodes."""
    return Courier(get_worker_outbox(), get_service().deliver, get_leases(), get_permits(), get_retry_policy())


@Once
def get_bulk_courier() -> BulkCourier:
    """Delivers chunks of batches, in worker nodes."""
    chunks = Chunks(get_worker_outbox())
    return BulkCourier(chunks, get_service().deliver_many, get_leases(), get_permits(), get_retry_policy())


def close() -> None:
    """Close every connection; the process is about to end."""
    for built in (get_service.built, get_outbox.built, get_worker_outbox.built, get_wake_ups.built):
        for one in built:
            one.close()

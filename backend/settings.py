"""Every environment variable, typed, in one place. Values come from the environment, then from `backend/.env`
(or the file that ENV_FILE names).

Lists are comma-separated. `.env.example` holds the same names with a comment each (a test compares the two).
"""

import base64
import hashlib
import ipaddress
import os
import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from enum import StrEnum
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self
from urllib.parse import unquote, urlsplit

import structlog
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

import logs
from env_file import EnvFile, read_env_file, shown
from mail.errors import ConfigurationError
from mail.fields import Address, HeaderText, Link
from mail.vault import Vault

BACKEND = Path(__file__).resolve().parent
ENV_FILE = Path(os.environ.get("ENV_FILE") or BACKEND / ".env")
KEY_FILE = BACKEND / ".outbox-key"

logger = structlog.get_logger(__name__)


class Scope(StrEnum):
    """What an API key may do."""

    SEND = "send"
    CUSTOM = "custom"
    BULK = "bulk"
    READ = "read"
    ADMIN = "admin"


class ApiKey(NamedTuple):
    """One caller of the HTTP API. Only the digest of the key is kept in memory."""

    name: str
    scopes: frozenset[Scope]
    digest: bytes


def _split(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


def _redis_url(value: SecretStr) -> SecretStr:
    url = value.get_secret_value()
    if not url.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("must begin with redis://, rediss:// or unix://")
    try:
        parts = urlsplit(url)
        if parts.port == 0:
            raise ValueError
        if parts.scheme != "unix" and parts.path.strip("/"):
            int(parts.path.strip("/"))  # redis-py would take database 0 instead
    except ValueError:  # quotes the URL
        raise ValueError(
            "must read redis://user:password@host:port/number, with : / ? # @ and % in a password percent-encoded"
        ) from None
    return value


def _broker_url(value: SecretStr) -> SecretStr:
    from kombu.transport import TRANSPORT_ALIASES  # the direct forms know no Celery, nor does a start without it

    scheme, separator, _ = value.get_secret_value().partition("://")
    if not separator or scheme.partition("+")[0] not in TRANSPORT_ALIASES:
        raise ValueError("must begin with a transport of Celery, such as redis:// or amqp://")
    return value


def _user_and_password(value: SecretStr) -> SecretStr:
    if value and ":" not in value.get_secret_value():
        raise ValueError("must read user:password")
    return value


def _webhook_url(value: SecretStr) -> SecretStr:
    try:
        parts = urlsplit(value.get_secret_value())
        fit = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not parts.username
    except ValueError:  # quotes the URL
        fit = False
    if not (fit and value.get_secret_value().isascii() and value.get_secret_value().isprintable()):
        raise ValueError("must be a URL such as https://alerts.example.com/mail, without a user and password")
    return value


def _webhook_secret(value: SecretStr) -> SecretStr:
    if not value:
        return value
    try:
        size = len(base64.b64decode(value.get_secret_value().removeprefix("whsec_"), validate=True))
    except ValueError:
        size = 0
    # https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md#symmetric
    if not (value.get_secret_value().startswith("whsec_") and 24 <= size <= 64):
        raise ValueError('must be whsec_ and 24 to 64 bytes in base64: echo "whsec_$(openssl rand -base64 32)"')
    return value


def _color(value: str) -> str:
    if not re.fullmatch(r"#[0-9a-fA-F]{6}", value):
        raise ValueError("must be a colour such as #1f5eff")
    return value


CommaSeparated = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
BrokerUrl = Annotated[SecretStr, AfterValidator(_broker_url)]
FlowerAuth = Annotated[SecretStr, AfterValidator(_user_and_password)]
RedisUrl = Annotated[SecretStr, AfterValidator(_redis_url)]
WebhookUrl = Annotated[SecretStr, AfterValidator(_webhook_url)]
WebhookSecret = Annotated[SecretStr, AfterValidator(_webhook_secret)]
Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0)]


class Settings(BaseSettings):
    """The settings of one process, frozen. Build it with `get_settings()`."""

    model_config = SettingsConfigDict(
        env_file=ENV_FILE,
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    environment: Literal["development", "staging", "production"] = "development"
    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(_upper)] = "INFO"
    log_format: Literal["auto", "json", "text"] = "auto"

    # Redis: outbox and, unless CELERY_BROKER_URL says otherwise, Celery's broker.
    redis_url: RedisUrl = SecretStr("redis://127.0.0.1:6379/0")
    celery_broker_url: BrokerUrl | None = None
    key_prefix: str = Field("mail:", min_length=1, max_length=40, pattern=r"^[A-Za-z0-9_.:-]+$")

    # SMTP
    smtp_host: str = "127.0.0.1"
    smtp_port: Port = 1025
    smtp_username: str = ""
    smtp_password: SecretStr = SecretStr("")
    smtp_mail_from: Address = "no-reply@lms.test"
    smtp_from_name: str = ""
    smtp_security: Literal["auto", "none", "starttls", "tls"] = "auto"
    smtp_timeout: Seconds = 30
    smtp_data_timeout: Seconds = 600
    smtp_ca_file: Path | None = None
    smtp_max_per_second: float | None = Field(None, gt=0)
    smtp_max_per_day: int | None = Field(None, ge=1)
    smtp_max_connections: int | None = Field(None, ge=1)
    smtp_idempotency_header: str = Field("", pattern=r"^[A-Za-z0-9-]*$")
    mail_redirect_to: Address | None = None

    # Accepting
    api_keys: SecretStr = SecretStr("")
    outbox_keys: SecretStr = SecretStr("")
    allowed_link_hosts: CommaSeparated = ()
    cors_origins: CommaSeparated = ()
    recipient_hourly_limit: int = Field(5, ge=1)
    api_requests_per_minute: int = Field(6_000, ge=0)
    max_body_bytes: int = Field(5_000_000, ge=1_000)
    batch_max_recipients: int = Field(100_000, ge=1)
    batch_stream_max_recipients: int = Field(1_000_000, ge=1, le=10_000_000)
    batch_max_body_bytes: int = Field(500_000_000, ge=1_000)
    outbox_retention_days: int = Field(30, ge=1)

    # Retrying: full jitter between a second and min(maximum, base * 2 ** attempts); about a day in all.
    retry_base_seconds: Seconds = 10
    retry_max_seconds: Seconds = 3600
    retry_attempts: int = Field(50, ge=1)

    # Workers
    worker_concurrency: int = Field(20, ge=1, le=1000)
    lease_seconds: float = Field(20, ge=2)
    watchdog_seconds: Seconds = 60

    # Alerts
    alert_webhook_url: WebhookUrl | None = None
    alert_webhook_secret: WebhookSecret = SecretStr("")
    alert_dead_letters: int = Field(1, ge=1)
    alert_interval_seconds: Seconds = 60
    alert_lane_still_seconds: Seconds = 300

    # Brand, shown in every mail
    brand_name: HeaderText = "Example Academy"
    brand_url: Link = "https://lms.example.com"
    brand_support_email: Address = "support@lms.example.com"
    brand_address: str = ""
    brand_logo_url: Link | None = None
    brand_color: Annotated[str, AfterValidator(_color)] = "#1f5eff"

    # Where things listen; the shell scripts and the local stack read these too.
    api_host: str = "127.0.0.1"
    api_port: Port = 8000
    flower_address: str = "127.0.0.1"
    flower_port: Port = 5555
    flower_basic_auth: FlowerAuth = SecretStr("")
    flower_read_only: bool = True
    inbox_port: Port = 8025
    stop_grace_seconds: int = Field(90, ge=1)

    @property
    def development(self) -> bool:
        return self.environment == "development"

    @property
    def logs_as_json(self) -> bool:
        """Whether a log line is a JSON object; else it is for the eye."""
        return self.log_format == "json" or (self.log_format == "auto" and not self.development)

    @property
    def broker_url(self) -> str:
        """Where Celery's wake-ups travel. A Unix socket has another name in Celery than in redis-py."""
        url = (self.celery_broker_url or self.redis_url).get_secret_value()
        if not url.startswith("unix://"):
            return url
        return "redis+socket" + url.removeprefix("unix").replace("?db=", "?virtual_host=").replace(
            "&db=", "&virtual_host="
        )

    @property
    def lease(self) -> timedelta:
        return timedelta(seconds=self.lease_seconds)

    @property
    def retention(self) -> timedelta:
        return timedelta(days=self.outbox_retention_days)

    @cached_property
    def keys(self) -> tuple[ApiKey, ...]:
        """The callers of the HTTP API, parsed from `API_KEYS` (`name:scope+scope:key`, comma-separated)."""
        return tuple(_parse_key(entry) for entry in _entries(self.api_keys))

    @property
    def keys_in_clear(self) -> tuple[tuple[ApiKey, str], ...]:
        """The callers, each with what it sends, for programs that call the API themselves or judge the keys."""
        return tuple((_parse_key(entry), entry.split(":", 2)[2]) for entry in _entries(self.api_keys))

    @property
    def outbox_key_list(self) -> tuple[str, ...]:
        """Fernet keys for secret fields, newest first."""
        return tuple(_entries(self.outbox_keys))

    @property
    def secrets(self) -> Iterator[str]:
        """Every value that nothing may show."""
        for name in type(self).model_fields:
            value = getattr(self, name)
            if not isinstance(value, SecretStr):
                continue
            match name:
                case "api_keys":
                    yield from (key for _, key in self.keys_in_clear)
                case "outbox_keys":
                    yield from self.outbox_key_list
                case "redis_url" | "celery_broker_url":
                    password = urlsplit(value.get_secret_value()).password or ""
                    yield from (password, unquote(password))
                case "flower_basic_auth":
                    yield value.get_secret_value().partition(":")[2]
                case _:
                    yield value.get_secret_value()

    @model_validator(mode="after")
    def _guard_production(self) -> Self:
        names = [key.name for key in self.keys]
        if len(set(names)) != len(names):
            raise ValueError("API_KEYS: two keys have the same name; idempotency is kept per name")
        if not self.flower_basic_auth and not _loopback(self.flower_address):
            raise ValueError("FLOWER_ADDRESS: open to the network; set FLOWER_BASIC_AUTH too, or keep 127.0.0.1")
        self._guard_webhook()
        if self.outbox_key_list:
            try:
                Vault(self.outbox_key_list)  # a worker that finds out later would run on without its sweep
            except ConfigurationError as error:
                raise ValueError(str(error)) from None
        if self.development:
            return self
        missing = [
            name
            for name, value in (
                ("API_KEYS", self.keys),
                ("OUTBOX_KEYS", self.outbox_key_list),
                ("ALLOWED_LINK_HOSTS", self.allowed_link_hosts),
            )
            if not value
        ]
        if "smtp_mail_from" not in self.model_fields_set:
            missing.append("SMTP_MAIL_FROM")
        if missing:
            raise ValueError(f"{', '.join(missing)}: required when ENVIRONMENT is {self.environment}")
        if any(len(key) < 24 for _, key in self.keys_in_clear):
            raise ValueError("API_KEYS: a key has fewer than 24 characters; make one with: openssl rand -hex 24")
        return self

    def _guard_webhook(self) -> None:
        if self.alert_webhook_url is None:
            return
        if not self.alert_webhook_secret:
            raise ValueError(
                "ALERT_WEBHOOK_SECRET: required with ALERT_WEBHOOK_URL, so that the receiver can tell whose alerts "
                'these are; make one with: echo "whsec_$(openssl rand -base64 32)"'
            )
        url = urlsplit(self.alert_webhook_url.get_secret_value())
        if url.scheme != "https" and not self.development and not _loopback(url.hostname or ""):
            raise ValueError("ALERT_WEBHOOK_URL: must begin with https:// outside development, or name this machine")


def _loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _entries(value: SecretStr) -> list[str]:
    return [entry.strip() for entry in value.get_secret_value().split(",") if entry.strip()]


def _parse_key(entry: str) -> ApiKey:
    name, _, rest = entry.partition(":")
    scopes, _, key = rest.partition(":")
    try:
        parsed = frozenset(Scope(scope) for scope in scopes.split("+"))
    except ValueError:
        parsed = frozenset()
    if not (name and parsed and key):
        raise ValueError("API_KEYS: each entry must read name:scope+scope:key, with scopes from " + ", ".join(Scope))
    return ApiKey(name, parsed, hashlib.sha256(key.encode()).digest())


def no_color() -> bool:
    """Whether programs shall print without colours (https://no-color.org)."""
    return bool(os.environ.get("NO_COLOR"))


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """Read the settings once per process. Logs a warning for every name in the file that looks like a mistake.

    Raises:
        ConfigurationError: names every wrong setting, where it stands and what it must look like, or the line of
            the file that cannot be read; never shows a value.
    """
    settings, file = _read()
    for remark in file.remarks:
        logger.warning("settings.doubtful", hint=remark)
    return settings


def read_settings() -> Settings:
    """Read the settings and log nothing: for setting logging up.

    Raises:
        ConfigurationError: as `get_settings`.
    """
    return _read()[0]


def _read() -> tuple[Settings, EnvFile]:
    if os.environ.get("ENV_FILE") and not ENV_FILE.exists():
        raise ConfigurationError(f"ENV_FILE names {ENV_FILE}, which does not exist.")
    file = EnvFile({}, [])
    if ENV_FILE.exists():
        file = read_env_file(ENV_FILE, [name.upper() for name in Settings.model_fields])
    try:
        settings = Settings()
    except ValidationError as error:
        faults = [_described(fault, file.lines) for fault in error.errors(include_input=False, include_url=False)]
        raise ConfigurationError("Wrong settings:\n  " + "\n  ".join(faults)) from None
    logs.redact.hide(settings.secrets)
    return settings, file


def _described(fault: ErrorDetails, lines: Mapping[str, int]) -> str:
    """One fault, with the place where its setting stands."""
    message = fault["msg"].removeprefix("Value error, ").replace("Input should", "must", 1).partition(", unable")[0]
    name = "".join(str(part).upper() for part in fault["loc"][:1])
    if not name:  # said about several settings, by a validator that names the one at fault
        name, _, message = message.partition(": ")
    in_environment = {key.upper() for key, value in os.environ.items() if value}  # as in env_ignore_empty
    if name in in_environment:
        return f"{name} (environment): {message}"
    if name in lines:
        return f"{name} ({shown(ENV_FILE)}, line {lines[name]}): {message}"
    return f"{name}: {message}"

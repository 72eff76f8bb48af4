"""Fixtures for every test: a real Valkey, a real SMTP server, and settings that come from nowhere else."""

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Before anything imports settings: a developer's own .env must not leak into tests.
os.environ["ENV_FILE"] = os.devnull

import redis
import utils.composition
from cryptography.fernet import Fernet
from settings import get_settings
from support.processes import Valkey
from support.smtp_server import SmtpServer

ALL = "send+custom+bulk+read+admin"
API_KEYS = f"all:{ALL}:all-key,other:{ALL}:other-key,sender:send:send-key,reader:read:read-key"

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """One Valkey for all tests that do not hurt it; each test has a key prefix of its own."""
    with Valkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture
def smtp() -> Iterator[SmtpServer]:
    with SmtpServer() as server:
        yield server


def service_env(redis_url: str, smtp: SmtpServer, **more: str) -> dict[str, str]:
    """The environment of a service on these two servers, with a key prefix of its own."""
    return {
        "ENV_FILE": os.devnull,
        "ENVIRONMENT": "development",
        "REDIS_URL": redis_url,
        "KEY_PREFIX": f"t{os.getpid()}-{next(_numbers)}:",
        "SMTP_HOST": smtp.host,
        "SMTP_PORT": str(smtp.port),
        "SMTP_MAIL_FROM": "no-reply@lms.example.com",
        "SMTP_FROM_NAME": "Example Academy",
        "OUTBOX_KEYS": Fernet.generate_key().decode(),
        "API_KEYS": API_KEYS,
        **more,
    }


@pytest.fixture
def env(valkey: Valkey, smtp: SmtpServer) -> dict[str, str]:
    return service_env(valkey.url, smtp)


def _forget() -> None:
    get_settings.cache_clear()
    for value in vars(utils.composition).values():
        if hasattr(value, "cache_clear"):
            value.cache_clear()


@pytest.fixture
def configure(env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """This process becomes a client of the service: `configure(NAME="value")` adds to its settings."""

    def apply(**more: str) -> None:
        for name, value in {**env, **more}.items():
            monkeypatch.setenv(name, value)
        _forget()

    apply()
    yield apply
    if utils.composition.get_service.cache_info().currsize:
        utils.composition.get_service().close()
    _forget()


@pytest.fixture
def store(valkey: Valkey) -> Iterator["redis.Redis"]:
    with valkey.client() as client:
        yield client


@pytest.fixture
def golden() -> Path:
    return Path(__file__).parent / "golden"

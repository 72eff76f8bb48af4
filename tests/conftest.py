"""Fixtures for every test: a real Valkey, a real SMTP server, and settings that come from nowhere else."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Before anything imports settings: a developer's own .env must not leak into tests.
os.environ["ENV_FILE"] = os.devnull

import redis

from support.processes import Valkey, free_port
from support.service import forget_settings, service_env
from support.smtp_server import SmtpServer


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """One Valkey for all tests that do not hurt it; each test has a key prefix of its own."""
    with Valkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture
def smtp() -> Iterator[SmtpServer]:
    with SmtpServer() as server:
        yield server


@pytest.fixture
def env(valkey: Valkey, smtp: SmtpServer) -> dict[str, str]:
    return service_env(valkey.url, smtp)


@pytest.fixture
def configure(env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """This process becomes a client of the service: `configure(NAME="value")` adds to its settings."""

    def apply(**more: str) -> None:
        for name, value in {**env, **more}.items():
            monkeypatch.setenv(name, value)
        forget_settings()

    apply()
    yield apply
    forget_settings()


@pytest.fixture
def store(valkey: Valkey) -> Iterator["redis.Redis"]:
    with valkey.client() as client:
        yield client


@pytest.fixture
def dead() -> str:
    """The address of a Redis where nobody listens."""
    return f"redis://127.0.0.1:{free_port()}/0"


@pytest.fixture
def golden() -> Path:
    return Path(__file__).parent / "golden"

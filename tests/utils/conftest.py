"""This process as a client of the service."""

from collections.abc import Callable

import pytest

from support.processes import free_port


@pytest.fixture(autouse=True)
def settings(configure: Callable[..., None]) -> Callable[..., None]:
    return configure


@pytest.fixture
def dead() -> str:
    """The address of a Redis where nobody listens."""
    return f"redis://127.0.0.1:{free_port()}/0"

"""This process as a client of the service."""

from collections.abc import Callable

import pytest


@pytest.fixture(autouse=True)
def settings(configure: Callable[..., None]) -> Callable[..., None]:
    return configure

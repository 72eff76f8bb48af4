"""Programs of the system that some tests need."""

import os
import shutil
from typing import NoReturn

import pytest


def need(program: str, *, package: str) -> str:
    """The path of a program. Without it the test is skipped; under CI, where REQUIRE_ALL is set, it fails."""
    found = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")
    if found is None:
        missing(f"{program} is not installed (Debian's package {package})")
    return found


def missing(reason: str) -> NoReturn:
    """Skip the test, or fail it where everything must be tried."""
    if os.environ.get("REQUIRE_ALL"):
        pytest.fail(reason)
    pytest.skip(reason)

"""The parts of the doctor that no broken installation can show."""

import time
from collections.abc import Iterator
from secrets import token_hex, token_urlsafe

import pytest

from mail.findings import Finding, Level
from utils.doctor.configuration import weakness
from utils.doctor.runner import Check, examine


def ok(name: str) -> Finding:
    return Finding(name, Level.OK, "well")


def hangs() -> Iterator[Finding]:
    yield ok("slow.first")
    time.sleep(30)
    yield ok("slow.second")


def breaks() -> Iterator[Finding]:
    yield ok("broken.first")
    raise RuntimeError("planted")


def late() -> Iterator[Finding]:
    time.sleep(0.2)
    yield ok("late")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_check_that_hangs_or_breaks_stops_no_other() -> None:
    begun = time.monotonic()
    checks = [Check("slow", hangs, 0.6, "Wake it"), Check("broken", breaks), Check("late", late)]
    found = [(one.finding.name, one.finding.level) for one in examine(checks)]
    assert found == [
        ("slow.first", Level.OK),
        ("slow", Level.FAULT),
        ("broken.first", Level.OK),
        ("broken", Level.FAULT),
        ("late", Level.OK),
    ]
    assert time.monotonic() - begun < 1.5


def test_checks_run_side_by_side() -> None:
    begun = time.monotonic()
    assert len(list(examine([Check("late", late)] * 10))) == 10
    assert time.monotonic() - begun < 1.5


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("k" * 48, "repeats"),
        ("0123abcd" * 6, "repeats"),
        ("5c1f0b93e7d4" * 4, "repeats"),
        ("short-key-7f3a9", "fewer than 24"),
        ("change-me-please-change-me", "by hand"),
        ("MyVerySecretLongKeyForTheLms", "by hand"),
        ("lms-12345678-lms-lms-lms-lms", "by hand"),
    ],
)
def test_weak_keys(key: str, why: str) -> None:
    assert why in (weakness(key) or "")


def test_made_keys_are_strong() -> None:
    assert not [key for _ in range(500) for key in (token_hex(24), token_hex(16), token_urlsafe(24)) if weakness(key)]

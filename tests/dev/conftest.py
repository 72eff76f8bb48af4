"""One inbox and one Chromium per file, both empty at the start of each test."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from support.browser import chromium
from support.inbox import Inbox, running

expect.set_options(timeout=20_000)  # other tests run beside these


@pytest.fixture(scope="module")
def shared_inbox() -> Iterator[Inbox]:
    with running() as inbox:
        yield inbox


@pytest.fixture
def inbox(shared_inbox: Inbox) -> Inbox:
    assert shared_inbox.http.delete("/api/v1/messages").status_code == 200
    return shared_inbox


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser

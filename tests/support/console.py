"""The console, as a browser uses it: without scripts, and a real one."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, Page, expect

from support.api import TestClient

# What is not there or wrong is said on the page; the dialogs of the inbox, which is in a frame, have a first button.
EXPECTED = "status of (404|422)|Blocked autofocusing"
COOKIE = "lms_mail_console"


def sign_in(browser: TestClient, key: str, **more: str) -> int:
    return int(browser.post("/console/sign-in", data={"key": key, **more}).status_code)


def token_of(browser: TestClient, place: str = "/console") -> str:
    """The token that every form of this session carries."""
    found = re.search(r'name="token" value="([0-9a-f]{64})"', browser.get(place).text)
    assert found
    return found[1]


@contextmanager
def visits(browser: Browser, url: str) -> Iterator[Callable[..., Page]]:
    """Opens pages of the console at `url`, signed in. A complaint of a script or a policy is an error."""
    complaints: list[str] = []
    contexts = []

    def visit(path: str = "/console", **options: Any) -> Page:
        contexts.append(context := browser.new_context(**options))
        context.set_default_timeout(20_000)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.goto(f"{url}{path}")
        page.get_by_label("API key").fill("all-key")
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("button", name="Sign out")).to_be_visible()
        return page

    yield visit
    for context in contexts:
        context.close()
    wrong = [text for text in complaints if not re.search(EXPECTED, text)]
    assert not wrong, wrong

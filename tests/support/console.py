"""The console, as a browser without scripts uses it."""

import re

from support.api import TestClient

COOKIE = "lms_mail_console"


def sign_in(browser: TestClient, key: str, **more: str) -> int:
    return int(browser.post("/console/sign-in", data={"key": key, **more}).status_code)


def token_of(browser: TestClient, place: str = "/console") -> str:
    """The token that every form of this session carries."""
    found = re.search(r'name="token" value="([0-9a-f]{64})"', browser.get(place).text)
    assert found
    return found[1]

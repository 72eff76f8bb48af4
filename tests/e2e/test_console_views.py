"""Every page of the console, light and dark, narrow and wide: for axe, and that nothing sticks out."""

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, Page

from mail.kinds import KINDS
from support.batches import people, start_batch
from support.browser import axe_violations, chromium
from support.console import visits
from support.processes import Api
from support.service import Service


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def api(service: Service) -> Api:
    return next(one for one in service.processes if isinstance(one, Api))


@pytest.fixture
def open_page(browser: Browser, api: Api) -> Iterator[Callable[..., Page]]:
    with visits(browser, api.url) as visit:
        yield visit


@pytest.fixture(scope="module")
def places(service: Service, api: Api) -> list[str]:
    """Every page there is, with something on it."""
    long = f"{'a' * 60}@{'b' * 60}.example.com"
    sent = service.send({"kind": "welcome", "to": long, "name": "Ada " * 25})
    service.smtp.reply("rcpt", "550 5.1.1 " + "nosuchuser" * 30, when=lambda to: to.startswith("unknown"))
    failed = service.send({"kind": "welcome", "to": "unknown@example.com", "name": "Ada"})
    for email_id, state in ((sent, "sent"), (failed, "failed")):
        service.wait_for_state(email_id, state)
    batch = start_batch(service.http, people(3), course_id="algebra-" * 12)
    service.http.post(f"/api/batches/{batch}/pause")
    return [
        *("", "/emails", f"/emails/{sent}", f"/emails/{failed}", "/emails?q=none@example.com", "/emails/nothing"),
        *("/batches", f"/batches/{batch}", "/batches/new", "/dead-letters", "/gallery"),
        *(f"/gallery/{kind}" for kind in KINDS),
        *("/actions", "/sign-in"),
    ]


@pytest.mark.parametrize("width", [375, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wrong_for_axe_and_nothing_sticks_out(
    open_page: Callable[..., Page], places: list[str], api: Api, scheme: str, width: int
) -> None:
    page = open_page(color_scheme=scheme, viewport={"width": width, "height": 700})
    for path in places:
        page.goto(f"{api.url}/console{path}")
        for details in page.locator("details").all():
            details.evaluate("one => one.open = true")
        assert axe_violations(page) == [], path
        for at in {width, 1600, 640, 320} if width == 1280 else {width}:
            page.set_viewport_size({"width": at, "height": 700})
            root = "document.documentElement"
            assert page.evaluate(f"{root}.scrollWidth - {root}.clientWidth") == 0, f"{path} at {at} px"
        page.set_viewport_size({"width": width, "height": 700})

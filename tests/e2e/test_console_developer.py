"""The console in a browser, for whoever writes mails: the gallery, the inbox and its chaos."""

import shutil
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
from playwright.sync_api import Browser, FrameLocator, Page, expect

from support.browser import axe_violations, chromium
from support.console import visits
from support.inbox import Inbox, running
from support.processes import BACKEND, Api, Valkey, Worker, free_port
from support.service import service_env
from support.tripwire import tripwire


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


class Address(NamedTuple):
    """Where an SMTP server listens."""

    host: str
    port: int


class Desk:
    """A service of a developer: mail goes to the inbox, and the templates are a copy that may be changed."""

    def __init__(self, inbox: Inbox, api: Api) -> None:
        self.templates = api.cwd / "templates" / "emails"
        self.inbox = inbox
        self.api = api


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    directory = tmp_path_factory.mktemp("desk")
    copy = directory / "backend"
    shutil.copytree(BACKEND, copy, ignore=shutil.ignore_patterns("__pycache__", ".env"))
    http_port = free_port()
    with Valkey(directory) as valkey:
        more = {"INBOX_PORT": str(http_port), "RETRY_BASE_SECONDS": "2", "RETRY_MAX_SECONDS": "2"}
        api = Api({}, directory, cwd=copy)
        origins = ["--framed-by", f"http://127.0.0.1:{api.port}", "--framed-by", f"http://localhost:{api.port}"]
        with running("--http-port", str(http_port), *origins) as inbox:
            env = service_env(valkey.url, Address("127.0.0.1", inbox.smtp_port), **more)
            api.env |= env
            with api, Worker(env, directory):
                yield Desk(inbox, api)


@pytest.fixture
def open_page(browser: Browser, desk: Desk) -> Iterator[Callable[..., Page]]:
    with visits(browser, desk.api.url) as visit:
        yield visit


def send_to_me(page: Page, desk: Desk, me: str) -> None:
    """From the gallery; the page of the email is open then."""
    page.goto(f"{desk.api.url}/console/gallery/welcome")
    page.get_by_label("Your address").fill(me)
    page.get_by_role("button", name="Send to me").click()
    expect(page.get_by_role("heading", level=1)).to_have_text(f"welcome to {me}")


def chaos(page: Page, desk: Desk, fault: str) -> FrameLocator:
    page.get_by_role("link", name="Inbox", exact=True).click()
    inbox = page.frame_locator("iframe")
    expect(inbox.get_by_role("status")).to_contain_text("mail")  # its scripts run
    inbox.get_by_role("button", name="Chaos").click()
    inbox.get_by_label(fault).check()
    inbox.get_by_role("button", name="Do it").click()
    expect(inbox.get_by_role("dialog")).to_have_count(0)
    return inbox


def test_a_developer_sees_a_retry_and_a_failure_and_mends_it(open_page: Callable[..., Page], desk: Desk) -> None:
    page = open_page()
    send_to_me(page, desk, "me@example.com")
    expect(page.locator(".sum")).to_contain_text("sent")
    page.get_by_role("link", name="See it in the inbox").click()
    inbox = page.frame_locator("iframe")
    expect(inbox.get_by_role("link", name="Welcome to Example Academy")).to_have_count(1)
    inbox.get_by_role("link", name="Welcome to Example Academy").click()
    expect(inbox.frame_locator("iframe").locator("body")).to_contain_text("Welcome, Ada Lovelace")

    chaos(page, desk, "Greylist")
    send_to_me(page, desk, "grey@example.com")
    expect(page.locator(".sum")).to_contain_text("retrying")
    expect(page.locator(".timeline")).to_contain_text("451")
    expect(page.locator(".sum")).to_contain_text("sent")

    chaos(page, desk, "Refuse")
    send_to_me(page, desk, "refused@example.com")
    expect(page.locator(".sum")).to_contain_text("failed")
    expect(page.locator(".sum")).to_contain_text("550")
    failed = page.url
    chaos(page, desk, "Nothing")
    page.goto(failed)
    page.get_by_role("button", name="Send again").click()
    expect(page.locator(".sum .state")).to_have_text("sent")
    assert desk.inbox.listing()["messages_count"] == 3


@pytest.mark.parametrize("width", [375, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_of_the_inbox(open_page: Callable[..., Page], desk: Desk, scheme: str, width: int) -> None:
    page = open_page("/console/inbox", color_scheme=scheme, viewport={"width": width, "height": 700})
    expect(page.frame_locator("iframe").get_by_role("button", name="Chaos")).to_be_visible()
    assert axe_violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.goto(f"http://localhost:{desk.api.port}/console/inbox")
    page.get_by_label("API key").fill("all-key")
    page.get_by_role("button", name="Sign in").click()
    expect(page.frame_locator("iframe").get_by_role("button", name="Chaos")).to_be_visible()


def test_nobody_else_may_frame_the_inbox(browser: Browser, desk: Desk) -> None:
    with tripwire() as other, browser.new_context() as context:
        page = context.new_page()
        other.pages["/"] = f"<iframe src='{desk.inbox.url.replace('127.0.0.1', 'localhost')}/'></iframe>"
        page.goto(other.url)
        expect(page.locator("iframe")).to_be_visible()
        assert [frame.url for frame in page.frames[1:]] == ["chrome-error://chromewebdata/"]


def test_fields_are_changed_as_one_types(open_page: Callable[..., Page], desk: Desk) -> None:
    page = open_page("/console/gallery/welcome")
    length = page.evaluate("history.length")
    shown = page.frame_locator(".html iframe:not(.coming)")
    expect(shown.locator("h1")).to_have_text("Welcome, Ada Lovelace")
    name = page.get_by_label("name", exact=True)
    name.fill("Grace")
    expect(shown.locator("h1")).to_have_text("Welcome, Grace")
    expect(page.get_by_role("heading", level=1)).to_contain_text("Grace")
    expect(name).to_be_focused()
    page.get_by_text("Text", exact=True).click()
    expect(page.locator("pre")).to_contain_text("Grace")
    name.fill("x" * 101)
    expect(page.locator("#wrong-name")).to_be_visible()
    expect(name).to_have_attribute("aria-invalid", "true")
    name.fill("Hedy")
    expect(page.locator("#wrong-name")).to_have_count(0)
    expect(page.locator("pre")).to_contain_text("Hedy")
    assert page.evaluate("history.length") == length
    with page.context.expect_page() as source:
        page.get_by_role("button", name="Source").click()
    expect(source.value.locator("body")).to_contain_text("Message-ID: <preview@")
    expect(source.value.locator("body")).to_contain_text("Hedy")


def test_a_changed_template_shows_by_itself(open_page: Callable[..., Page], desk: Desk) -> None:
    template = desk.templates / "welcome.html"
    written = template.read_text()
    page = open_page("/console/gallery/welcome")
    page.get_by_label("name", exact=True).fill("Grace")
    shown = page.frame_locator(".html iframe:not(.coming)")
    expect(shown.locator("h1")).to_have_text("Welcome, Grace")
    with page.expect_response(lambda answer: answer.url.endswith("/gallery/changes")):
        page.reload()
    page.get_by_label("name", exact=True).fill("Grace")
    expect(shown.locator("h1")).to_have_text("Welcome, Grace")
    try:
        template.write_text(written.replace("Welcome, ", "Come in, "))
        expect(shown.locator("h1")).to_have_text("Come in, Grace")
        template.write_text("{% block")
        expect(page.get_by_text("welcome.html, line 1")).to_be_visible()
        template.write_text(written)
        expect(shown.locator("h1")).to_have_text("Welcome, Grace")
    finally:
        template.write_text(written)

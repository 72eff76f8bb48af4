"""The console in a browser, on a real service."""

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from support.browser import axe_violations, chromium
from support.processes import Api
from support.service import Service
from support.tripwire import Tripwire, tripwire


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def api(service: Service) -> Api:
    service.worker(lanes="bulk")
    return next(one for one in service.processes if isinstance(one, Api))


@pytest.fixture
def open_page(browser: Browser, api: Api) -> Iterator[Callable[..., Page]]:
    """Opens a page of the console, signed in. What a script complains of, or the policy forbids, fails the test."""
    complaints: list[str] = []
    contexts = []

    def open_(path: str = "/console", **options: object) -> Page:
        contexts.append(context := browser.new_context(**options))
        context.set_default_timeout(20_000)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.goto(f"{api.url}{path}")
        page.get_by_label("API key").fill("all-key")
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("button", name="Sign out")).to_be_visible()
        return page

    yield open_
    for context in contexts:
        context.close()
    assert [text for text in complaints if "404" not in text] == []  # that of a page which is not there


def welcome(to: str, name: str = "Ada") -> dict[str, str]:
    return {"kind": "welcome", "to": to, "name": name}


def test_a_failure_shows_by_itself_and_is_sent_again(open_page: Callable[..., Page], service: Service) -> None:
    page = open_page()
    expect(page.get_by_role("heading", name="Recent failures")).to_be_visible()
    service.smtp.reply("rcpt", "550 5.1.1 no such user", when=lambda to: to.startswith("nobody"))
    service.send(welcome("nobody-live@example.com"))
    link = page.get_by_role("link", name="nobody-live@example.com")
    expect(link).to_be_visible()
    link.focus()
    service.send(welcome("nobody-else@example.com"))
    expect(page.get_by_role("link", name="nobody-else@example.com")).to_be_visible()
    expect(link).to_be_focused()  # what changes round it does not take the place away
    page.keyboard.press("Enter")
    expect(page.locator(".timeline")).to_contain_text("550 5.1.1 no such user")
    service.smtp.clear()
    page.get_by_role("button", name="Send again").click()
    expect(page.get_by_role("heading", name="nobody-live@example.com")).to_be_visible()
    record = service.wait_for_state(page.url.rpartition("/")[2], "sent")
    page.reload()
    expect(page.locator(".sum")).to_contain_text(record["smtp_reply"])


def test_an_announcement_from_a_file_with_a_bad_line(open_page: Callable[..., Page], service: Service) -> None:
    rows = [f"p{number}@example.com,Ada {number},Algebra" for number in range(500)]
    rows[250] = rows[250].replace("@", " at ")
    page = open_page("/console/batches")
    page.get_by_role("link", name="New announcement").click()
    file = {"name": "people.csv", "mimeType": "text/csv", "buffer": "\n".join(["to,name,course", *rows]).encode()}
    page.get_by_label("… or from a file").set_input_files(file)
    expect(page.locator(".faults")).to_contain_text("line 252, to")
    recipients = page.get_by_label("Recipients, as CSV with a header")
    recipients.fill(recipients.input_value().replace(" at ", "@"))
    expect(page.locator(".faults")).to_have_count(0)
    expect(page.locator("[data-remarks]")).to_contain_text("500")
    expect(page.frame_locator("[name=preview]").locator("body")).to_contain_text("Hello Ada 0")
    service.smtp.delay("dot", 0.2)
    page.get_by_label("To send it to all").fill("500")
    page.get_by_role("button", name="Send to all").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("News of {{ course }}")
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("button", name="Resume").click()
    service.smtp.clear()
    expect(page.locator(".progress")).to_contain_text("500 of 500 sent", timeout=60_000)
    expect(page.locator(".progress")).to_contain_text("finished")
    ours = [one.recipients[0] for one in service.smtp.messages if one.message["Subject"] == "News of Algebra"]
    assert sorted(ours) == sorted(f"p{number}@example.com" for number in range(500))


def test_times_are_the_readers(open_page: Callable[..., Page], service: Service) -> None:
    email_id = service.send(welcome("times@example.com"))
    page = open_page(f"/console/emails/{email_id}", timezone_id="Asia/Tokyo", locale="en-GB")
    time = page.locator(".timeline time").first
    exact = time.get_attribute("datetime")
    assert exact
    assert time.get_attribute("title") == exact
    shown = page.evaluate(
        "at => new Date(at).toLocaleString('en-GB', {timeZone: 'Asia/Tokyo', hour: '2-digit', minute: '2-digit'})",
        exact,
    )
    expect(time).to_contain_text(shown)


@pytest.mark.parametrize(("scheme", "width"), [("light", 375), ("dark", 1280)])
def test_nothing_is_wrong_for_axe_and_nothing_sticks_out(
    open_page: Callable[..., Page], service: Service, api: Api, scheme: str, width: int
) -> None:
    email_id = service.send(welcome(f"{'a' * 60}@{'b' * 60}.example.com", name="Ada " * 25))
    page = open_page(color_scheme=scheme, viewport={"width": width, "height": 700})
    for path in (
        "",
        "/emails",
        f"/emails/{email_id}",
        "/emails?q=none@example.com",
        "/emails/nothing",
        "/batches",
        "/dead-letters",
        "/gallery",
        "/gallery/custom",
        "/sign-in",
    ):
        page.goto(f"{api.url}/console{path}")
        assert axe_violations(page) == [], path
        for at in {width, 640, 320}:
            page.set_viewport_size({"width": at, "height": 700})
            root = "document.documentElement"
            assert page.evaluate(f"{root}.scrollWidth - {root}.clientWidth") == 0, f"{path} at {at} px"


def test_all_of_it_by_keyboard(open_page: Callable[..., Page], service: Service) -> None:
    service.send(welcome("keyboard@example.com"))
    page = open_page("/console/emails")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="To the content")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.get_by_label("Address or id")).to_be_focused()
    page.keyboard.type("keyboard@example.com")
    page.keyboard.press("Enter")
    expect(page.get_by_role("row")).to_have_count(2)


@pytest.fixture
def wire() -> Iterator[Tripwire]:
    with tripwire() as wire:
        yield wire


def test_hostile_words_do_nothing(open_page: Callable[..., Page], service: Service, api: Api, wire: Tripwire) -> None:
    hostile = f"</script><img src={wire.url}/a onerror=fetch('{wire.url}/b')><script>fetch('{wire.url}/c')</script>"
    service.smtp.reply("rcpt", f"550 5.1.1 {hostile}", times=1)
    email_id = service.send(
        {
            "kind": "custom",
            "to": "hostile@example.com",
            "subject": hostile[:120],
            "text": hostile + "\u202e{{ 7 * 7 }}",
        }
    )
    service.wait_for_state(email_id, "failed")
    page = open_page(f"/console/emails/{email_id}")
    expect(page.locator(".timeline")).to_contain_text("onerror=fetch")
    page.goto(f"{api.url}/console")
    expect(page.get_by_role("link", name="hostile@example.com")).to_be_visible()
    page.goto(
        f"{api.url}/console/emails?q=%3Cscript%3Efetch('{wire.url}/d')%3C/script%3E&kind=%22onfocus=alert(1)%20autofocus"
    )
    assert wire.requests == []

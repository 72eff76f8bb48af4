"""The console in a browser, on a real service."""

import itertools
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from support.batches import people, start_batch, wait_for_end
from support.browser import chromium
from support.console import visits
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
    with visits(browser, api.url) as visit:
        yield visit


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
    expect(page.frame_locator("[data-frame] iframe:not(.coming)").locator("body")).to_contain_text("Hello Ada 0")
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


def test_new_mails_come_to_the_list_but_never_under_the_mouse(
    open_page: Callable[..., Page], service: Service
) -> None:
    service.send(welcome("listed-1@example.com"))
    page = open_page("/console/emails?q=")
    first = page.get_by_role("row").filter(has_text="listed-1@example.com")
    expect(first).to_contain_text("sent")
    service.send(welcome("listed-2@example.com"))
    expect(page.get_by_role("row").nth(1)).to_contain_text("listed-2@example.com")
    page.get_by_role("row").nth(1).hover()
    service.wait_for_state(service.send(welcome("listed-3@example.com")), "sent")
    expect(page.get_by_text("Waits while you point at the list")).to_be_visible()
    expect(page.get_by_role("row").nth(1)).to_contain_text("listed-2@example.com")
    page.get_by_role("heading", name="Emails").hover()
    expect(page.get_by_role("row").nth(1)).to_contain_text("listed-3@example.com")
    page.get_by_label("Day").fill("2020-02-29")
    page.get_by_role("button", name="Search").click()
    expect(page.get_by_text("Nothing is found")).to_be_visible()


SHIFTS = """
window.shifts = [];
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) for (const { node, previousRect, currentRect } of entry.sources) {
    // A number that grows may begin further left.
    if (previousRect.y !== currentRect.y) window.shifts.push(node?.outerHTML);
  }
}).observe({ type: "layout-shift", buffered: true });
"""


def test_nothing_jumps_while_numbers_change(open_page: Callable[..., Page], service: Service) -> None:
    service.send(welcome("first@example.com"))
    page = open_page()
    page.evaluate(SHIFTS)
    service.smtp.delay("dot", 0.3)
    batch = start_batch(service.http, people(100))
    expect(page.locator(".lanes article").nth(2)).not_to_contain_text("0.0 mails a second")
    service.smtp.clear()
    wait_for_end(service.http, batch, timeout=60)
    assert page.evaluate("window.shifts") == []


def test_what_is_open_stays_open_while_it_is_live(open_page: Callable[..., Page], service: Service) -> None:
    service.smtp.reply("rcpt", "451 4.7.1 greylisted", when=lambda to: to == "busy@example.com")
    email_id = service.send(welcome("busy@example.com"))
    service.wait_for_state(email_id, "retrying")
    page = open_page(f"/console/emails/{email_id}")
    page.get_by_text("Cancel …").click()
    lines = page.locator(".timeline li")
    before = lines.count()
    expect(lines).not_to_have_count(before)
    expect(page.get_by_role("button", name="Cancel it")).to_be_visible()
    page.get_by_role("button", name="Cancel it").click()
    expect(page.locator(".sum")).to_contain_text("cancelled in the console by all")
    service.smtp.clear()


def test_dead_letters_are_sent_again_and_dropped(open_page: Callable[..., Page], service: Service) -> None:
    service.smtp.reply("rcpt", "550 5.7.1 not today, please", when=lambda to: to.startswith("later"))
    ids = [service.send(welcome(f"later-{number}@example.com")) for number in range(3)]
    for one in ids:
        service.wait_for_state(one, "failed")
    service.smtp.clear()
    page = open_page("/console/dead-letters")
    cause = page.locator("section", has_text="not today, please")
    cause.get_by_label("later-0@example.com").check()
    cause.get_by_role("button", name="Send again").click()
    expect(page.get_by_text("Done: 1.")).to_be_visible()
    service.wait_for_state(ids[0], "sent")
    cause.get_by_label("later-1@example.com").check()
    cause.get_by_text("Drop …").click()
    cause.get_by_role("button", name="Drop", exact=True).click()
    expect(page.get_by_label("Reason").locator("visible=true")).to_be_focused()  # the browser wants one
    page.get_by_label("Reason").locator("visible=true").fill("has left")
    cause.get_by_role("button", name="Drop", exact=True).click()
    expect(page.get_by_text("Done: 1.")).to_be_visible()
    assert service.record(ids[1])["error"] == "dropped in the console by all: has left"
    assert service.record(ids[2])["state"] == "failed"


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


def hostile(url: str) -> str:
    """Whatever runs, loads or leads somewhere by itself, if it may."""
    scripts = (f"fetch('{url}/{number}')" for number in itertools.count())
    return (
        f'</script></textarea></title><script>{next(scripts)}</script><img src=x onerror="{next(scripts)}">'
        f"<svg onload=\"{next(scripts)}\"><script>{next(scripts)}</script></svg><base href='{url}/'>"
        f'<a href="javascript:{next(scripts)}">here</a><iframe src="javascript:{next(scripts)}"></iframe>'
        f"<meta http-equiv=refresh content=\"0;url={url}/refresh\"><form action='{url}/form'></form>"
        f"<link rel=stylesheet href='{url}/style'><object data='{url}/object'></object>"
    )


def test_hostile_words_do_nothing(open_page: Callable[..., Page], service: Service, api: Api, wire: Tripwire) -> None:
    words = hostile(wire.url)
    service.smtp.reply("rcpt", f"550 5.1.1 {words}", when=lambda to: to == "hostile@example.com")
    mail = {
        "kind": "custom",
        "to": "hostile@example.com",
        "subject": words[:150],
        "text": words + "\u202e{{ 7 * 7 }}",
    }
    email_id = service.send(mail)
    service.wait_for_state(email_id, "failed")
    named = service.send(welcome("named@example.com", name="<script>alert(1)</script><img src=x onerror=alert(2)>"))
    service.smtp.clear()
    page = open_page(f"/console/emails/{email_id}")
    expect(page.locator(".timeline")).to_contain_text("onerror")
    expect(page.frame_locator("iframe").locator("body")).to_contain_text("7 * 7")
    page.goto(f"{api.url}/console/emails/{named}")
    expect(page.frame_locator("iframe").locator("body")).to_contain_text("<script>alert(1)</script>")
    page.goto(f"{api.url}/console/dead-letters")
    expect(page.locator("main")).to_contain_text("onerror")
    page.goto(f"{api.url}/console")
    expect(page.get_by_role("link", name="hostile@example.com")).to_be_visible()
    page.goto(
        f"{api.url}/console/emails?q=%3Cscript%3Efetch('{wire.url}/d')%3C/script%3E&kind=%22onfocus=alert(1)%20autofocus"
    )
    assert wire.requests == []


def test_a_hostile_mail_does_nothing_in_the_gallery(open_page: Callable[..., Page], api: Api, wire: Tripwire) -> None:
    page = open_page("/console/gallery/custom")
    huge = "<p>" + "very long " * 20_000 + "</p>"  # more than an address of a page can hold
    with page.expect_response(lambda answer: "/html" in answer.url and answer.request.method == "POST"):
        page.get_by_label("html", exact=True).fill(hostile(wire.url) + huge)
    frame = page.frame_locator(".html iframe:not(.coming)")
    expect(frame.locator("body")).to_contain_text("very long")
    here = frame.get_by_text("here", exact=True)
    if here.count():
        here.first.click()
    page.get_by_text("Without pictures").click()
    expect(page.frame_locator(".bare iframe:not(.coming)").locator("body")).to_contain_text("very long")
    assert wire.requests == []


def test_a_hostile_announcement_does_nothing(open_page: Callable[..., Page], wire: Tripwire) -> None:
    page = open_page("/console/batches/new")
    page.get_by_label("Subject").fill("{{ name }} <script>alert(1)</script>")
    rows = 'to,name\nada@example.com,"<img src=x onerror=alert(1)>"\n'
    page.get_by_label("Recipients, as CSV with a header").fill(rows)
    body = f"{hostile(wire.url)}\n\n[run](javascript:fetch('{wire.url}/markdown'))\n\nthe end of {{{{ name }}}}\n"
    page.get_by_label("Body, in Markdown").fill(body)
    shown = page.frame_locator("[data-frame] iframe:not(.coming)")
    expect(shown.locator("body")).to_contain_text("the end of <img")
    expect(shown.locator("body")).to_contain_text("[run](javascript")  # no link
    links = shown.get_by_role("link").all()
    assert links
    assert not [link for link in links if "script" in (link.get_attribute("href") or "")]
    assert wire.requests == []

"""Trouble on purpose: what the inbox answers then, and its switch on the page."""

import smtplib
import time
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from support.browser import axe_violations
from support.inbox import Inbox, running

MAIL = b"Subject: hello\r\n\r\nbody\r\n"


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    with running() as inbox:
        yield inbox


def trouble(inbox: Inbox, **wanted: Any) -> None:
    answer = inbox.http.put("/api/chaos", json=wanted)
    assert answer.status_code == 200, answer.text
    assert inbox.get("/api/chaos") == {"fault": "none", "probability": 1.0, "seconds": 5.0, **wanted}


def refusal(inbox: Inbox, to: str = "b@example.com") -> int:
    """The code that RCPT is refused with; 0 when the mail is taken."""
    try:
        inbox.send(MAIL, to=to)
    except smtplib.SMTPRecipientsRefused as refused:
        return refused.recipients[to][0]
    return 0


def test_all_is_well_at_first(inbox: Inbox) -> None:
    assert inbox.get("/api/chaos")["fault"] == "none"
    assert refusal(inbox) == 0


def test_refused(inbox: Inbox) -> None:
    trouble(inbox, fault="refuse")
    assert [refusal(inbox), refusal(inbox)] == [550, 550]
    trouble(inbox, fault="refuse", probability=0.5)
    codes = {refusal(inbox) for _ in range(60)}
    assert codes == {0, 550}
    trouble(inbox, fault="none")
    assert refusal(inbox) == 0


def test_greylisted(inbox: Inbox) -> None:
    trouble(inbox, fault="greylist")
    codes = [refusal(inbox, to) for to in ("a@example.com", "b@example.com", "a@example.com", "b@example.com")]
    assert codes == [451, 451, 0, 0]


def test_delayed(inbox: Inbox) -> None:
    trouble(inbox, fault="delay", seconds=0.6)
    began = time.monotonic()
    inbox.send(MAIL)
    assert time.monotonic() - began >= 0.6


def test_cut(inbox: Inbox) -> None:
    trouble(inbox, fault="cut")
    with pytest.raises(smtplib.SMTPServerDisconnected):
        inbox.send(MAIL)
    assert inbox.subjects() == ["hello"]


@pytest.mark.parametrize(
    "wrong", [{"fault": "explode"}, {"probability": 2}, {"seconds": -1}, {"seconds": 1e9}, {"other": 1}, [], "x"]
)
def test_what_cannot_be_done_is_refused(inbox: Inbox, wrong: object) -> None:
    assert inbox.http.put("/api/chaos", json=wrong).status_code == 400
    assert inbox.get("/api/chaos")["fault"] == "none"


def test_other_sites_cannot_switch_it_on(inbox: Inbox) -> None:
    answer = inbox.http.put("/api/chaos", json={"fault": "refuse"}, headers={"Origin": "https://evil.example"})
    assert answer.status_code == 403
    assert refusal(inbox) == 0


def test_the_switch_on_the_page(browser: Browser, inbox: Inbox) -> None:
    page = browser.new_page(viewport={"width": 375, "height": 800})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(inbox.url)
    page.get_by_role("button", name="Chaos").click()
    page.get_by_label("Refuse").check()
    assert axe_violations(page) == []
    page.get_by_role("button", name="Do it").click()
    expect(page.get_by_role("button", name="Chaos: refuse")).to_be_visible()
    assert refusal(inbox) == 550
    page.reload()
    expect(page.get_by_role("button", name="Chaos: refuse")).to_be_visible()
    page.get_by_role("button", name="Chaos: refuse").click()
    expect(page.get_by_label("Refuse")).to_be_checked()
    page.get_by_label("Nothing").check()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Chaos", exact=True)).to_be_visible()
    assert refusal(inbox) == 0
    page.close()
    assert errors == []

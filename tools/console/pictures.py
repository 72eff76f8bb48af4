"""Takes the pictures of the console that docs/ and the README show, of a service that is started for it.

    .venv/bin/python tools/console/pictures.py          writes docs/images/console-*.png; needs Debian's chromium

The same mails every time, but the times in the pictures are those of now.
"""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "backend"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from playwright.sync_api import Browser, Page, ViewportSize

from support.batches import start_batch
from support.browser import chromium
from support.inbox import Inbox, running
from support.processes import Api, Valkey, free_port, wait_until
from support.service import Service, service_env
from support.smtp_server import SmtpServer

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
WIDE: ViewportSize = {"width": 1280, "height": 860}
NARROW: ViewportSize = {"width": 375, "height": 760}
NAMES = ("Ada", "Bob", "Maria", "Chidi", "Eve", "Lars", "Noor", "Wei", "Zoë", "Omar")


@contextmanager
def school() -> Iterator[tuple[Service, Api, Inbox]]:
    """A service with both nodes, and an inbox that shows some of what its SMTP server took."""
    directory = Path(tempfile.mkdtemp(prefix="console-"))
    port = free_port()
    with SmtpServer() as smtp, Valkey(directory) as valkey:
        service = Service(valkey, smtp, service_env(valkey.url, smtp, INBOX_PORT=str(port)), directory)
        try:
            service.worker(lanes="critical,standard,bulk")
            api = service.api()
            with running("--http-port", str(port), "--framed-by", api.url) as inbox:
                yield service, api, inbox
        finally:
            service.close()


def fill(service: Service) -> dict[str, str]:
    """Mails of every kind of fate; the pages to look at, by the name of their picture."""
    smtp = service.smtp
    smtp.reply("rcpt", "550 5.1.1 no such user here", when=lambda to: to.startswith("bob"))
    smtp.reply("rcpt", "451 4.7.1 greylisted, come back later", when=lambda to: to.startswith("eve"))
    link = "https://lms.example.com/reset?token=q3nTq0Vw8m2Zt7Ls"
    for name in NAMES:
        service.send({"kind": "welcome", "to": address(name), "name": name})
    service.send({"kind": "password_reset", "to": address("Maria"), "name": "Maria", "reset_url": link})
    failed = service.send({"kind": "welcome", "to": address("Bob"), "name": "Bob"})
    service.wait_for_state(failed, "failed")
    smtp.delay("dot", 0.6)
    people = [
        {"to": f"{name.lower()}{number}@students.example.com", "name": name, "data": {"course": "Algebra"}}
        for number in range(60)
        for name in NAMES
    ]
    batch = start_batch(service.http, people, course_id="algebra-1")
    smtp.wait_until(lambda: len(smtp.messages) > 300, timeout=60)
    return {
        "overview": "/console",
        "emails": "/console/emails",
        "email": f"/console/emails/{failed}",
        "batch": f"/console/batches/{batch}",
        "announcement": "/console/batches/new",
        "dead-letters": "/console/dead-letters",
        "gallery": "/console/gallery",
        "kind": "/console/gallery/password_reset",
        "batches": "/console/batches",
        "actions": "/console/actions",
        "inbox": "/console/inbox",
    }


def refuse(browser: Browser, service: Service, api: Api) -> None:
    """What the overview says when the server takes no mail."""
    service.smtp.reply("mail", "535 5.7.8 bad credentials")
    service.send({"kind": "welcome", "to": address("Ada"), "name": "Ada"})
    wait_until(lambda: service.http.get("/health/ready").json().get("warnings"), what="the fault")
    with _signed_in(browser, f"{api.url}/console", "light", WIDE) as page:
        page.screenshot(path=IMAGES / "console-fault.png")


def address(name: str) -> str:
    return f"{name.lower().replace('ë', 'e')}@students.example.com"


def take(browser: Browser, api: Api, pages: dict[str, str]) -> None:
    """Each page wide and light; some dark, some narrow."""
    with _signed_in(browser, f"{api.url}{pages['email']}", "light", WIDE) as page:  # for the page of what was done
        page.get_by_text("Drop …").click()
        page.get_by_label("Reason").fill("has left the school")
        page.get_by_role("button", name="Drop it").click()
        page.goto(f"{api.url}/console/gallery/certificate")
        page.get_by_label("Your address").fill("maria@students.example.com")
        page.get_by_role("button", name="Send to me").click()
        page.get_by_role("heading", name="certificate").wait_for()
        page.goto(f"{api.url}{pages['batch']}")
        page.get_by_role("button", name="Send again to the failed").click()
        page.get_by_role("heading", level=1).wait_for()
    for name, path in pages.items():
        with _signed_in(browser, f"{api.url}{path}", "light", WIDE) as page:
            page.screenshot(path=IMAGES / f"console-{name}.png")
    with browser.new_context(viewport=WIDE) as context:
        page = context.new_page()
        page.goto(f"{api.url}/console/sign-in")
        page.screenshot(path=IMAGES / "console-sign-in.png")
    with _signed_in(browser, f"{api.url}{pages['overview']}", "dark", WIDE) as page:
        page.screenshot(path=IMAGES / "console-overview-dark.png")
    with _signed_in(browser, f"{api.url}{pages['email']}", "dark", NARROW) as page:
        page.screenshot(path=IMAGES / "console-email-phone.png")


@contextmanager
def _signed_in(browser: Browser, url: str, scheme: Literal["light", "dark"], size: ViewportSize) -> Iterator[Page]:
    with browser.new_context(color_scheme=scheme, viewport=size) as context:
        page = context.new_page()
        page.goto(url)
        page.get_by_label("API key").fill("all-key")
        page.get_by_role("button", name="Sign in").click()
        page.get_by_role("button", name="Sign out").wait_for()
        page.wait_for_timeout(800)  # what is live has come, and so have the frames
        yield page


def main() -> None:
    with school() as (service, api, inbox), chromium() as browser:
        pages = fill(service)
        for one in service.smtp.messages[:12]:
            inbox.send(one.data, to=list(one.recipients))
        take(browser, api, pages)
        refuse(browser, service, api)


if __name__ == "__main__":
    main()

"""A real Chromium for tests of pages, and axe, which finds what keeps people from using them."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from support.needs import missing
from support.processes import wait_until

AXE = Path(__file__).resolve().parents[2] / "tools/mails/node_modules/axe-core/axe.min.js"

OPTIONS = [
    "--no-sandbox",  # .ci/run is root, where Chromium refuses its own sandbox
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    # Nothing leaves this machine, whatever a page or the browser itself asks for.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
]


@contextmanager
def chromium() -> Iterator[Browser]:
    """Chromium, to take a fresh context from for each test."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_chromium(), args=OPTIONS)
        with _ending(browser):
            yield browser


@contextmanager
def chromium_profile(directory: Path) -> Iterator[BrowserContext]:
    """Chromium with a profile on disk, as people use it: in other contexts it does not connect ahead of requests."""
    with sync_playwright() as playwright:
        launch = playwright.chromium.launch_persistent_context
        context = launch(directory, executable_path=_chromium(), args=OPTIONS)
        with _ending(context):
            yield context


def axe_violations(page: Page) -> list[str]:
    """What axe finds wrong, with every rule and best practice on; frames are not entered."""
    if not AXE.exists():
        missing("axe-core is not installed: run ../../.venv/bin/npm ci in tools/mails")
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run({iframes: false})")
    assert found["passes"], "axe has looked at nothing"
    return [
        f"{rule['id']}: {rule['help']}: {node['html']} ({node['failureSummary']})"
        for rule in found["violations"]
        for node in rule["nodes"]
    ]


@contextmanager
def _ending(chromium: Browser | BrowserContext) -> Iterator[None]:
    """Close it, and see that none of its processes is left behind."""
    started = psutil.Process().children(recursive=True)
    try:
        yield
    finally:
        chromium.close()
        wait_until(lambda: not any(map(_is_chromium, started)), what="the end of all of Chromium's processes")


def _is_chromium(process: psutil.Process) -> bool:
    try:
        return "chrom" in process.name() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _chromium() -> str:
    names = [os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome"]
    for name in filter(None, names):
        if path := shutil.which(name):
            return path
    return missing("Chromium is not installed: apt-get install chromium, or name one in CHROMIUM")

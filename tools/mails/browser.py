"""What Chromium shows of a mail: colours, sizes, overflow, axe. Nothing is judged here.

No request leaves: every one is aborted, but for the logo, which is answered from here.
"""

import os
import subprocess
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from playwright.sync_api import Page, Playwright, Route, sync_playwright

from node import AXE
from png import indexed_png
from samples import LOGO_URL, Mail

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
ARGUMENTS = [
    "--no-sandbox",  # continuous integration runs as root, where Chromium refuses its own sandbox
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND",
]
FORCE_DARK = "--enable-features=WebContentsForceDark"
PROBE = Path(__file__).with_name("probe.js").read_text(encoding="utf-8")
LOGO = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="160" height="40"><rect width="40" height="40" rx="8" '
    'fill="#7a8699"/><path d="M10 30 20 10l10 20z" fill="#fff"/><rect x="50" y="12" width="110" height="16" rx="4" '
    'fill="#7a8699"/></svg>'
)

Scheme = Literal["light", "dark"]
PHONE, NARROW, WIDE = 375, 320, 1280
HEIGHT = 800
DARK_SCALE = 2  # a stroke of small type is then wide enough to hold pixels of its full colour


class View(NamedTuple):
    """One way to take a picture of a mail. `forced`: Chromium makes it dark, not the mail."""

    scheme: Scheme = "light"
    width: int = 680
    pictures: bool = True
    forced: bool = False


VIEWS = {
    "light": View(),
    "dark": View("dark"),
    "phone": View(width=PHONE),
    "pictures-off": View(pictures=False),
    "forced-dark": View(forced=True),
}


class Text(NamedTuple):
    """A piece of visible text. Colours are `#rrggbb`, `size` is in CSS px, `at` is a short selector."""

    text: str
    at: str
    ink: str
    behind: str
    contrast: float
    large: bool
    size: float

    def __str__(self) -> str:
        shown = self.text if len(self.text) <= 40 else self.text[:37] + "..."
        return f'{self.at} "{shown}"'


class Button(NamedTuple):
    """A button. `after` is all visible text behind it, without spaces; `shape` is how Outlook comes to its shape."""

    label: Text
    href: str
    height: float
    shape: str
    after: str


class Overflow(NamedTuple):
    """Pixels outside the window, and the element that reaches furthest."""

    pixels: int
    at: str


@dataclass
class Seen:
    """All that Chromium has to say of one mail. `violations` are axe's, by view."""

    light: list[Text]
    light_phone: list[Text]
    dark: list[Text]
    dark_phone: list[Text]
    forced: list[Text]
    forced_chromium: list[Text]
    buttons: list[Button]
    buttons_phone: list[Button]
    buttons_dark: list[Button]
    buttons_bare: list[Button]
    overflow: dict[str, Overflow]
    violations: dict[str, list[str]]
    structure: dict[str, Any]


class Inspector:
    """Looks at one mail after the other: in one tab, and in one of a browser that makes pages dark by itself."""

    def __init__(self, page: Page, dark_page: Page) -> None:
        self._page = page
        self._dark_page = dark_page
        if self._forced_by_chromium("<p>black on white</p>")[0].behind == "#ffffff":
            raise RuntimeError(f"{CHROMIUM} does not make pages dark with {FORCE_DARK}, so L6 cannot be measured")

    def see(self, mail: Mail) -> Seen:
        """Look at a mail in every view."""
        violations = {}
        overflow = {}

        self._open(mail.html, "light", WIDE)
        light, buttons = self._texts(), self._buttons()
        structure = self._page.evaluate("probe.structure()")
        violations["light, 1280 px"] = self._axe()
        self._resize(PHONE)
        light_phone, buttons_phone = self._texts(), self._buttons()
        violations["light, 375 px"] = self._axe()
        overflow["375 px"] = self._overflow()
        self._resize(NARROW)
        overflow["320 px"] = self._overflow()

        self._page.emulate_media(color_scheme="dark")
        self._resize(PHONE)
        dark_phone = self._texts()
        violations["dark, 375 px"] = self._axe()
        self._resize(WIDE)
        dark, buttons_dark = self._texts(), self._buttons()
        violations["dark, 1280 px"] = self._axe()

        self._open(mail.html, "light", PHONE)
        self._page.evaluate("probe.forcedDark()")
        forced = self._texts()
        forced_chromium = self._forced_by_chromium(mail.html)

        self._open(mail.html, "light", PHONE)
        self._page.evaluate("probe.withoutStyleElements()")
        overflow["375 px without <style>"] = self._overflow()
        self._page.evaluate("probe.withoutCssBackgrounds()")
        buttons_bare = self._buttons()

        return Seen(
            light=light,
            light_phone=light_phone,
            dark=dark,
            dark_phone=dark_phone,
            forced=forced,
            forced_chromium=forced_chromium,
            buttons=buttons,
            buttons_phone=buttons_phone,
            buttons_dark=buttons_dark,
            buttons_bare=buttons_bare,
            overflow=overflow,
            violations=violations,
            structure=structure,
        )

    def photograph(self, mail: Mail, view: View) -> bytes:
        """A PNG of the whole mail, with at most 256 colours."""
        page = self._dark_page if view.forced else self._page
        _open(page, mail.html, view.scheme, view.width)
        if not view.pictures:
            page.evaluate("probe.withoutPictures()")
        picture = b64encode(page.screenshot(full_page=True, scale="css")).decode()
        return indexed_png(**page.evaluate("probe.indexed", picture))

    def _forced_by_chromium(self, html: str) -> list[Text]:
        _open(self._dark_page, html, "light", PHONE)
        places = self._dark_page.evaluate("probe.places()")
        picture = b64encode(self._dark_page.screenshot(full_page=True)).decode()
        seen = self._dark_page.evaluate("([...given]) => probe.coloursIn(...given)", [picture, places, DARK_SCALE])
        return [Text(**piece) for piece in seen]

    def _open(self, html: str, scheme: Scheme, width: int) -> None:
        _open(self._page, html, scheme, width)

    def _resize(self, width: int) -> None:
        _resize(self._page, width)

    def _texts(self) -> list[Text]:
        return [Text(**piece) for piece in self._page.evaluate("probe.texts()")]

    def _buttons(self) -> list[Button]:
        return [
            Button(
                href=found.pop("href"),
                height=found.pop("height"),
                shape=found.pop("shape"),
                after=found.pop("after"),
                label=Text(**found),
            )
            for found in self._page.evaluate("probe.buttons()")
        ]

    def _overflow(self) -> Overflow:
        return Overflow(**self._page.evaluate("probe.overflow()"))

    def _axe(self) -> list[str]:
        if not self._page.evaluate("'axe' in window"):
            self._page.evaluate(AXE.read_text(encoding="utf-8"))
        found = self._page.evaluate("axe.run({ resultTypes: ['violations'] })")
        if not found["passes"]:
            raise RuntimeError("axe has looked at nothing")
        return [
            f"{node['target'][-1]}: {rule['help']} ({rule['id']}, {rule['impact']})"
            for rule in found["violations"]
            for node in rule["nodes"]
        ]


def _open(page: Page, html: str, scheme: Scheme, width: int) -> None:
    page.emulate_media(color_scheme=scheme)
    _resize(page, width)
    page.set_content(html)
    page.evaluate(PROBE)


def _resize(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": HEIGHT})


def version() -> str:
    """`Chromium 156.0.8078.79`."""
    said = subprocess.run([CHROMIUM, "--version"], capture_output=True, check=True, text=True).stdout
    return said.partition(" built on ")[0].strip()


def _answer(route: Route) -> None:
    if route.request.url == LOGO_URL:
        route.fulfill(content_type="image/svg+xml", body=LOGO)
    else:
        route.abort()


def _tab(playwright: Playwright, *arguments: str, scale: int = 1) -> Page:
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*ARGUMENTS, *arguments])
    page = browser.new_page(device_scale_factor=scale)
    page.route("**/*", _answer)
    return page


@contextmanager
def inspector() -> Iterator[Inspector]:
    """An inspector, whose browsers end with it."""
    with sync_playwright() as playwright:
        yield Inspector(_tab(playwright), _tab(playwright, FORCE_DARK, scale=DARK_SCALE))

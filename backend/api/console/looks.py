"""Cheap checks of one mail, to show beside it. What is measured with real tools is in tools/mails."""

import re
from collections.abc import Iterable, Mapping
from html.parser import HTMLParser
from typing import NamedTuple

from mail.brand import contrast
from mail.rendering import Rendered

LEAST_CONTRAST = 4.5  # WCAG 2.2, 1.4.3
CLIPPED_AT = 102_000  # bytes; Gmail shows no more of a mail's HTML


class Look(NamedTuple):
    """One thing that was looked at."""

    what: str
    found: str
    well: bool = True


class Ink(NamedTuple):
    """The colours of a text and of what is behind it, `#rrggbb`; "" for one that is not known."""

    text: str
    back: str


class _Reader(HTMLParser):
    """Reads what can be told of HTML that is styled as mails are: in attributes, for dark mode by classes."""

    def __init__(self, dark: Mapping[str, Mapping[str, str]]) -> None:
        super().__init__()
        self.links: list[str] = []
        self.pictures = 0
        self.nameless = 0
        self.language = ""
        self.inks: dict[bool, set[Ink]] = {False: set(), True: set()}
        self._dark = dark
        bare = ("", True, Ink("#000000", "#ffffff"), Ink("#ffffff", "#121212"))
        self._open: list[tuple[str, bool, Ink, Ink]] = [bare]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        match tag:
            case "a":
                self.links.append(given.get("href", ""))
            case "img":
                self.pictures += 1
                self.nameless += "alt" not in given
            case "html":
                self.language = given.get("lang", "")
        if tag in _VOID:
            return
        _, shown, light, dark = self._open[-1]
        style = _declared(given.get("style", ""))
        own = dict(style)
        for word in given.get("class", "").split():
            own |= self._dark.get(word, {})
        shown = shown and style.get("display") != "none" and tag not in {"head", "style", "script"}
        self._open.append((tag, shown, _inked(light, style), _inked(dark, own)))

    def handle_endtag(self, tag: str) -> None:
        if any(one[0] == tag for one in self._open):
            while self._open.pop()[0] != tag:
                pass

    def handle_data(self, data: str) -> None:
        _, shown, light, dark = self._open[-1]
        if shown and data.strip():
            self.inks[False].add(light)
            self.inks[True].add(dark)


_VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
_DARK = re.compile(r"@media \(prefers-color-scheme: dark\) \{(.*?)\n\}", re.DOTALL)
_RULE = re.compile(r"\.([\w-]+) \{([^}]*)\}")


def _declared(style: str) -> dict[str, str]:
    pairs = (one.partition(":") for one in style.split(";"))
    return {name.strip().lower(): value.replace("!important", "").strip().lower() for name, _, value in pairs}


def _inked(around: Ink, style: Mapping[str, str]) -> Ink:
    text, back = style.get("color", around.text), style.get("background-color", around.back)
    return Ink(*(one if re.fullmatch("#[0-9a-f]{6}", one) else "" for one in (text, back)))


def _least_contrast(inks: Iterable[Ink]) -> float:
    return min((contrast(*ink) for ink in inks if all(ink)), default=21.0)


def look_over(rendered: Rendered, message: bytes) -> list[Look]:
    """Size, links, pictures, text part and headers of one mail."""
    html = rendered.html or ""
    dark = _DARK.search(html)
    reader = _Reader({word: _declared(style) for word, style in _RULE.findall(dark[1])} if dark else {})
    reader.feed(html)
    size = len(html.encode())
    looks = [
        Look("Subject", f"{len(rendered.subject)} characters", 0 < len(rendered.subject) <= 78),
        Look("HTML", f"{size:,} bytes" if html else "none", size < CLIPPED_AT),
        Look("Message", f"{len(message):,} bytes"),
    ]
    if html:
        strange = [link for link in reader.links if not re.match(r"(https?://|mailto:)", link)]
        missing = [link for link in reader.links if link.startswith("http") and link not in rendered.text]
        looks += [
            Look(
                "Links",
                f"{len(reader.links)}; strange: {strange[0][:60]}" if strange else str(len(reader.links)),
                not strange,
            ),
            Look("Pictures", f"{reader.pictures}, {reader.nameless} without alt", not reader.nameless),
            *(
                Look(f"Contrast, {scheme}", f"at least {least:.1f} to 1", least >= LEAST_CONTRAST)
                for scheme, least in zip(("light", "dark"), map(_least_contrast, reader.inks.values()), strict=True)
            ),
            Look("Language", reader.language or "not said", bool(reader.language)),
            Look("Text has every link", "no" if missing else "yes", not missing),
        ]
    words = len(rendered.text.split())
    looks.append(Look("Text part", f"{words} words", words > 0))
    head = message.partition(b"\r\n\r\n")[0].decode(errors="replace")
    names = [line.partition(":")[0] for line in head.splitlines() if not line.startswith((" ", "\t"))]
    needed = {"Date", "From", "To", "Message-ID", "Subject", "MIME-Version"}
    looks.append(Look("Headers", ", ".join(names), needed <= set(names)))
    return looks

"""Cheap checks of one mail, to show beside it. What is measured with real tools is in tools/mails."""

import re
from html.parser import HTMLParser
from typing import NamedTuple

from mail.rendering import Rendered

CLIPPED_AT = 102_000  # bytes; Gmail shows no more of a mail's HTML


class Look(NamedTuple):
    """One thing that was looked at."""

    what: str
    found: str
    well: bool = True


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.pictures = 0
        self.nameless = 0
        self.language = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        match tag:
            case "a":
                self.links.append(given.get("href") or "")
            case "img":
                self.pictures += 1
                self.nameless += "alt" not in given
            case "html":
                self.language = given.get("lang") or ""


def look_over(rendered: Rendered, message: bytes) -> list[Look]:
    """Size, links, pictures, text part and headers of one mail."""
    html = rendered.html or ""
    reader = _Reader()
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

"""The free content of a mailing: subject, html and text with placeholders, taken apart once for all recipients. Pure.

HTML is sanitised before it is filled. What is left of it can hold a placeholder only in a text or in a quoted
attribute, so no value changes its structure, and the filled HTML need not be sanitised again.
"""

import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import NamedTuple

from mail.bodies import line_feeds, refuse_if_busy, sanitise, text_of
from mail.errors import FieldError, InvalidEmail
from mail.fields import MAX_BODY, is_visible
from mail.placeholders import PLACEHOLDER, Marks, Template, faults

ATTRIBUTE = '"'  # before the name of a placeholder that stands in an attribute
_MAX_ROUNDS = 5


class Filled(NamedTuple):
    """The content for one recipient. `html` is sanitised. `text` is None where nothing of the HTML makes words."""

    subject: str
    html: str | None
    text: str | None


@dataclass(frozen=True)
class Content:
    """`html` is sanitised, a name in an attribute has `ATTRIBUTE` before it; `text` is what was given, or else made
    of the HTML (`text_is_made`)."""

    subject: Template
    html: Template | None
    text: Template
    text_is_made: bool

    @classmethod
    def of(cls, subject: str, html: str | None, text: str | None) -> "Content":
        """Take valid fields apart.

        Raises:
            InvalidEmail: a placeholder is written wrongly or stands where none can be; names each field. Or the HTML
                is too large or too deep.
        """
        given = {"subject": subject, "html": html, "text": text}
        errors = [fault for field, value in given.items() if value is not None for fault in faults(field, value)]
        if errors:
            raise InvalidEmail(errors)
        if html is not None:
            refuse_if_busy(html)
        clean = _taken_apart(line_feeds(html)) if html is not None else None
        if clean is not None and len(kept_as_written("".join(clean.parts[::2]))) > MAX_BODY:
            raise InvalidEmail([FieldError("html", f"must have at most {MAX_BODY:,} characters when sanitised")])
        return cls(
            subject=Template.of(subject),
            html=clean,
            text=Template.of(line_feeds(text)) if text is not None else _in_words(clean),
            text_is_made=text is None,
        )

    @cached_property
    def line_feeds_added(self) -> int:
        """How much longer the HTML is in the form of `kept_as_written`."""
        return "".join(self.html.parts[::2]).count("<pre") if self.html is not None else 0

    def users(self, name: str) -> Iterator[str]:
        """The fields that use a placeholder."""
        if name in self.subject.names:
            yield "subject"
        if self.html is not None and (name in self.html.names or ATTRIBUTE + name in self.html.names):
            yield "html"
        if name in self.text.names and not self.text_is_made:
            yield "text"

    def names(self) -> set[str]:
        """Every placeholder that a recipient needs a value for."""
        html = self.html.names if self.html is not None else ()
        return {*self.subject.names, *self.text.names, *(name.removeprefix(ATTRIBUTE) for name in html)}

    def fill(self, values: Mapping[str, str]) -> Filled:
        text = self.text.fill(values)
        html = self.html.fill(_escaped(self.html, values)) if self.html is not None else None
        return Filled(self.subject.fill(values), html, text if not self.text_is_made or is_visible(text) else None)


def by_name(html: Template) -> Template:
    """The HTML of a content with every placeholder under its bare name."""
    return Template(tuple(part.removeprefix(ATTRIBUTE) if at % 2 else part for at, part in enumerate(html.parts)))


def kept_as_written(html: str) -> str:
    """Sanitised HTML in a form that is the same when it has been sanitised once more."""
    # A parser drops the line feed after <pre>, also if it is the first character of a value.
    return re.sub(r"<pre[^>]*>", r"\g<0>\n", html)


def _escaped(html: Template, values: Mapping[str, str]) -> dict[str, str]:
    """The values as the sanitiser would write them."""
    return {
        key: _escape(values[key[1:]]).replace('"', "&quot;") if key[0] == ATTRIBUTE else _escape(values[key])
        for key in set(html.names)
    }


def _escape(value: str) -> str:
    return value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\xa0", "&nbsp;")


def _taken_apart(html: str) -> Template:
    """HTML sanitised, with placeholders only where one is a text or a part of a quoted attribute."""
    # Nobody can write the token who does not know it. As a web address, a mark may also begin a link.
    token = f"https://m{secrets.token_hex(8)}x"
    numbers = count()
    marked = PLACEHOLDER.sub(lambda _: f"{token}{next(numbers)}x/", html)
    names = PLACEHOLDER.findall(html)
    clean = _stable(marked)
    mark = re.compile(f"{token}([0-9]+)x/")
    lost = {number for link in _links(marked) for number in mark.findall(link)} - set(mark.findall(clean))
    if lost:
        shown = ", ".join(
            f"{{{{ {name} }}}}" for name in dict.fromkeys(names[int(number)] for number in sorted(lost))
        )
        raise InvalidEmail(
            [
                FieldError(
                    "html",
                    f"the link or picture with {shown} has no address that a mail may have: begin it with https:// "
                    "(a link also with http:// or mailto:), or let one placeholder hold all of it",
                )
            ]
        )
    parts = mark.split(clean)
    inside = False
    for at in range(1, len(parts), 2):
        # The sanitiser escapes these two in texts and attributes, so they only ever begin and end a tag.
        opened, closed = parts[at - 1].rfind("<"), parts[at - 1].rfind(">")
        inside = opened > closed or (inside and opened == closed)
        parts[at] = ATTRIBUTE * inside + names[int(parts[at])]
    return Template(tuple(parts))


def _stable(html: str) -> str:
    """HTML that comes out of the sanitiser as it went in.

    Where an element was taken out, its content may nest in another way when it is parsed again.
    """
    clean = sanitise(html)
    for _ in range(_MAX_ROUNDS):
        again = sanitise(kept_as_written(clean))
        if again == clean:
            return clean
        clean = again
    raise InvalidEmail([FieldError("html", "must have its elements nested properly, each closed where it ends")])


_ADDRESS = re.compile(
    r"""<(?:a|img)\b[^<>]{0,2048}?\b(?:href|src)\s*=\s*(?:"[^"]{0,2048}|'[^']{0,2048}|[^\s"'>]{1,2048})""",
    re.IGNORECASE,
)


def _links(html: str) -> list[str]:
    """What is written as the address of a link or picture, comments left out."""
    first, *rest = html.split("<!--")
    return _ADDRESS.findall(first + "".join(part.partition("-->")[2] for part in rest))


def _in_words(html: Template | None) -> Template:
    """The plain text of sanitised HTML."""
    if html is None:
        return Template(("",))
    plain = by_name(html)
    marks = Marks(plain)
    return marks.template(text_of(plain.fill(marks.of)))

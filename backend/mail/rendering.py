"""Email -> subject, HTML part, text part. Pure: no settings, no clock, no network.

Subjects and templates are ours and run in Jinja; everything a caller sends is data. The subject and the body
of a custom mail are never compiled as a template, so `{{ 7*7 }}` in them arrives as those nine characters.
"""

import re
from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import nh3
from inscriptis import get_text
from inscriptis.css_profiles import CSS_PROFILES
from inscriptis.html_properties import Display
from inscriptis.model.config import ParserConfig
from inscriptis.model.html_document_state import HtmlDocumentState
from inscriptis.model.html_element import HtmlElement
from inscriptis.model.tag import CustomHtmlTagHandlerMapping
from jinja2 import (
    ChoiceLoader,
    DictLoader,
    Environment,
    FileSystemLoader,
    StrictUndefined,
    meta,
    nodes,
    select_autoescape,
)
from markupsafe import Markup

from mail.errors import FieldError, InvalidEmail
from mail.kinds import KINDS, AnyEmail, CustomEmail, Email

MAX_DEPTH = 60
"""How deep the HTML of a custom mail may nest: libxml2 drops, without a word, what lies below 255 levels, and one
table in another adds four (table, tbody, tr, td)."""


@dataclass(frozen=True, slots=True)
class Brand:
    """The sender as the reader knows it. `address` is postal and may be empty; `color` is `#rrggbb`."""

    name: str
    url: str
    support_email: str
    address: str
    color: str

    @property
    def on_color(self) -> str:
        """Black or white, whichever reads better on `color`: never under 4.58:1 (WCAG 2.2, 1.4.3)."""
        channels = [int(self.color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
        red, green, blue = (
            channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4 for channel in channels
        )
        luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
        return "#ffffff" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "#000000"


class Rendered(NamedTuple):
    """What the recipient reads. Lines end in a bare line feed; the message builder makes CRLF of it."""

    subject: str
    html: str | None
    text: str


class Renderer:
    """Renders every kind. Build it once; threads may share it.

    `templates` is the directory that holds `<kind>.html` and `<kind>.txt`. `auto_reload` looks at the files
    before each use, for people who are writing them.
    """

    def __init__(self, templates: Path, brand: Brand, *, auto_reload: bool = False) -> None:
        subjects = {
            f"{word}.subject": source
            for word, kind in KINDS.items()
            if isinstance(source := getattr(kind, "subject", None), str)
        }
        self._loader = ChoiceLoader([FileSystemLoader(templates), DictLoader(subjects)])
        self._environment = Environment(
            loader=self._loader,
            autoescape=select_autoescape(["html"], default_for_string=False),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
            auto_reload=auto_reload,
        )
        self._environment.globals["brand"] = brand

    def render(self, email: AnyEmail) -> Rendered:
        """Render one email.

        Raises:
            InvalidEmail: the HTML of a custom mail nests deeper than `MAX_DEPTH`.
            jinja2.TemplateError: a template is wrong (`UndefinedError`, `TemplateNotFound`, ...). It is not
                wrapped: no retry mends it, so delivery must not take it for a fault of the server.
        """
        fields = {name: getattr(email, name) for name in email.template_fields()}
        if email.valid_for is not None:
            fields["valid_for"] = in_words(email.valid_for)
        if isinstance(email, CustomEmail):
            fields["html"], fields["text"] = _bodies(email)
        else:
            fields["subject"] = self._part(email.kind, "subject", fields)
        return Rendered(
            subject=fields["subject"],
            html=self._part(email.kind, "html", fields),
            text=self._part(email.kind, "txt", fields),
        )

    def fields_used(self, kind: type[Email]) -> set[str]:
        """Which variables the subject and the templates of a kind read, those of their bases included.

        `brand`, `subject` and, where the kind has it, `valid_for` are given to every template and left out.
        """
        parts = ("html", "txt") if "subject" in kind.model_fields else ("html", "txt", "subject")
        pending = [f"{kind.name_of_kind()}.{part}" for part in parts]
        seen: set[str] = set()
        used: set[str] = set()
        while pending:
            name = pending.pop()
            if name in seen:
                continue
            seen.add(name)
            tree = self._environment.parse(self._loader.get_source(self._environment, name)[0])
            used |= meta.find_undeclared_variables(tree) - {found.target for found in tree.find_all(nodes.Import)}
            pending += [found for found in meta.find_referenced_templates(tree) if found]
        given = {"brand", "subject"} | ({"valid_for"} if kind.valid_for is not None else set())
        return used - given

    def _part(self, word: str, part: str, fields: dict[str, Any]) -> str:
        return _line_feeds(self._environment.get_template(f"{word}.{part}").render(fields))


def in_words(period: timedelta) -> str:
    """A period as a reader would say it: `45 minutes`, `1 hour`, `24 hours`, `3 days`."""
    minutes = int(period.total_seconds() // 60)
    count, unit = minutes, "minute"
    if minutes % 1440 == 0 and minutes > 1440:
        count, unit = minutes // 1440, "day"
    elif minutes % 60 == 0:
        count, unit = minutes // 60, "hour"
    return f"{count} {unit}" if count == 1 else f"{count} {unit}s"


def sanitise(html: str) -> str:
    """What may be shown of HTML that came from outside: text, structure, http(s) and mailto links, pictures.

    What is not allowed is left out without a word; relative links lose their target, for a mail has no base.

    Raises:
        InvalidEmail: it nests deeper than `MAX_DEPTH`.
    """
    if _depth(html) > MAX_DEPTH:
        raise InvalidEmail([FieldError("html", f"must not nest more than {MAX_DEPTH} elements")])
    # A character reference (`&#8;`, `&#13;`) smuggles past the field what the field refuses.
    return _CONTROL.sub("", _line_feeds(_cleaner.clean(html)))


def text_of(html: str) -> str:
    """Sanitised HTML as plain text, a link as `label (https://...)`."""
    # inscriptis hangs its canvas on the "body" style it is given: with a shared one, two threads would write
    # into each other's mail.
    styles = {**_STYLES, "body": HtmlElement(display=Display.inline)}
    config = ParserConfig(css=styles, display_images=True, custom_html_tag_handler_mapping=_LINKS)
    text = _SAME_LABEL.sub(r"\1", get_text(html, config))
    lines = "\n".join(line.rstrip() for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", lines).strip("\n")


def paragraphs(text: str) -> str:
    """Plain text as HTML: blank lines part paragraphs, single line breaks stay."""
    blocks = re.split(r"\n\s*\n", _line_feeds(text).strip())
    return Markup("\n").join(
        Markup('<p dir="auto">{}</p>').format(Markup("<br>\n").join(block.split("\n"))) for block in blocks
    )


def _bodies(email: CustomEmail) -> tuple[str, str]:
    html = sanitise(email.html) if email.html is not None else paragraphs(email.text or "")
    text = email.text if email.text is not None else text_of(html)
    return html, _line_feeds(text).strip("\n")


def _line_feeds(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


# The parser's time grows with the square of the depth: half a minute for 500 kB that only open <div>.
# Left out of the count: what is empty, and what HTML lets an author leave open because its kind cannot nest.
_NESTING = re.compile(
    r"<(/?)(?!(?:area|br|col|dd|dt|hr|img|input|li|link|meta|option|p|source|t[drh]|tbody|tfoot|thead|wbr)\b)"
    r"([a-z][a-z0-9]*)"
)


def _depth(html: str) -> int:
    """How deep the elements nest, in one pass and before any parser. What is never closed counts to the end."""
    unclosed: Counter[str] = Counter()
    depth = deepest = 0
    for slash, tag in _NESTING.findall(html.lower()):
        if not slash:
            unclosed[tag] += 1
            depth += 1
            deepest = max(deepest, depth)
        elif unclosed[tag]:
            unclosed[tag] -= 1
            depth -= 1
    return deepest


def _only_web_pictures(tag: str, attribute: str, value: str) -> str | None:
    """A picture is fetched from the web; `mailto:` is for links."""
    if tag == "img" and attribute == "src" and not value.lower().startswith(("http://", "https://")):
        return None
    return value


_cleaner = nh3.Cleaner(
    tags={
        *(
            "a",
            "abbr",
            "b",
            "code",
            "del",
            "em",
            "i",
            "ins",
            "q",
            "s",
            "small",
            "span",
            "strong",
            "sub",
            "sup",
        ),
        *("blockquote", "br", "div", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "img", "p", "pre", "u"),
        *("dd", "dl", "dt", "li", "ol", "ul"),
        *("caption", "table", "tbody", "td", "tfoot", "th", "thead", "tr"),
    },
    # Their content is no text for readers. Of every other foreign element the content stays.
    clean_content_tags={"script", "style", "title", "iframe", "object", "noscript", "template", "textarea"},
    attributes={
        "*": {"dir", "lang", "title"},
        "a": {"href"},
        "img": {"src", "alt", "width", "height"},
        "ol": {"start"},
        "td": {"colspan", "rowspan"},
        "th": {"colspan", "rowspan"},
    },
    attribute_filter=_only_web_pictures,
    # A link of the browser's own blue cannot be read on a dark page; a wide picture would widen the page.
    set_tag_attribute_values={
        "a": {"style": "color:inherit"},
        "img": {"style": "max-width:100%;height:auto"},
    },
    link_rel=None,
    url_schemes={"http", "https", "mailto"},
    url_relative="deny",
)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def _link_starts(state: HtmlDocumentState, attributes: dict[str, str]) -> None:
    state.link_target = attributes.get("href", "").removeprefix("mailto:")


def _link_ends(state: HtmlDocumentState) -> None:
    if state.link_target:
        state.tags[-1].write(f" ({state.link_target})")


_LINKS = CustomHtmlTagHandlerMapping({"a": _link_starts}, {"a": _link_ends})
_SAME_LABEL = re.compile(r"(?<!\S)(\S+) \(\1\)")
_STYLES = CSS_PROFILES["strict"] | {
    "blockquote": HtmlElement(display=Display.block, margin_before=1, margin_after=1, padding_inline=4),
    "table": HtmlElement(display=Display.block, margin_before=1, margin_after=1),
}

"""The body of a custom mail: HTML that may be shown, and the plain text that belongs to it. Pure."""

import re
from collections import Counter

import nh3
from inscriptis import get_text
from inscriptis.css_profiles import CSS_PROFILES
from inscriptis.html_properties import Display
from inscriptis.model.config import ParserConfig
from inscriptis.model.html_document_state import HtmlDocumentState
from inscriptis.model.html_element import HtmlElement
from inscriptis.model.tag import CustomHtmlTagHandlerMapping
from markupsafe import escape

from mail.errors import FieldError, InvalidEmail

# The type scale of templates/emails/_base.html. No colour of text: a link of the browser's own blue cannot be read
# on a dark page. The grey of a line has 3:1 on the light card and on the dark one.
STYLES = {
    "a": "color:inherit",
    "blockquote": "margin:0 0 16px;padding:0 16px;border-left:4px solid #87909d",
    "h1": "margin:0 0 20px;font-size:28px;line-height:1.25;font-weight:700",
    "h2": "margin:28px 0 12px;font-size:20px;line-height:1.35;font-weight:700",
    "h3": "margin:24px 0 8px;font-size:17px;line-height:1.4;font-weight:700",
    "h4": "margin:24px 0 8px;font-size:16px;font-weight:700",
    "hr": "margin:24px 0;border:0;border-top:1px solid #87909d",
    "img": "max-width:100%;height:auto",
    "pre": "margin:0 0 16px;font-size:14px;white-space:pre-wrap",
    "small": "font-size:14px",
    "sub": "font-size:13px",
    "sup": "font-size:13px",
    "td": "padding:6px 12px 6px 0;vertical-align:top",
    "th": "padding:6px 12px 6px 0;vertical-align:top;text-align:inherit",
}
MAX_DEPTH = 60
"""How deep the HTML of a custom mail may nest: libxml2 drops, without a word, what lies below 255 levels, and one
table in another adds four (table, tbody, tr, td)."""
MAX_TAGS = 20_000
"""The most tags in the HTML of a custom mail: a parser written in Python takes ten microseconds for each."""


def refuse_if_busy(html: str) -> None:
    """Look at HTML as its author wrote it, before any parser does.

    Raises:
        InvalidEmail: it has more than `MAX_TAGS`.
    """
    if html.count("<") > MAX_TAGS:
        raise InvalidEmail([FieldError("html", f"must have at most {MAX_TAGS:,} tags")])


def sanitise(html: str) -> str:
    """What may be shown of HTML that came from outside: text, structure, http(s) and mailto links, pictures.

    What is not allowed is left out without a word; relative links lose their target, for a mail has no base. Of
    several h1 the first stays one: screen readers take it for the title of the mail.

    Raises:
        InvalidEmail: it nests deeper than `MAX_DEPTH`.
    """
    if _depth(html) > MAX_DEPTH:
        raise InvalidEmail([FieldError("html", f"must not nest more than {MAX_DEPTH} elements")])
    # A character reference (`&#8;`, `&#13;`) smuggles past the field what the field refuses.
    return _one_h1(_CONTROL.sub("", line_feeds(_cleaner.clean(html))))


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
    blocks = re.split(r"\n\s*\n", str(escape(line_feeds(text).strip())))
    return "\n".join('<p dir="auto">{}</p>'.format(block.replace("\n", "<br>\n")) for block in blocks)


def line_feeds(text: str) -> str:
    """Every line end as a bare line feed."""
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


def _one_h1(html: str) -> str:
    """Sanitised HTML in which every h1 but the first has become an h2."""
    first, end, rest = html.partition("</h1>")
    later = _H1.sub(lambda tag: tag[0].replace("h1", "h2", 1).replace(STYLES["h1"], STYLES["h2"]), rest)
    return first + end + later


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
        "th": {"colspan", "rowspan", "scope"},
    },
    attribute_filter=_only_web_pictures,
    set_tag_attribute_values={tag: {"style": style} for tag, style in STYLES.items()},
    link_rel=None,
    url_schemes={"http", "https", "mailto"},
    url_relative="deny",
)
_H1 = re.compile(r"</?h1\b[^>]*>")
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

"""Email -> subject, HTML part, text part. Pure: no settings, no clock, no network.

Subjects and templates are ours and run in Jinja; everything a caller sends is data. The subject and the body
of a custom mail are never compiled as a template, so `{{ 7*7 }}` in them arrives as those nine characters.
"""

import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import structlog
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
from jinja2.filters import do_truncate
from markupsafe import escape

from mail.bodies import line_feeds, paragraphs, sanitise, text_of
from mail.brand import Brand
from mail.kinds import KINDS, AnyEmail, CustomEmail, Email
from mail.mailing import Mailing, Recipient
from mail.placeholders import Template

PREVIEW = 140  # characters of a custom mail that an inbox shows beside its subject

logger = structlog.get_logger(__name__)


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
            finalize=_written,
        )
        self.auto_reload = auto_reload
        self._environment.globals |= {"brand": brand, "light": brand.light, "dark": brand.dark}

    def render(self, email: AnyEmail, *, valid_for: timedelta | None = None) -> Rendered:
        """Render one email.

        Args:
            email: any kind.
            valid_for: how long the link in it lives, where that is not what its kind says.

        Raises:
            InvalidEmail: the HTML of a custom mail nests deeper than `MAX_DEPTH`.
            jinja2.TemplateError: a template is wrong (`UndefinedError`, `TemplateNotFound`, ...). It is not
                wrapped: no retry mends it, so delivery must not take it for a fault of the server.
        """
        if isinstance(email, CustomEmail):
            html = sanitise(email.html) if email.html is not None else None
            fields = self._custom_fields(email.subject, html, email.text)
        else:
            fields = {name: getattr(email, name) for name in email.template_fields()}
            if email.valid_for is not None:
                fields["valid_for"] = in_words(valid_for or email.valid_for)
            fields["subject"] = self._part(email.kind, "subject", fields)
        return Rendered(
            subject=fields["subject"],
            html=self._part(email.kind, "html", fields),
            text=self._part(email.kind, "txt", fields),
        )

    def prepare(self, mailing: Mailing) -> "Prepared":
        """What is needed to render the mails of a mailing fast; the templates run once, here.

        Raises:
            jinja2.TemplateError: as `render`.
        """
        return Prepared(self, mailing)

    def layout(self, mailing: Mailing) -> "Layout | None":
        """The templates of a mailing, run with a mark in place of each field; None where they look into one.

        Raises:
            jinja2.TemplateError: as `render`.
        """
        kind = KINDS[mailing.kind]
        fields: dict[str, Any] = {name: _Field(name) for name in kind.template_fields()}
        if mailing.content is not None:
            fields["html"] = _SafeField("html")
            shown = mailing.content.html
            fields |= {"preview": _Field("preview"), "has_heading": shown is not None and _has_heading(*shown.parts)}
        elif not all(kind.model_fields[name].is_required() for name in fields):
            return None
        try:
            subject = self._part(mailing.kind, "subject", fields) if mailing.content is None else _mark("subject")
            fields["subject"] = _Field("subject")
            html, text = (self._part(mailing.kind, part, fields) for part in ("html", "txt"))
        except _FieldUsed:
            return None
        return Layout(
            subject=Template.of(subject, _MARK),
            html=Template.of(html, _MARK),
            text=Template.of(text, _MARK),
            safe=frozenset(name for name, field in fields.items() if isinstance(field, _SafeField)),
        )

    def fields(self, mailing: Mailing, recipient: Recipient) -> dict[str, Any]:
        """What the layout of a mailing is filled with for a valid recipient."""
        filled = mailing.filled(recipient)
        return self._custom_fields(*filled) if filled is not None else mailing.values(recipient)

    def fields_used(self, kind: type[Email]) -> set[str]:
        """Which variables the subject and the templates of a kind read, those of their bases included.

        Left out is what a template is given beside them: `brand`, `light`, `dark`, `subject`, `valid_for` where the
        kind has it, and of a custom mail `preview` and `has_heading`.
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
        given = {"brand", "light", "dark", "subject"}
        if kind.valid_for is not None:
            given.add("valid_for")
        if kind is CustomEmail:
            given |= {"preview", "has_heading"}
        return used - given

    def _custom_fields(self, subject: str, html: str | None, text: str | None) -> dict[str, Any]:
        """What the templates of a custom mail get; `html` is sanitised."""
        shown = html if html is not None else paragraphs(text or "")
        words = line_feeds(text if text is not None else text_of(shown)).strip("\n")
        return {
            "subject": subject,
            "html": shown,
            "text": words,
            "preview": do_truncate(self._environment, words, PREVIEW),
            "has_heading": _has_heading(shown),
        }

    def _part(self, word: str, part: str, fields: dict[str, Any]) -> str:
        return line_feeds(self._environment.get_template(f"{word}.{part}").render(fields))


def in_words(period: timedelta) -> str:
    """A period as a reader would say it: `45 minutes`, `1 hour`, `24 hours`, `3 days`.

    To the minute up to two hours, then only whole hours and, beyond two days, whole days: never more than it is.
    """
    minutes = max(1, round(period.total_seconds() / 60))
    count, unit = minutes, "minute"
    if minutes >= 2880:
        count, unit = minutes // 1440, "day"
    elif minutes >= 120 or minutes == 60:
        count, unit = minutes // 60, "hour"
    return f"{count} {unit}" if count == 1 else f"{count} {unit}s"


def _has_heading(*html: str) -> bool:
    return any("<h1" in part for part in html)


class Layout(NamedTuple):
    """The subject, HTML and text of a kind of mail, with the names of the fields where their values go."""

    subject: Template
    html: Template
    text: Template
    safe: frozenset[str]
    """The names of values that are HTML already."""

    def fill(self, fields: Mapping[str, str]) -> Rendered:
        subject = self.subject.fill(fields)
        given = {**fields, "subject": subject}
        escaped = {name: given[name] if name in self.safe else escape(given[name]) for name in set(self.html.names)}
        return Rendered(subject, self.html.fill(escaped), self.text.fill(given))


class Prepared:
    """Renders the mails of one mailing: what `Renderer.render` makes of each, in a fraction of the time.

    The first mail is rendered both ways. Where that makes a difference, or where a template looks into a field
    (a condition, a filter), every mail is rendered in the slow way. Threads may share it.
    """

    def __init__(self, renderer: Renderer, mailing: Mailing) -> None:
        self.mailing = mailing
        self._renderer = renderer
        self._layout = renderer.layout(mailing)
        self._compared = False

    def render(self, recipient: Recipient) -> Rendered:
        """Render the mail to a recipient whom `Check` has accepted.

        Raises:
            jinja2.TemplateError: as `Renderer.render`.
        """
        layout = self._layout
        if layout is None:
            return self._renderer.render(self.mailing.email(recipient))
        rendered = layout.fill(self._renderer.fields(self.mailing, recipient))
        if not self._compared:
            whole = self._renderer.render(self.mailing.email(recipient))
            if whole != rendered:
                logger.warning(
                    "templates.slow",
                    kind=self.mailing.kind,
                    hint="they look into their fields, so every mail of a batch is rendered whole",
                )
                self._layout = None
            self._compared = True
            return whole
        return rendered


# Private-use characters, which no template of ours has.
_MARK = re.compile("\U000f0000(\\w+)\U000f0001")


def _mark(name: str) -> str:
    return f"\U000f0000{name}\U000f0001"


class _FieldUsed(Exception):
    """A template does more with a field than write it out."""


class _Field:
    """Stands for a value of which only the place is wanted. Whatever looks at it raises."""

    def __init__(self, name: str) -> None:
        self.name = name

    def _used(self, *_: object) -> NoReturn:
        raise _FieldUsed

    __bool__ = __len__ = __eq__ = __str__ = __iter__ = __contains__ = __getattr__ = __getitem__ = _used
    __lt__ = __gt__ = __add__ = __mod__ = __call__ = __hash__ = __format__ = _used


class _SafeField(_Field):
    """A value that is HTML already; Jinja's filter `safe` may be used on it."""

    def __html__(self) -> str:
        return _mark(self.name)


def _written(value: Any) -> Any:
    """What Jinja writes for a value."""
    return _mark(value.name) if isinstance(value, _Field) else value

"""Email -> subject, HTML part, text part. Pure: no settings, no clock, no network.

Subjects and templates are ours and run in Jinja; everything a caller sends is data. The subject and the body
of a custom mail are never compiled as a template, so `{{ 7*7 }}` in them arrives as those nine characters.
"""

from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

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

from mail.bodies import line_feeds, paragraphs, sanitise, text_of
from mail.brand import Brand
from mail.kinds import KINDS, AnyEmail, CustomEmail, Email


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
        fields = {name: getattr(email, name) for name in email.template_fields()}
        if email.valid_for is not None:
            fields["valid_for"] = in_words(valid_for or email.valid_for)
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

        `brand`, `light`, `dark`, `subject` and, where the kind has it, `valid_for` are given to every template and
        left out.
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
        given = {"brand", "light", "dark", "subject"} | ({"valid_for"} if kind.valid_for is not None else set())
        return used - given

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


def _bodies(email: CustomEmail) -> tuple[str, str]:
    html = sanitise(email.html) if email.html is not None else paragraphs(email.text or "")
    text = email.text if email.text is not None else text_of(html)
    return html, line_feeds(text).strip("\n")

"""A mailing: what all recipients of a batch share, and what each one of them brings. Pure."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pydantic import TypeAdapter, ValidationError

from mail import kinds
from mail.content import Content, Filled, kept_as_written
from mail.errors import FieldError, InvalidEmail
from mail.fields import MAX_BODY, Address, HeaderText, Name, header_text, is_visible
from mail.kinds import KINDS, AnyEmail, CustomEmail, Email
from mail.placeholders import NAME, Template

MAX_KEYS = 50
MAX_VALUE = 2_048
MAX_NUMBER_BITS = 1_024
CUSTOM = CustomEmail.name_of_kind()

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
# A spreadsheet may leave a byte order mark in its first cell. HTML parsers drop one at the beginning of a text.
_LINE_ENDS = re.compile(r"\r\n?|\ufeff")
_UNFIT_FOR_SUBJECT = re.compile(r"[\n\t\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_NOT_IN_SUBJECT = "line breaks, tabs, or characters that change the direction of text"
_address: TypeAdapter[str] = TypeAdapter(Address)
_name: TypeAdapter[str] = TypeAdapter(Name)
_header_text: TypeAdapter[str] = TypeAdapter(HeaderText)


BODIES = frozenset({"subject", "html", "text"})
NO_PLACEHOLDER = "takes no {{ placeholders }}: it is the same for all recipients"


@dataclass(frozen=True, slots=True)
class Recipient:
    """One person of a batch. `data` holds the values of placeholders, or fields of the kind, as text."""

    to: str
    name: str | None = None
    data: Mapping[str, str] = field(default_factory=dict)

    def stored(self) -> list[Any]:
        """As JSON: `[to]`, `[to, name]` or `[to, name, data]`."""
        if self.data:
            return [self.to, self.name, dict(self.data)]
        return [self.to] if self.name is None else [self.to, self.name]

    @classmethod
    def restored(cls, stored: list[Any]) -> "Recipient":
        return cls(*stored)


@dataclass(frozen=True)
class Mailing:
    """What all recipients share.

    Args:
        kind: the word of a kind; "custom" for free content.
        fields: validated: `subject`, `html`, `text` with placeholders, or fields of the kind; and `reply_to`,
            `from_name`.
    """

    kind: str
    fields: Mapping[str, Any]

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> "Mailing":
        """Build one from plain data. Without a `kind` it is free content.

        Raises:
            InvalidEmail: names every field at fault.
        """
        word = CUSTOM if data.get("kind") is None else data["kind"]
        given = {name: value for name, value in data.items() if name != "kind" and value is not None}
        kind = KINDS.get(word) if isinstance(word, str) else None
        if kind is None or kind.secret_fields():
            why = (
                "" if kind is None else f"{word} carries a link that is meant for one person, so send it one by one; "
            )
            batchable = ", ".join(name for name, one in KINDS.items() if not one.secret_fields())
            raise InvalidEmail([FieldError("kind", f"{why}must be one of {batchable}, or absent for free content")])
        if "to" in given:
            raise InvalidEmail([FieldError("to", "unknown field; every recipient has its own")])
        fixed = [name for name in given if not (kind is CustomEmail and name in BODIES)]
        if faults := [FieldError(name, NO_PLACEHOLDER) for name in fixed if "{{" in str(given[name])]:
            raise InvalidEmail(faults)
        sample = kind.sample()
        filler = {} if kind is CustomEmail else sample.model_dump(include=set(kind.template_fields()))
        valid = kinds.parse({**filler, **given, "kind": word, "to": sample.to})
        mailing = cls(kind.name_of_kind(), {name: getattr(valid, name) for name in given})
        _ = mailing.content
        return mailing

    def stored(self) -> dict[str, Any]:
        """As JSON."""
        return {"kind": self.kind, **self.fields}

    @classmethod
    def restored(cls, stored: Mapping[str, Any]) -> "Mailing":
        return cls(stored["kind"], {name: value for name, value in stored.items() if name != "kind"})

    @property
    def subject(self) -> str:
        """For display: with its placeholders; "" where a kind makes it of what each recipient brings."""
        if self.content is not None:
            return str(self.fields["subject"])
        template = Template.of(str(getattr(self._type, "subject", "")))
        known = set(template.names) <= set(self.fields) and not any("{{" in text for text in template.parts[::2])
        return template.fill(self.fields) if known else ""

    @cached_property
    def content(self) -> Content | None:
        """The free content; None for a kind with templates of its own."""
        if self.kind != CUSTOM:
            return None
        return Content.of(self.fields["subject"], self.fields.get("html"), self.fields.get("text"))

    def recipient(self, raw: object) -> Recipient:
        """Validate one recipient: an address, or a mapping with `to`, and `name` and `data` where given.

        Free content needs a value for each placeholder; data that it does not use is kept. A kind takes `name` and
        `data` as its fields, before those that are shared.

        Raises:
            InvalidEmail: names each field at fault: `to`, `name`, `data.<key>`, `subject`, `html`, `text`; `body`
                for the recipient as a whole.
        """
        given = _Given(raw)
        if self.content is not None:
            recipient = given.for_content()
            self._check_content(self.content, recipient)
            return recipient
        return self._for_kind(given)

    def values(self, recipient: Recipient) -> dict[str, Any]:
        """What the mail to a valid recipient is made of: values of placeholders, or fields of the kind."""
        own = dict(recipient.data)
        if recipient.name is not None:
            own["name"] = recipient.name
        return {**own, "to": recipient.to} if self.content is not None else {**self.fields, **own}

    def filled(self, recipient: Recipient) -> Filled | None:
        """The free content for a valid recipient; None for a kind with templates of its own."""
        if self.content is None:
            return None
        subject, html, text = self.content.fill(self.values(recipient))
        return Filled(header_text(subject), html, text)

    def email(self, recipient: Recipient) -> AnyEmail:
        """The complete email to one recipient.

        Raises:
            InvalidEmail: this recipient is not valid for this mailing.
        """
        if self.content is None:
            return kinds.parse({**self.values(recipient), "kind": self.kind, "to": recipient.to})
        values = self.values(recipient)
        if missing := [name for name in self.content.names() if name not in values]:
            raise InvalidEmail(list(_without_value(self.content, missing)))
        subject, html, text = self.content.fill(values)
        return kinds.new(
            CustomEmail,
            to=recipient.to,
            subject=subject,
            html=kept_as_written(html) if html is not None else None,
            text=text,
            reply_to=self.fields.get("reply_to"),
            from_name=self.fields.get("from_name"),
        )

    @property
    def _type(self) -> type[Email]:
        return KINDS[self.kind]

    @cached_property
    def _needed(self) -> set[str]:
        return self.content.names() if self.content is not None else set()

    def _check_content(self, content: Content, recipient: Recipient) -> None:
        values = self.values(recipient)
        if not self._needed <= values.keys():
            raise InvalidEmail(list(_without_value(content, [n for n in self._needed if n not in values])))
        errors = [
            FieldError(path_of(name), f"must not contain {_NOT_IN_SUBJECT}: the subject uses it")
            for name in dict.fromkeys(content.subject.names)
            if _UNFIT_FOR_SUBJECT.search(values[name])
        ]
        subject, html, text = content.fill(values)
        if not errors:
            try:
                _header_text.validate_python(subject)
            except ValidationError as error:
                errors += [FieldError("subject", f"{one.message}, when filled") for one in kinds.field_errors(error)]
        if html is not None and len(html) > MAX_BODY - content.line_feeds_added:
            errors.append(FieldError("html", f"must have at most {MAX_BODY:,} characters when sanitised and filled"))
        if text is not None and len(text) > MAX_BODY:
            source = "html" if content.text_is_made else "text"
            errors.append(FieldError(source, f"must have at most {MAX_BODY:,} characters when filled"))
        errors += [
            FieldError(part, "must not be blank when filled")
            for part, body in (("html", html), ("text", text))
            if body is not None and not is_visible(body)
        ]
        if errors:
            raise InvalidEmail(errors)

    def _for_kind(self, given: "_Given") -> Recipient:
        own = [name for name in self._type.template_fields() if name != "name"]
        errors = list(given.faults())
        known = f"has {', '.join(own)}" if own else "takes no data"
        if not errors:
            errors = [
                FieldError(path_of(key), f"unknown; remove it: {self.kind} {known}")
                for key in given.data
                if key not in own
            ]
        if errors:
            raise InvalidEmail(errors)
        data = {key: _text(value) for key, value in given.data.items()}
        name = {} if given.name is None else {"name": given.name}
        try:
            email = kinds.parse({**self.fields, **data, **name, "kind": self.kind, "to": given.to})
        except InvalidEmail as error:
            raise InvalidEmail(
                [
                    FieldError(
                        path_of(fault.field) if fault.field in own else fault.field,
                        "required, here or for all recipients" if fault.message == "required" else fault.message,
                    )
                    for fault in error.errors
                ]
            ) from None
        valid = dict(email)
        return Recipient(email.to, valid["name"] if name else None, {key: valid[key] for key in data})


class _Given:
    """A recipient as it came: taken apart, its address, name and values not yet validated."""

    def __init__(self, raw: object) -> None:
        if isinstance(raw, str):
            raw = {"to": raw}
        if not isinstance(raw, Mapping):
            raise InvalidEmail([FieldError("body", "must be an address, or an object with to, name and data")])
        self.to = raw.get("to")
        self.name = raw.get("name")
        data = raw.get("data")
        errors = [
            FieldError(str(key)[:100], "unknown field; a recipient has to, name and data")
            for key in raw
            if key not in ("to", "name", "data")
        ]
        if self.to is None:
            errors.append(FieldError("to", "required"))
        if data is not None and not isinstance(data, Mapping):
            errors.append(FieldError("data", "must be an object with a value for each placeholder"))
        elif data is not None and len(data) > MAX_KEYS:
            errors.append(FieldError("data", f"must not have more than {MAX_KEYS} keys"))
        if errors:
            raise InvalidEmail(errors)
        self.data: Mapping[str, object] = data or {}

    def for_content(self) -> Recipient:
        """Raises InvalidEmail."""
        errors = list(self.faults())
        to, name = "", None
        try:
            to = _address.validate_python(self.to)
        except ValidationError as error:
            errors += [FieldError("to", fault.message) for fault in kinds.field_errors(error)]
        if self.name is not None:
            try:
                name = _name.validate_python(self.name).replace("\ufeff", "")
            except ValidationError as error:
                errors += [FieldError("name", fault.message) for fault in kinds.field_errors(error)]
        if errors:
            raise InvalidEmail(errors)
        return Recipient(to, name, {key: _text(value) for key, value in self.data.items()})

    def faults(self) -> Iterator[FieldError]:
        """What is wrong with the data, whatever it is for."""
        for key, value in self.data.items():
            if not isinstance(key, str) or not NAME.fullmatch(key):
                yield FieldError("data", "a key must have 1 to 64 characters, and only letters, digits and _")
            elif key in ("to", "name"):
                yield FieldError(path_of(key), f"give {key} beside data, not in it")
            elif message := _value_fault(value):
                yield FieldError(path_of(key), message)


def _value_fault(value: object) -> str | None:
    if isinstance(value, str):
        if len(value) > MAX_VALUE:
            return f"must have at most {MAX_VALUE:,} characters"
        if _CONTROL.search(value):
            return "must not contain control characters other than line breaks and tabs"
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "must be a text or a number"
    if isinstance(value, float) and not math.isfinite(value):
        return "must be a text or a number that is finite"
    if isinstance(value, int) and value.bit_length() > MAX_NUMBER_BITS:
        return "must be a smaller number, or a text"
    return None


def _text(value: object) -> str:
    """A value as it is filled in: line ends are bare line feeds."""
    return _LINE_ENDS.sub(lambda found: "\n" if found[0] != "\ufeff" else "", str(value))


def path_of(name: str) -> str:
    """Where in a recipient a value stands: `to`, `name` or `data.<key>`."""
    return name if name in ("to", "name") else f"data.{name}"


def _without_value(content: Content, names: list[str]) -> Iterator[FieldError]:
    for name in sorted(names):
        yield FieldError(path_of(name), f"required: {{{{ {name} }}}} is in {' and '.join(content.users(name))}")

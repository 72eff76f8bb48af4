"""Every kind of email, declared once.

A kind is a frozen pydantic class. Its fields are the template variables and the parameters of the public
functions; its class variables say how it travels. Task names, lanes, templates, golden files, API schema and
OpenAPI examples are derived from it. docs/adding-a-kind.md shows how to add one.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal, ParamSpec, Self, TypeVar, get_args
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from mail.errors import FieldError, InvalidEmail
from mail.fields import Address, Body, HeaderText, Link, Name, Secret, mask_address

SHORTEST_SECRET = 8  # characters; shorter parts of a link are words like "reset"

P = ParamSpec("P")
E = TypeVar("E", bound="Email")


class Lane(StrEnum):
    """A Celery queue. The worker node of critical and standard mail never takes bulk mail, and looks for critical
    mail first."""

    CRITICAL = "critical"
    STANDARD = "standard"
    BULK = "bulk"


class Category(StrEnum):
    """Why a person gets the mail: asked for by their own action, or sent round a course."""

    TRANSACTIONAL = "transactional"
    COURSE = "course"


class Email(BaseModel, ABC):
    """One mail to one recipient: kind + to + fields.

    `to` and `reply_to` are single addresses (RFC 5321 mailboxes, no display name); `from_name` replaces the
    display name of the sender, never its address.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    lane: ClassVar[Lane] = Lane.STANDARD
    category: ClassVar[Category] = Category.TRANSACTIONAL
    valid_for: ClassVar[timedelta | None] = None
    supersedes: ClassVar[bool] = False
    limited: ClassVar[bool] = False
    scope: ClassVar[str] = "send"

    to: Address
    reply_to: Address | None = None
    from_name: HeaderText | None = None

    @classmethod
    @abstractmethod
    def sample(cls) -> Self:
        """One believable instance; feeds previews, golden files and OpenAPI examples."""

    @classmethod
    def name_of_kind(cls) -> str:
        """The word that names the kind everywhere: templates, tasks, API, metrics."""
        return str(cls.model_fields["kind"].default)

    @classmethod
    def noun(cls) -> str:
        """What the public functions call it: `welcome_email` in `send_welcome_email`."""
        name = cls.name_of_kind()
        return name if name.startswith("email_") else f"{name}_email"

    @classmethod
    def secret_fields(cls) -> tuple[str, ...]:
        """Fields that hold a credential, for instance the link of a password reset."""
        return tuple(
            name
            for name, field in cls.model_fields.items()
            if any(isinstance(mark, Secret) for mark in field.metadata)
        )

    @classmethod
    def template_fields(cls) -> tuple[str, ...]:
        """What a template of this kind may use beside `brand`."""
        return tuple(name for name in cls.model_fields if name not in ("kind", "to", "reply_to", "from_name"))

    def redacted(self) -> dict[str, Any]:
        """The only form that a log, repr, metric, page or Celery argument may show."""
        shown = self.model_dump(mode="json", exclude_none=True)
        for name in self.secret_fields():
            shown[name] = "***"
        shown["to"] = mask_address(self.to)
        return shown

    def scrub(self, text: str) -> str:
        """Take this email's secrets out of words that came from elsewhere, such as an SMTP reply.

        A content filter may quote the mail it refuses, whole or in part; its reply goes into records and logs.
        """
        for name in self.secret_fields():
            value = str(getattr(self, name))
            url = urlsplit(value)
            parts = {url.path, url.query, url.fragment, *url.path.split("/"), *re.split("[&=]", url.query)}
            for part in (value, *sorted(parts, key=len, reverse=True)):
                if len(part) >= SHORTEST_SECRET:
                    text = text.replace(part, "***").replace(unquote(part), "***")
        return text

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.redacted()})"

    __str__ = __repr__


class WelcomeEmail(Email):
    """Greets a person whose account was just made."""

    subject: ClassVar[str] = "Welcome to {{ brand.name }}, {{ name }}"

    kind: Literal["welcome"] = "welcome"
    name: Name

    @classmethod
    def sample(cls) -> Self:
        return cls(to="ada@example.com", name="Ada Lovelace")


class PasswordResetEmail(Email):
    """Carries the link that sets a new password. The link dies after an hour, and so does the mail."""

    lane: ClassVar[Lane] = Lane.CRITICAL
    valid_for: ClassVar[timedelta | None] = timedelta(hours=1)
    supersedes: ClassVar[bool] = True
    limited: ClassVar[bool] = True
    subject: ClassVar[str] = "Reset your {{ brand.name }} password"

    kind: Literal["password_reset"] = "password_reset"
    name: Name
    reset_url: Annotated[Link, Secret()]

    @classmethod
    def sample(cls) -> Self:
        return cls(
            to="ada@example.com",
            name="Ada Lovelace",
            reset_url="https://lms.example.com/reset?token=q3nTq0Vw8m2Zt7Ls",
        )


class EmailVerificationEmail(Email):
    """Asks a person to confirm that an address is theirs. The link lives for a day."""

    lane: ClassVar[Lane] = Lane.CRITICAL
    valid_for: ClassVar[timedelta | None] = timedelta(hours=24)
    supersedes: ClassVar[bool] = True
    limited: ClassVar[bool] = True
    subject: ClassVar[str] = "Verify your email address for {{ brand.name }}"

    kind: Literal["email_verification"] = "email_verification"
    name: Name
    verification_url: Annotated[Link, Secret()]

    @classmethod
    def sample(cls) -> Self:
        return cls(
            to="ada@example.com",
            name="Ada Lovelace",
            verification_url="https://lms.example.com/verify?token=b81WfJx5Kc9Ry4Dd",
        )


class CourseEnrollmentEmail(Email):
    """Tells a person that they are enrolled in a course."""

    category: ClassVar[Category] = Category.COURSE
    subject: ClassVar[str] = "You are enrolled in {{ course_name }}"

    kind: Literal["course_enrollment"] = "course_enrollment"
    name: Name
    course_name: Name
    course_url: Link

    @classmethod
    def sample(cls) -> Self:
        return cls(
            to="ada@example.com",
            name="Ada Lovelace",
            course_name="Analytical Engines 101",
            course_url="https://lms.example.com/courses/analytical-engines-101",
        )


class CertificateEmail(Email):
    """Hands over the certificate of a finished course."""

    category: ClassVar[Category] = Category.COURSE
    subject: ClassVar[str] = "Your certificate for {{ course_name }}"

    kind: Literal["certificate"] = "certificate"
    name: Name
    course_name: Name
    certificate_url: Link

    @classmethod
    def sample(cls) -> Self:
        return cls(
            to="ada@example.com",
            name="Ada Lovelace",
            course_name="Analytical Engines 101",
            certificate_url="https://lms.example.com/certificates/7f3a2c",
        )


class CustomEmail(Email):
    """A mail whose subject and body are data: never compiled as a template, its HTML sanitised."""

    scope: ClassVar[str] = "custom"

    kind: Literal["custom"] = "custom"
    subject: HeaderText
    html: Body | None = None
    text: Body | None = None

    @model_validator(mode="after")
    def _has_a_body(self) -> Self:
        if self.html is None and self.text is None:
            raise ValueError("html or text is required")
        return self

    @classmethod
    def sample(cls) -> Self:
        return cls(
            to="ada@example.com",
            subject="The library opens on Sunday",
            html="<p>From this week on, the library is open on <strong>Sundays</strong> too.</p>",
        )


AnyEmail = Annotated[
    WelcomeEmail
    | PasswordResetEmail
    | EmailVerificationEmail
    | CourseEnrollmentEmail
    | CertificateEmail
    | CustomEmail,
    Field(discriminator="kind"),
]

KINDS: dict[str, type[Email]] = {kind.name_of_kind(): kind for kind in get_args(get_args(AnyEmail)[0])}
"""Every kind by its word. Read from `AnyEmail`, so that the list exists once."""

_any_email: TypeAdapter[AnyEmail] = TypeAdapter(AnyEmail)


def new(kind: Callable[P, E], *args: P.args, **kwargs: P.kwargs) -> E:
    """Build an email and turn pydantic's complaint into ours.

    Raises:
        InvalidEmail: names every field at fault.
    """
    try:
        return kind(*args, **kwargs)
    except ValidationError as error:
        raise InvalidEmail(field_errors(error)) from None


def parse(data: dict[str, Any]) -> AnyEmail:
    """Build an email of any kind from plain data, discriminated on `kind`.

    Raises:
        InvalidEmail: names every field at fault.
    """
    try:
        return _any_email.validate_python(data)
    except ValidationError as error:
        raise InvalidEmail(field_errors(error)) from None


def field_errors(error: ValidationError) -> list[FieldError]:
    """Pydantic's errors without the input they quote and without the union tag in their path."""
    return [field_error(fault["type"], fault["loc"], fault["msg"]) for fault in error.errors(include_url=False)]


def field_error(fault: str, location: tuple[int | str, ...], message: str) -> FieldError:
    """One error in our words. `location` is pydantic's path; `fault` its error type."""
    path = [str(part)[:100] for part in location if part not in KINDS]
    if fault in ("union_tag_invalid", "union_tag_not_found", "literal_error") and path in ([], ["kind"]):
        return FieldError("kind", "must be one of " + ", ".join(KINDS))
    if fault == "extra_forbidden":
        message = "unknown field; remove it"
    elif fault == "missing":
        message = "required"
    elif fault == "enum":
        message = message.replace("Input should be", "must be one of").replace("'", "").replace(" or ", ", ")
    elif fault == "timezone_aware":
        message = "must have a time zone, such as 2030-01-31T09:00:00Z"
    message = message.removeprefix("Value error, ")
    if not path and message == "html or text is required":
        path = ["html"]
    return FieldError(".".join(path) or "body", message)

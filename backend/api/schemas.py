"""What goes over the wire. Requests are derived from the kinds; answers mirror the outbox's records."""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Self, Union

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, WithJsonSchema, create_model

from mail.kinds import KINDS, AnyEmail, parse
from mail.outbox import Accepted
from mail.records import Record, State


class Times(BaseModel):
    """When a queued email may be sent."""

    send_at: AwareDatetime | None = Field(None, description="Not before then. ISO 8601 with a time zone.")
    expires_at: AwareDatetime | None = Field(
        None, description="Not after then. A reset or verification mail ends with its link by itself."
    )


def _demand_kind(schema: dict[str, Any]) -> None:
    # In Python the class says which kind it is; in JSON only this field does.
    schema["required"] = ["kind", *schema["required"]]


def _request_model(kind: type[BaseModel]) -> type[BaseModel]:
    model = create_model(f"{kind.__name__}Request", __base__=(kind, Times), __doc__=kind.__doc__)
    model.model_config["json_schema_extra"] = _demand_kind
    return model


if TYPE_CHECKING:
    EmailRequest = Any
else:  # built from a list, which no type checker follows
    EmailRequest = Annotated[
        Union[tuple(_request_model(kind) for kind in KINDS.values())],  # noqa: UP007
        Field(discriminator="kind"),
    ]


def _known_kind(word: str) -> str:
    if word not in KINDS:
        raise ValueError("must be one of " + ", ".join(KINDS))
    return word


KindWord = Annotated[str, AfterValidator(_known_kind), WithJsonSchema({"type": "string", "enum": list(KINDS)})]
"""One of the kinds, as a query parameter."""

EXAMPLES: dict[str, Any] = {
    word: {"summary": (kind.__doc__ or word).splitlines()[0], "value": sample}
    for word, kind in KINDS.items()
    for sample in [{"kind": word, **kind.sample().model_dump(mode="json", exclude_none=True)}]
}


def split(request: Any) -> tuple[AnyEmail, Times]:
    """A request's email and its times."""
    times = Times(send_at=request.send_at, expires_at=request.expires_at)
    return parse(request.model_dump(exclude={"send_at", "expires_at"})), times


class EmailAccepted(BaseModel):
    """The email is kept and will be sent."""

    id: str
    state: State
    kind: str
    to: str
    status_url: str

    @classmethod
    def of(cls, accepted: Accepted, email: AnyEmail) -> Self:
        return cls(
            id=accepted.id,
            state=accepted.state,
            kind=email.kind,
            to=email.to,
            status_url=f"/api/emails/{accepted.id}",
        )


class EmailDelivered(BaseModel):
    """The SMTP server has taken the mail."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    to: str
    kind: str
    state: State
    message_id: str
    smtp_code: int
    smtp_reply: str
    sent_at: datetime


class ChangeView(BaseModel):
    """One line of the timeline."""

    model_config = ConfigDict(from_attributes=True)

    at: datetime
    state: State
    worker: str | None
    attempt: int | None
    smtp_code: int | None = Field(validation_alias="code")
    smtp_reply: str | None = Field(validation_alias="reply")
    error: str | None
    note: str | None
    next_attempt_at: datetime | None


class EmailSummary(BaseModel):
    """One email in a list."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    kind: str
    to: str
    lane: str
    state: State
    attempts: int
    created_at: datetime
    updated_at: datetime
    send_at: datetime | None
    expires_at: datetime | None
    next_attempt_at: datetime | None
    sent_at: datetime | None
    smtp_code: int | None
    smtp_reply: str | None
    error: str | None
    possible_duplicate: bool


class EmailRecord(EmailSummary):
    """One email with its fields (secrets as `***`) and its timeline."""

    fields: dict[str, Any]
    timeline: list[ChangeView]

    @classmethod
    def of(cls, record: Record) -> Self:
        return cls.model_validate(record)


class EmailPage(BaseModel):
    """Emails, newest first. While `next` is not null there is more, even if a page holds few emails."""

    items: list[EmailSummary]
    next: str | None

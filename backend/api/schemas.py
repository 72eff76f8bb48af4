"""What goes over the wire. Requests are derived from the kinds; answers mirror the outbox's records."""

import json
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, Union

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, WithJsonSchema, create_model

from mail.answers import Accepted
from mail.batches import BatchState
from mail.intake import AcceptedBatch
from mail.kinds import KINDS, AnyEmail, parse
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
    batch: str | None


class EmailRecord(EmailSummary):
    """One email with its fields (secrets as `***`) and its timeline."""

    fields: dict[str, Any]
    request_id: str | None = Field(description="Of the call that brought it, as in every log line about it.")
    timeline: list[ChangeView]

    @classmethod
    def of(cls, record: Record) -> Self:
        return cls.model_validate(record)


class EmailPage(BaseModel):
    """Emails, newest first. While `next` is not null there is more, even if a page holds few emails."""

    items: list[EmailSummary]
    next: str | None


class RecipientRequest(BaseModel):
    """One recipient of a batch."""

    to: str = Field(description="One email address.", examples=["ada@example.com"])
    name: str | None = Field(None, description="Fills `{{ name }}`.", examples=["Ada"])
    data: dict[str, str | int | float] = Field(
        {}, description="Fills the other placeholders, or the kind's fields.", examples=[{"grade": "A"}]
    )


_SHARED: dict[str, Any] = {
    name: (str | None, Field(None, description="Of the kinds that have it, for all recipients."))
    for kind in KINDS.values()
    if not kind.secret_fields()
    for name in kind.model_fields
    if name not in KINDS["custom"].model_fields
}


class _BatchRequest(Times):
    kind: str = Field("custom", description="Any kind without a secret; without it, free content.")
    subject: str | None = Field(None, description="Free content. May hold `{{ placeholders }}`.")
    html: str | None = Field(None, description="Free content, sanitised. May hold `{{ placeholders }}`.")
    text: str | None = Field(None, description="Free content. May hold `{{ placeholders }}`; made of html if absent.")
    reply_to: str | None = None
    from_name: str | None = None
    course_id: str | None = Field(None, min_length=1, max_length=100, description="Yours, for the overview.")
    on_unknown: Literal["hold", "resend"] = Field(
        "hold", description="What happens to a recipient of whom nobody knows whether the server took the mail."
    )
    recipients: list[RecipientRequest | str] = Field(min_length=1)


BatchRequest = create_model(
    "BatchRequest",
    __base__=_BatchRequest,
    __doc__="One mailing and its recipients. In NDJSON all but the recipients is the first line.",
    **_SHARED,
)
"""Describes the body of a batch; api/batch_body.py reads it as a stream, and the engine validates it."""

_FREE = {
    "subject": "Your grade in Analytical Engines 101",
    "html": "<p>Dear {{ name }},</p><p>your grade is <strong>{{ grade }}</strong>.</p>",
    "course_id": "analytical-engines-101",
}
_LEARNERS: list[dict[str, Any]] = [
    {"to": "ada@example.com", "name": "Ada", "data": {"grade": "A"}},
    {"to": "charles@example.com", "name": "Charles", "data": {"grade": "B"}},
]
BATCH_EXAMPLES: dict[str, Any] = {
    "custom": {"summary": "Words of your own", "value": {**_FREE, "recipients": _LEARNERS}},
    "course_enrollment": {
        "summary": "A kind with shared fields",
        "value": {
            **KINDS["course_enrollment"].sample().model_dump(include={"kind", "course_name", "course_url"}),
            "recipients": [{"to": learner["to"], "name": learner["name"]} for learner in _LEARNERS],
        },
    },
}
NDJSON_EXAMPLE = "".join(f"{json.dumps(line)}\n" for line in (_FREE, *_LEARNERS))


class BatchAccepted(BaseModel):
    """The batch is kept, and its recipients will be sent to. `duplicates`: recipients that were named before."""

    id: str
    state: BatchState
    total: int
    duplicates: int
    status_url: str

    @classmethod
    def of(cls, accepted: AcceptedBatch) -> Self:
        return cls(
            id=accepted.id,
            state=accepted.state,
            total=accepted.total,
            duplicates=accepted.duplicates,
            status_url=f"/api/batches/{accepted.id}",
        )


class BatchView(BaseModel):
    """One batch. `counts` adds up to `total`; states that nobody is in are left out."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    state: BatchState
    kind: str
    subject: str
    course_id: str | None
    total: int
    duplicates: int
    counts: dict[State, int]
    on_unknown: str
    created_at: datetime
    send_at: datetime | None
    expires_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    per_second: float = Field(description="Mails per second lately.")
    seconds_left: float | None
    limited_by: str | None = Field(description="What limits the pace now.")
    version: int = Field(description="Grows with every change.")
    request_id: str | None = Field(description="Of the call that brought it, as in every log line about it.")
    ended: bool = Field(description="Finished or cancelled, and nothing of it is being sent any more.")


class BatchPage(BaseModel):
    """Batches, newest first. While `next` is not null there is more."""

    items: list[BatchView]
    next: str | None


class BatchRecipientView(BaseModel):
    """One recipient; `GET /api/emails/{email_id}` has the rest."""

    model_config = ConfigDict(from_attributes=True)

    email_id: str = Field(validation_alias="id")
    position: int
    to: str
    name: str | None
    state: State
    attempts: int
    smtp_code: int | None
    smtp_reply: str | None
    error: str | None
    sent_at: datetime | None
    possible_duplicate: bool


class BatchRecipientPage(BaseModel):
    """Recipients in the order of the request. While `next` is not null there is more."""

    items: list[BatchRecipientView]
    next: str | None

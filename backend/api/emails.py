"""`/api/emails`: send, look up, list, cancel, retry."""

from typing import Annotated

from fastapi import APIRouter, Body, Depends, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from api.auth import DESCRIBED, KeyedRoute, demand, requires
from api.problems import responses
from api.schemas import (
    EXAMPLES,
    EmailAccepted,
    EmailDelivered,
    EmailPage,
    EmailRecord,
    EmailRequest,
    EmailSummary,
    KindWord,
    split,
)
from mail.errors import FieldError, InvalidEmail
from mail.records import State
from settings import Scope
from utils.composition import get_batches, get_outbox, get_policy
from utils.email import send
from utils.email_async import enqueue

router = APIRouter(prefix="/api/emails", tags=["emails"], route_class=KeyedRoute, dependencies=DESCRIBED)


@router.post(
    "",
    status_code=202,
    response_model=None,  # the two answers are described below, each with its status
    summary="Send an email",
    responses={
        202: {"model": EmailAccepted, "description": "Kept, and will be sent"},
        200: {"model": EmailDelivered, "description": "Sent (with wait=true)"},
        **responses(401, 403, 409, 413, 422, 429, 500, 502, 503),
    },
)
async def send_email(
    request: Request,
    response: Response,
    body: Annotated[EmailRequest, Body(openapi_examples=EXAMPLES)],
    idempotency_key: Annotated[
        str | None,
        Header(min_length=1, max_length=255, description="The same key and body within 24 h is sent once."),
    ] = None,
    wait: Annotated[bool, Query(description="Send now, past the outbox: no record, no retry.")] = False,
) -> EmailAccepted | EmailDelivered:
    """Accept an email and answer at once; a worker sends it.

    With `wait=true` it is sent within the request, and the answer says what the SMTP server said.
    """
    email, times = split(body)
    caller = demand(request, email.scope)
    if wait:
        given = {"send_at": times.send_at, "expires_at": times.expires_at, "Idempotency-Key": idempotency_key}
        errors = [FieldError(name, "cannot be used with wait=true") for name, value in given.items() if value]
        if errors:
            raise InvalidEmail(errors)
        await run_in_threadpool(get_policy().check, email)
        await run_in_threadpool(get_outbox().admit, email)
        response.status_code = 200
        return EmailDelivered.model_validate(await send(email))
    accepted = await run_in_threadpool(
        enqueue,
        email,
        send_at=times.send_at,
        expires_at=times.expires_at,
        idempotency_key=idempotency_key,
        scope=f"api:{caller.name}",
    )
    if accepted.replayed:
        response.headers["Idempotent-Replayed"] = "true"
    return EmailAccepted.of(accepted, email)


@router.get(
    "",
    response_model=EmailPage,
    summary="List emails",
    responses=responses(401, 403, 404, 422, 429, 500, 503),
    dependencies=[Depends(requires(Scope.READ))],
)
def list_emails(
    *,
    to: Annotated[str | None, Query(max_length=254)] = None,
    kind: KindWord | None = None,
    state: State | None = None,
    batch: Annotated[str | None, Query(max_length=100)] = None,
    cursor: Annotated[str | None, Query(max_length=200)] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> EmailPage:
    """Newest first. Pass `next` of one page as `cursor` for the following one.

    Recipients of batches are found by `to` and `batch` (then in the order of the request), and by `state` once they
    met a failure.
    """
    if batch is not None and to is None:
        page = get_batches().records(batch, state=state, cursor=cursor, limit=limit)
        page = page._replace(items=[record for record in page.items if kind in (None, record.kind)])
    else:
        page = get_outbox().list(to=to, kind=kind, state=state, batch=batch, cursor=cursor, limit=limit)
    return EmailPage(items=[EmailSummary.model_validate(record) for record in page.items], next=page.next)


@router.get(
    "/{email_id}",
    response_model=EmailRecord,
    summary="One email with its timeline",
    responses=responses(401, 403, 404, 429, 500, 503),
    dependencies=[Depends(requires(Scope.READ))],
)
def get_email(email_id: str) -> EmailRecord:
    """State, SMTP reply and every change with its time."""
    return EmailRecord.of(get_outbox().record(email_id))


@router.post(
    "/{email_id}/retry",
    response_model=EmailRecord,
    summary="Send a failed or held email again",
    responses=responses(401, 403, 404, 409, 429, 500, 503),
    dependencies=[Depends(requires(Scope.ADMIN))],
)
def retry_email(email_id: str) -> EmailRecord:
    """With fresh attempts. 409 when the email is not failed or held, or its secret is gone."""
    return EmailRecord.of(get_outbox().retry(email_id))


@router.post(
    "/{email_id}/cancel",
    response_model=EmailRecord,
    summary="Cancel an email that has not been sent",
    responses=responses(401, 403, 404, 409, 429, 500, 503),
    dependencies=[Depends(requires(Scope.ADMIN))],
)
def cancel_email(email_id: str) -> EmailRecord:
    """409 when it is being sent or has ended."""
    return EmailRecord.of(get_outbox().cancel(email_id))

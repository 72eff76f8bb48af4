"""`/api/batches`: one mailing to many recipients. Take in, look up, steer."""

import csv
import io
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Depends, Header, HTTPException, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from fastapi.sse import EventSourceResponse
from starlette.requests import ClientDisconnect

from api.auth import DESCRIBED, KeyedRoute, demand, requires
from api.batch_body import BatchBody, Head, JsonBody, NdjsonBody, Part, RawRecipient
from api.problems import EXAMPLE_DETAILS, responses
from api.schemas import (
    BATCH_EXAMPLES,
    NDJSON_EXAMPLE,
    BatchAccepted,
    BatchPage,
    BatchRecipientPage,
    BatchRecipientView,
    BatchView,
)
from api.streams import Moment, streams
from mail.batches import Batch, Batches, BatchRecipients
from mail.intake import AcceptedBatch, Intake
from mail.records import State
from settings import Scope, get_settings
from utils.composition import get_batches
from utils.email_async import open_batch

PIECE = 65_536  # bytes that are parsed at once
SLICE = 200  # recipients that are validated at once; between slices a request can be cancelled
CSV_PAGE = 1_000

DETAILS = EXAMPLE_DETAILS | {
    403: "This key lacks the scope bulk.",
    404: "There is no batch with this id.",
    409: "A batch that is finished cannot be paused.",
    413: "The request is larger than BATCH_MAX_BODY_BYTES allows.",
}
EVENT = {
    "type": "object",
    "properties": {
        "event": {"enum": ["progress", "end"]},
        "id": {"type": "string"},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}
BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/BatchRequest"},
                "examples": BATCH_EXAMPLES,
            },
            "application/x-ndjson": {
                "schema": {
                    "type": "string",
                    "description": "The first line holds everything but the recipients; each further line is one "
                    "recipient, an object or an address in quotes. Every line ends with a line break.",
                },
                "example": NDJSON_EXAMPLE,
            },
        },
    }
}

router = APIRouter(prefix="/api/batches", tags=["batches"], route_class=KeyedRoute, dependencies=DESCRIBED)


@router.post(
    "",
    status_code=202,
    summary="Send to many recipients",
    responses=responses(401, 403, 409, 413, 415, 422, 429, 500, 503, details=DETAILS),
    openapi_extra=BODY,
)
async def send_batch(
    request: Request,
    response: Response,
    _: Annotated[None, Depends(requires(Scope.BULK))],
    idempotency_key: Annotated[
        str | None,
        Header(min_length=1, max_length=255, description="The same key and body within 24 h is taken once."),
    ] = None,
) -> BatchAccepted:
    """Accept a batch, all of it or nothing, and answer when all of it is kept.

    Recipients that are named twice are taken once. Every recipient is validated, and its mail rendered, before
    anything is accepted; whatever is wrong is named by its position.
    """
    body = _body_of(request)
    limit = get_settings().batch_max_recipients
    if isinstance(body, NdjsonBody):
        limit = get_settings().batch_stream_max_recipients
    caller = demand(request, Scope.BULK)

    def begin(head: Mapping[str, Any]) -> Intake:
        return open_batch(head, idempotency_key=idempotency_key, scope=f"api:{caller.name}", limit=limit)

    accepted = await _take_in(request, body, _Reception(begin))
    if accepted.replayed:
        response.headers["Idempotent-Replayed"] = "true"
    return BatchAccepted.of(accepted)


def _body_of(request: Request) -> BatchBody:
    settings = get_settings()
    match request.headers.get("Content-Type", "").partition(";")[0].strip().lower():
        case "application/json":
            return JsonBody(limit=settings.batch_max_recipients, longest=settings.max_body_bytes)
        case "application/x-ndjson":
            return NdjsonBody(longest=settings.max_body_bytes)
    raise HTTPException(415, DETAILS[415])


class _Reception:
    """Hands the parts of one request on to its intake."""

    def __init__(self, begin: Callable[[Mapping[str, Any]], Intake]) -> None:
        self._begin = begin
        self._intake: Intake | None = None
        # A request that is cancelled does not wait for its thread.
        self._one_thread = threading.Lock()

    def take(self, parts: Iterator[Part]) -> bool:
        """Take the next slice; whether there may be more."""
        with self._one_thread:
            slice_ = list(islice(parts, SLICE))
            for part in slice_:
                match part:
                    case Head(fields):
                        self._intake = self._begin(fields)
                    case RawRecipient(raw, line):
                        self._opened.take([raw], first_line=line)
                    case fault:
                        self._opened.refuse(fault)
            return len(slice_) == SLICE

    def finish(self) -> AcceptedBatch:
        with self._one_thread:
            return self._opened.finish()

    def discard(self) -> None:
        with self._one_thread:
            if self._intake:
                self._intake.discard()

    @property
    def _opened(self) -> Intake:
        if self._intake is None:
            raise LookupError("the body does not begin with its head")
        return self._intake


async def _take_in(request: Request, body: BatchBody, reception: _Reception) -> AcceptedBatch:
    try:
        async for chunk in request.stream():
            for start in range(0, len(chunk), PIECE):
                await _exhaust(body.feed(chunk[start : start + PIECE]), reception)
        await _exhaust(body.end(), reception)
        # Whoever has gone will ask again, perhaps without an Idempotency-Key.
        if await request.is_disconnected():
            raise ClientDisconnect
        return await run_in_threadpool(reception.finish)
    except BaseException as error:
        with anyio.CancelScope(shield=True):
            await run_in_threadpool(reception.discard)
        if isinstance(error, ClientDisconnect):
            raise HTTPException(400) from None
        raise


async def _exhaust(parts: Iterator[Part], reception: _Reception) -> None:
    while await run_in_threadpool(reception.take, parts):
        pass


@router.get(
    "",
    summary="List batches",
    responses=responses(401, 403, 422, 429, 500, 503),
    dependencies=[Depends(requires(Scope.READ))],
)
def list_batches(
    cursor: Annotated[str | None, Query(max_length=200)] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> BatchPage:
    """Newest first. Pass `next` of one page as `cursor` for the following one."""
    page = get_batches().list(cursor=cursor, limit=limit)
    return BatchPage(items=[BatchView.model_validate(batch) for batch in page.items], next=page.next)


@router.get(
    "/{batch_id}",
    summary="One batch with its counts",
    responses=responses(401, 403, 404, 429, 500, 503, details=DETAILS),
    dependencies=[Depends(requires(Scope.READ))],
)
def get_batch(batch_id: str) -> BatchView:
    """State, counts, pace and time left."""
    return BatchView.model_validate(get_batches().batch(batch_id))


@router.get(
    "/{batch_id}/recipients",
    response_model=BatchRecipientPage,
    summary="The recipients of a batch",
    responses={
        200: {"content": {"text/csv": {"schema": {"type": "string"}}}},
        **responses(401, 403, 404, 422, 429, 500, 503, details=DETAILS),
    },
    dependencies=[Depends(requires(Scope.READ))],
)
async def list_recipients(
    request: Request,
    batch_id: str,
    *,
    state: State | None = None,
    missed: Annotated[bool, Query(description="Those that ended without being sent to.")] = False,
    cursor: Annotated[str | None, Query(max_length=200)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Any:
    """In the order of the request. With `Accept: text/csv` all of them as one CSV file, `cursor` and `limit` aside.

    In the CSV a cell that a spreadsheet would take for a formula begins with an apostrophe.
    """

    def page(cursor: str | None, limit: int) -> BatchRecipients:
        return get_batches().recipients(batch_id, state=state, missed=missed, cursor=cursor, limit=limit)

    if "text/csv" in request.headers.get("Accept", ""):
        first = await run_in_threadpool(page, None, CSV_PAGE)
        name = f"{batch_id}-missed.csv" if missed else f"{batch_id}.csv"
        return StreamingResponse(
            _csv(first, page),
            media_type="text/csv; charset=utf-8",
            headers={"Content-Disposition": f'attachment; filename="{name}"'},
        )
    found = await run_in_threadpool(page, cursor, limit)
    items = [BatchRecipientView.model_validate(recipient) for recipient in found.items]
    return BatchRecipientPage(items=items, next=found.next)


async def _csv(page: BatchRecipients, read: Callable[[str | None, int], BatchRecipients]) -> AsyncIterator[str]:
    columns = [*BatchRecipientView.model_fields]
    yield _csv_rows([columns])
    while True:
        yield await run_in_threadpool(_csv_page, page)
        if page.next is None:
            return
        page = await run_in_threadpool(read, page.next, CSV_PAGE)


def _csv_page(page: BatchRecipients) -> str:
    views = (BatchRecipientView.model_validate(recipient) for recipient in page.items)
    return _csv_rows([_cell(value) for value in view.model_dump(mode="json").values()] for view in views)


def _csv_rows(rows: Any) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()


def _cell(value: object) -> object:
    # Spreadsheets run such cells (OWASP: CSV injection).
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def moment_of(batch_id: str) -> Moment:
    """How a batch stands. Raises UnknownBatch, OutboxUnavailable."""
    batch = get_batches().batch(batch_id)
    return Moment(str(batch.version), "progress", BatchView.model_validate(batch).model_dump_json(), batch.ended)


@router.get(
    "/{batch_id}/events",
    response_model=None,
    summary="Follow a batch",
    responses={
        200: {"content": {"text/event-stream": {"itemSchema": EVENT}}, "description": "Events"},
        204: {"description": "The batch has ended, and `Last-Event-ID` says that the client knows"},
        **responses(401, 403, 404, 429, 500, 503, details=DETAILS),
    },
    dependencies=[Depends(requires(Scope.READ))],
)
async def follow_batch(
    batch_id: str, last_event_id: Annotated[str | None, Header(description="Of the last event seen.")] = None
) -> Response:
    """Server-Sent Events: `progress` with the batch whenever it has changed, `end` once it has ended.

    A client that comes back with `Last-Event-ID` gets nothing twice.
    """
    look = partial(moment_of, batch_id)
    moment = await run_in_threadpool(look)
    if moment.ended and last_event_id == moment.end_id:
        return Response(status_code=204)
    if streams.full:
        raise HTTPException(503, "Too many clients follow batches on this server.", headers={"Retry-After": "10"})
    return EventSourceResponse(
        streams.follow(look, last_id=last_event_id),
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )


def _steer(verb: str, act: Callable[[Batches, str], Batch], summary: str, description: str) -> None:
    @router.post(
        f"/{{batch_id}}/{verb}",
        name=f"{verb} batch",
        summary=summary,
        description=description,
        responses=responses(401, 403, 404, 409, 429, 500, 503, details=DETAILS),
        dependencies=[Depends(requires(Scope.BULK))],
    )
    def steer_batch(batch_id: str) -> BatchView:
        return BatchView.model_validate(act(get_batches(), batch_id))


for _verb, _act, _summary, _description in (
    ("pause", Batches.pause, "Pause a batch", "Mails that are being sent end; no further one begins."),
    ("resume", Batches.resume, "Resume a paused batch", "It goes on where it was."),
    ("cancel", Batches.cancel, "Cancel a batch", "Who has not been sent to ends as `cancelled`."),
    ("retry-failed", Batches.retry_failed, "Send again to those that failed", "With fresh attempts."),
    ("release-held", Batches.release_held, "Send again to those that are held", "Some may get the mail twice."),
    ("drop-held", Batches.drop_held, "Give up on those that are held", "They end as `failed`."),
):
    _steer(_verb, _act, _summary, _description)

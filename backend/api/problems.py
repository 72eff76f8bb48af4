"""Errors as RFC 9457 problem details: what went wrong, which field, how to mend it; never the input itself."""

from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import ASGIApp

from api.request_log import RequestLog
from api.schemas import BatchRequest
from logs import current_request_id
from mail.errors import (
    BatchBeingAccepted,
    DeliveryError,
    FieldError,
    IdempotencyConflict,
    InvalidEmail,
    OutboxUnavailable,
    OutcomeUnknown,
    RecipientLimited,
    UnknownBatch,
    UnknownEmail,
    WrongState,
)
from mail.kinds import field_error

MEDIA_TYPE = "application/problem+json"
EXAMPLE_DETAILS = {
    401: "An API key is needed: Authorization: Bearer <key>, or X-API-Key: <key>.",
    403: "This key lacks the scope send.",
    404: "There is no email with this id.",
    409: "The Idempotency-Key was used with another email.",
    413: "The request is larger than MAX_BODY_BYTES allows.",
    415: "Send application/json or application/x-ndjson.",
    422: "The request has 1 fault.",
    429: "This API key made over 6000 requests in a minute. Try again in 1 s.",
    500: "Something went wrong on our side. The fault is in the server's log.",
    502: "The mail was not sent: SMTP server smtp.example.com:587 answered RCPT with 550 5.1.1 no such user",
    503: "Redis cannot be reached.",
}
"""One believable `detail` per status, for the OpenAPI description."""


class FieldProblem(BaseModel):
    """One field at fault."""

    field: str
    message: str


class Problem(BaseModel):
    """An error (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    errors: list[FieldProblem] | None = None
    request_id: str | None = Field(None, description="Of this request, as in X-Request-ID: to find it in the log.")
    id: str | None = Field(None, description="503 only: the email or batch may have been taken under this id.")


def problem(
    status: int,
    detail: str,
    *,
    errors: Sequence[FieldError] = (),
    headers: Mapping[str, str] | None = None,
    email_id: str | None = None,
) -> JSONResponse:
    """A problem response."""
    body = Problem(
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        errors=[FieldProblem(field=error.field, message=error.message) for error in errors] or None,
        request_id=current_request_id(),
        id=email_id,
    )
    return JSONResponse(
        body.model_dump(exclude_none=True), status, headers=dict(headers or {}), media_type=MEDIA_TYPE
    )


def responses(*statuses: int, details: Mapping[int, str] = EXAMPLE_DETAILS) -> dict[int | str, dict[str, Any]]:
    """The error responses of a route, for its OpenAPI description."""
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {
                MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "example": _example(status, details)}
            },
        }
        for status in statuses
    }


def _example(status: int, details: Mapping[int, str]) -> dict[str, Any]:
    error = FieldProblem(field="to", message="must be one email address, such as ada@example.com")
    body = Problem(
        title=HTTPStatus(status).phrase,
        status=status,
        detail=details[status],
        errors=[error] if status == 422 else None,
    )
    return body.model_dump(exclude_none=True)


def _invalid(errors: Sequence[FieldError]) -> JSONResponse:
    count = f"{len(errors)} faults" if len(errors) > 1 else "1 fault"
    return problem(422, f"The request has {count}.", errors=errors)


async def _on_validation(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101  registered for this type only
    errors = []
    for fault in error.errors():
        place, *path = fault["loc"]
        if fault["type"] == "json_invalid":
            errors.append(FieldError("body", "is not valid JSON"))
        elif place == "body" and not path and fault["type"] not in ("union_tag_invalid", "union_tag_not_found"):
            errors.append(FieldError("body", "must be a JSON object, sent with Content-Type: application/json"))
        elif place == "header":
            errors.append(field_error(fault["type"], tuple(str(name).title() for name in path), fault["msg"]))
        else:
            errors.append(field_error(fault["type"], tuple(path), fault["msg"]))
    return _invalid(errors)


async def _on_http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101  registered for this type only
    if error.status_code == 400:
        # FastAPI's word for a body it cannot read, such as JSON nested thousands deep.
        return _invalid([FieldError("body", "cannot be read")])
    details = {
        404: "There is nothing at this address.",
        405: "This address does not take this method.",
    }
    detail = (
        details.get(error.status_code, "") if error.detail == HTTPStatus(error.status_code).phrase else error.detail
    )
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_methods_of(request))
    return problem(error.status_code, detail or str(error.detail), headers=headers)


def _methods_of(request: Request) -> Iterator[str]:
    """Every method that an address takes (RFC 9110 10.2.1): Starlette names those of its first route only."""
    for method in ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT"):
        asked = {**request.scope, "method": method}
        if any(route.matches(asked)[0] is Match.FULL for route in request.app.routes):
            yield method


async def _on_email_error(_: Request, error: Exception) -> JSONResponse:
    match error:
        case InvalidEmail():
            return _invalid(error.errors)
        case UnknownEmail():
            what = "batch" if isinstance(error, UnknownBatch) else "email"
            return problem(404, f"There is no {what} with this id.")
        case WrongState() | IdempotencyConflict() | BatchBeingAccepted():
            # Only one of them goes away by itself, and a new key in its place would send a batch twice.
            later = {"Retry-After": "10"} if isinstance(error, BatchBeingAccepted) else {}
            return problem(409, f"{str(error)[:1].upper()}{str(error)[1:]}.", headers=later)
        case RecipientLimited():
            return problem(
                429,
                f"This recipient had too many mails of this kind. Try again in {error.retry_after} s.",
                headers={"Retry-After": str(error.retry_after)},
            )
        case OutboxUnavailable():
            doubt = (
                " It may have been taken under this id: repeat with the same Idempotency-Key."
                if error.email_id
                else ""
            )
            return problem(
                503,
                f"{error}.{doubt}",
                headers={"Retry-After": str(error.retry_after)},
                email_id=error.email_id,
            )
        case OutcomeUnknown():
            return problem(502, f"It is not known whether the mail was sent: {error}")
        case DeliveryError():
            return problem(502, f"The mail was not sent: {error}")
    return await _on_crash(_, error)


async def _on_crash(_: Request, __: Exception) -> JSONResponse:
    return problem(500, "Something went wrong on our side. The fault is in the server's log.")


class ProblemApp(FastAPI):
    """An application whose OpenAPI description knows its problems, and whose log has every request."""

    def build_middleware_stack(self) -> ASGIApp:
        """FastAPI's, in the request log: middleware that is added comes below what answers a crash."""
        return RequestLog(super().build_middleware_stack())

    def openapi(self) -> dict[str, Any]:
        """The description, made once."""
        return self.openapi_schema if self.openapi_schema else _describe(super().openapi())


def _describe(schema: dict[str, Any]) -> dict[str, Any]:
    """An OpenAPI description that knows problems, and nothing of FastAPI's own validation error."""
    schemas = schema["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    reference = "#/components/schemas/{model}"
    # These no route declares: problems are made by hand, and the body of a batch is read as a stream.
    for model in (Problem, FieldProblem, BatchRequest):
        described = model.model_json_schema(ref_template=reference)
        schemas.update(described.pop("$defs", {}))
        schemas[model.__name__] = described
    for operation in (operation for path in schema["paths"].values() for operation in path.values()):
        answer = operation["responses"].get("422", {})
        if "application/json" in answer.get("content", {}):
            del operation["responses"]["422"]
    return schema


def install(app: FastAPI) -> None:
    """Answer every error of the application with a problem."""
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_exception_handler(HTTPException, _on_http)
    for kind in (
        InvalidEmail,
        UnknownEmail,
        WrongState,
        IdempotencyConflict,
        BatchBeingAccepted,
        RecipientLimited,
        OutboxUnavailable,
        DeliveryError,
    ):
        app.add_exception_handler(kind, _on_email_error)
    app.add_exception_handler(Exception, _on_crash)

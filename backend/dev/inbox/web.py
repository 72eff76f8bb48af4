"""The HTTP side: a subset of Mailpit's REST API v1, and the page."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException

from dev.inbox import mailpit
from dev.inbox.guard import Guard
from dev.inbox.store import Mail, Store

PAGE = Path(__file__).parent / "page"
DEFAULT_LIMIT = 50


class Selection(BaseModel):
    """The body of a deletion; no ids mean all mails."""

    IDs: list[str] = []


def create_app(store: Store, host: str) -> FastAPI:
    """`host` is the configured listen address: a Host header that names it is accepted beside loopback ones.

    Only the event loop touches the store; reading mails, which may take long, is done in threads.
    """
    app = FastAPI(title="Development inbox", openapi_url=None)
    app.add_middleware(Guard, host=host)

    @app.exception_handler(StarletteHTTPException)
    async def error(_request: Request, fault: StarletteHTTPException) -> JSONResponse:
        return JSONResponse({"Error": fault.detail}, fault.status_code, fault.headers)

    def find(mail_id: str) -> Mail:
        mail = store.get(mail_id)
        if mail is None:
            raise HTTPException(404, "message not found")
        return mail

    async def page_of(request: Request, matching: Sequence[Mail]) -> JSONResponse:
        start = _number(request, "start", 0)
        limit = _number(request, "limit", DEFAULT_LIMIT)
        page = matching[start : start + limit] if limit else matching  # Mailpit: 0 is all, from the first on
        stored = store.newest_first()
        return JSONResponse(await asyncio.to_thread(mailpit.listing, page, matching, stored, start))

    @app.get("/api/v1/messages")
    async def messages(request: Request) -> JSONResponse:
        return await page_of(request, store.newest_first())

    @app.get("/api/v1/search")
    async def search(request: Request) -> JSONResponse:
        query = request.query_params.get("query", "").strip()
        if not query:
            raise HTTPException(400, "no search query")
        return await page_of(request, await asyncio.to_thread(mailpit.search, store.newest_first(), query))

    @app.delete("/api/v1/messages")
    async def delete_messages(request: Request) -> Response:
        body = await request.body()
        try:
            selection = Selection.model_validate_json(body) if body.strip() else Selection()
        except ValidationError as fault:
            raise HTTPException(400, 'the body must be empty or {"IDs": [...]}') from fault
        if selection.IDs:
            store.delete(selection.IDs)
        else:
            store.clear()
        return PlainTextResponse("ok")

    @app.get("/api/v1/message/{mail_id}")
    async def message(mail_id: str) -> JSONResponse:
        mail = find(mail_id)
        mail.read = True
        return JSONResponse(await asyncio.to_thread(mailpit.message, mail))

    @app.get("/api/v1/message/{mail_id}/raw")
    async def raw(mail_id: str) -> Response:
        return Response(find(mail_id).raw, media_type="text/plain")

    app.mount("/", StaticFiles(directory=PAGE, html=True))
    return app


def _number(request: Request, name: str, default: int) -> int:
    """Mailpit takes its default where a number cannot be read."""
    try:
        number = int(request.query_params.get(name, default))
    except ValueError:
        return default
    return number if number >= 0 else default

"""The HTTP side: a subset of Mailpit's REST API v1, and the page."""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from urllib.parse import quote

from fastapi import APIRouter, FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException

from dev.inbox import mailpit, view
from dev.inbox.chaos import Chaos, Fault, Trouble
from dev.inbox.guard import Guard
from dev.inbox.parsing import parse
from dev.inbox.store import Mail, Store

PAGE = Path(__file__).parent / "page"
DEFAULT_LIMIT = 50
BURST_SECONDS = 0.1  # mails that come within this time are told of together

BINARY = "application/octet-stream"
_MEDIA_TYPE = re.compile(r"[\w.+-]+/[\w.+-]+", re.ASCII)
# Not for file names: separators, what Windows refuses, control characters, and signs that turn the direction of
# text, which make `exe.fdp` out of `pdf.exe`.
_NOT_IN_FILENAMES = re.compile(r'[\\/:*?"<>|\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]+')


class Selection(BaseModel):
    """The body of a deletion; no ids mean all mails."""

    IDs: list[str] = []


def create_app(store: Store, chaos: Chaos, host: str, smtp_port: int, framed_by: Sequence[str] = ()) -> FastAPI:
    """`host` is the configured listen address: a Host header that names it is accepted beside loopback ones.
    An empty inbox shows how to send a first mail to `smtp_port`. `framed_by`: see Guard.

    Only the event loop touches the store; reading mails, which may take long, is done in threads.
    """
    app = FastAPI(title="Development inbox", openapi_url=None)
    app.add_middleware(Guard, host=host, framed_by=framed_by)

    @app.exception_handler(StarletteHTTPException)
    async def error(_request: Request, fault: StarletteHTTPException) -> JSONResponse:
        return JSONResponse({"Error": fault.detail}, fault.status_code, fault.headers)

    app.include_router(_all_mails(store), prefix="/api")
    app.include_router(_one_mail(store))
    app.include_router(_trouble(chaos), prefix="/api")
    index = (PAGE / "index.html").read_text().replace("{{smtp_port}}", str(smtp_port))

    @app.get("/")
    async def page() -> HTMLResponse:
        return HTMLResponse(index)

    app.mount("/", StaticFiles(directory=PAGE))
    return app


def _all_mails(store: Store) -> APIRouter:
    router = APIRouter()

    async def page_of(request: Request, matching: Sequence[Mail]) -> JSONResponse:
        start = _number(request, "start", 0)
        limit = _number(request, "limit", DEFAULT_LIMIT)
        page = matching[start : start + limit] if limit else matching  # Mailpit: 0 is all, from the first on
        stored = store.newest_first()
        return JSONResponse(await asyncio.to_thread(mailpit.listing, page, matching, stored, start))

    async def found(request: Request) -> list[Mail]:
        query = request.query_params.get("query", "").strip()
        if not query:
            raise HTTPException(400, "no search query")
        return await asyncio.to_thread(mailpit.search, store.newest_first(), query)

    @router.get("/v1/messages")
    async def messages(request: Request) -> JSONResponse:
        return await page_of(request, store.newest_first())

    @router.delete("/v1/messages")
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

    @router.get("/v1/search")
    async def search(request: Request) -> JSONResponse:
        return await page_of(request, await found(request))

    @router.delete("/v1/search")
    async def delete_found(request: Request) -> Response:
        store.delete([mail.id for mail in await found(request)])
        return PlainTextResponse("ok")

    @router.get("/events")
    async def events() -> StreamingResponse:
        """Server-Sent Events, one for every change. Mailpit has WebSockets here; a client of ours only listens."""

        async def stream() -> AsyncIterator[str]:
            yield "retry: 1000\n\n"
            async for _ in store.changes():
                yield "data: changed\n\n"
                await asyncio.sleep(BURST_SECONDS)

        return StreamingResponse(stream(), media_type="text/event-stream")

    return router


def _trouble(chaos: Chaos) -> APIRouter:
    """Not Mailpit's chaos, which knows replies only."""
    router = APIRouter()

    @router.get("/chaos")
    async def trouble() -> Trouble:
        return chaos.trouble

    @router.put("/chaos")
    async def make_trouble(request: Request) -> Trouble:
        try:
            chaos.change(Trouble.model_validate_json(await request.body()))
        except ValidationError as fault:
            raise HTTPException(400, f"fault must be one of {', '.join(Fault)}; see docs/inbox.md") from fault
        return chaos.trouble

    return router


def _one_mail(store: Store) -> APIRouter:
    router = APIRouter()

    def find(mail_id: str) -> Mail:
        mail = store.get(mail_id)
        if mail is None:
            raise HTTPException(404, "message not found")
        return mail

    @router.get("/api/v1/message/{mail_id}")
    async def message(mail_id: str) -> JSONResponse:
        mail = find(mail_id)
        store.mark_read(mail)
        return JSONResponse(await asyncio.to_thread(mailpit.message, mail))

    @router.get("/api/v1/message/{mail_id}/raw")
    async def raw(mail_id: str, request: Request) -> Response:
        mail = find(mail_id)
        headers = {}
        if request.query_params.get("dl") == "1":
            content = await asyncio.to_thread(parse, mail.raw)
            headers = _download(f"{content.outline.subject[:80] or mail.id}.eml")
        return Response(mail.raw, media_type="text/plain", headers=headers)

    @router.get("/api/v1/message/{mail_id}/part/{part_id}")
    async def part(mail_id: str, part_id: str) -> Response:
        content = await asyncio.to_thread(parse, find(mail_id).raw)
        for each in (*content.attachments, *content.inline):
            if each.part_id == part_id:
                media_type = each.content_type if _MEDIA_TYPE.fullmatch(each.content_type) else BINARY
                name = each.filename or each.content_id or f"part {part_id}"
                return Response(each.content, headers={"Content-Type": media_type, **_download(name)})
        raise HTTPException(404, "part not found")

    @router.get("/view/{mail_id}.html")
    async def html(mail_id: str, request: Request) -> Response:
        content = await asyncio.to_thread(parse, find(mail_id).raw)
        if not content.html:
            raise HTTPException(404, "this message has no HTML")
        remote = request.query_params.get("remote") == "1"
        document = await asyncio.to_thread(view.document, content)
        return HTMLResponse(document, headers=view.security_headers(remote_images=remote))

    return router


def _download(filename: str) -> dict[str, str]:
    """Headers that have a browser save the answer under this name and never show it (RFC 6266)."""
    name = _NOT_IN_FILENAMES.sub("-", filename).strip(". ") or "unnamed"
    return {"Content-Disposition": f"attachment; filename*=utf-8''{quote(name, safe='')}"}


def _number(request: Request, name: str, default: int) -> int:
    """Mailpit takes its default where a number cannot be read."""
    try:
        number = int(request.query_params.get(name, default))
    except ValueError:
        return default
    return number if number >= 0 else default

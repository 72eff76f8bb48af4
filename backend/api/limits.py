"""Refuses a request that is too large before it is read."""

from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.problems import TOO_LARGE, problem


class BodyLimit:
    """ASGI middleware: 413 at once when Content-Length says too much, or when a chunked body grows too large."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        # Python refuses to read a number of thousands of digits.
        if not declared.isdigit() or len(declared) > 18 or int(declared) > self._limit:
            await problem(413, TOO_LARGE, headers={"Connection": "close"})(scope, receive, send)
            return
        seen = 0

        async def count() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._limit:
                raise HTTPException(413, TOO_LARGE)
            return message

        await self._app(scope, count, send)

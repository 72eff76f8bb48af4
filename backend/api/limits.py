"""Refuses a request that is too large before it is read."""

from collections.abc import Mapping
from typing import NamedTuple

from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.problems import problem


class Limit(NamedTuple):
    """The most bytes that a body may have, and the setting that says so."""

    size: int
    setting: str

    @property
    def detail(self) -> str:
        return f"The request is larger than {self.setting} allows."


class BodyLimit:
    """ASGI middleware: 413 at once when Content-Length says too much, or when a chunked body grows too large.

    Args:
        limit: for every path
        exceptions: but for those that end with one of these.
    """

    def __init__(self, app: ASGIApp, limit: Limit, exceptions: Mapping[str, Limit]) -> None:
        self._app = app
        self._limit = limit
        self._exceptions = exceptions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._limit_of(scope["path"])
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        # Python refuses to read a number of thousands of digits.
        if not declared.isdigit() or len(declared) > 18 or int(declared) > limit.size:
            await problem(413, limit.detail, headers={"Connection": "close"})(scope, receive, send)
            return
        seen = 0

        async def count() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit.size:
                raise HTTPException(413, limit.detail)
            return message

        await self._app(scope, count, send)

    def _limit_of(self, path: str) -> Limit:
        # A proxy may serve the API under a path of its own.
        return next((limit for end, limit in self._exceptions.items() if path.endswith(end)), self._limit)

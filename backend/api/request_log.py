"""One line for every request; and an id by which what it began is found, in the answer, the log and the outbox."""

import time

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars, clear_contextvars

from logs import request_id

HEADER = "X-Request-ID"
QUIET = ("/health/", "/metrics")

logger = structlog.get_logger(__name__)


class RequestLog:
    """ASGI middleware, around all others: their answers are logged too."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        own = request_id(Headers(scope=scope).get(HEADER))
        # Not taken back: a request has a task of its own, and what uvicorn says of a crash comes after this.
        clear_contextvars()
        bind_contextvars(request_id=own)
        state = scope.setdefault("state", {})
        status = None

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = own
            await send(message)

        began = time.monotonic()
        try:
            await self._app(scope, receive, answer)
        finally:
            quiet = scope["path"].startswith(QUIET) and status in (200, 503)
            failed = status is not None and status >= 500
            level = logger.debug if quiet else logger.warning if failed else logger.info
            caller, client = state.get("caller"), scope.get("client")
            level(
                "http.request",
                method=scope["method"],
                path=scope["path"],
                status=status,
                ms=round((time.monotonic() - began) * 1000, 1),
                key=caller.name if caller else None,
                client=client[0] if client else None,
            )

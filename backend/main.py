"""The web application: `uvicorn main:app`, from `backend/`."""

import gc
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

import logs
from api import batches, connections, console, docs_page, emails, health, metrics, problems, tasks
from api.limits import BodyLimit, Limit
from api.request_log import HEADER
from api.streams import streams
from mail.errors import ConfigurationError, OutboxUnavailable
from mail.findings import refuse_unfit
from settings import Settings, get_settings, read_settings
from utils.composition import close, get_outbox, new_alerter

logger = structlog.get_logger(__name__)


@asynccontextmanager
async def _lifespan(_: FastAPI) -> AsyncIterator[None]:
    streams.end_with_process()
    alerter = new_alerter()  # here too: no worker node may be left to say that there is none
    if alerter:
        alerter.start()
    yield
    if alerter:
        alerter.stop()
    close()


def create_app(settings: Settings) -> FastAPI:
    """Build the application from settings."""
    app = problems.ProblemApp(
        title="LMS mail",
        version="0.1.0",
        description="Accepts emails for the learning-management system, keeps them, and sends them. To try a call "
        "here, press Authorize and paste the key of an entry in `API_KEYS`.",
        lifespan=_lifespan,
        # FastAPI's own pages load their scripts from elsewhere; docs_page has one that does not.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # to the host that the request names
    )
    problems.install(app)
    connections.install()
    # In the order of how often they are asked for: FastAPI tries one route after the other.
    for router in (emails.router, batches.router, tasks.router, health.router, metrics.router):
        app.include_router(router)
    docs_page.install(app)
    console.install(app)
    app.add_middleware(
        BodyLimit,
        limit=Limit(settings.max_body_bytes, "MAX_BODY_BYTES"),
        exceptions={"/api/batches": Limit(settings.batch_max_body_bytes, "BATCH_MAX_BODY_BYTES")},
    )
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "X-API-Key", "Idempotency-Key", "Content-Type", "Last-Event-ID", HEADER],
            expose_headers=["Idempotent-Replayed", "RateLimit", "RateLimit-Policy", "Retry-After", HEADER],
        )
    return app


def _say_if_closed(settings: Settings) -> None:
    if not settings.keys:  # development only: elsewhere the settings demand one
        logger.warning("api.closed", hint="no API_KEYS: every call gets a 401, which says how to make a key")


def _check_redis() -> None:
    """Refuse a Redis that will never do; a start without one is fine.

    Not in the lifespan: whatever is raised there ends in a traceback.
    """
    outbox = get_outbox()  # on a developer's machine this makes the outbox's key, before a worker makes another
    try:
        with outbox.answered():
            refuse_unfit(outbox.info())
    except OutboxUnavailable as error:
        logger.warning("outbox.unavailable", error=str(error), hint="until this is mended, emails get a 503")


def _keep_answering() -> None:
    """Let a batch that is validated, which is pure computing in a thread, hold no other call up."""
    # How long a thread waits for the interpreter each time it wants it back. A call wants it about ten times, and the
    # default is 5 ms.
    sys.setswitchinterval(0.0005)
    # A batch makes many objects, so the collector looks through all there are often. It need not look at those that
    # the program itself is made of, which took 50 ms each time.
    gc.collect()
    gc.freeze()


try:
    logs.set_up("api", read_settings())
    app = create_app(get_settings())
    _say_if_closed(get_settings())
    _check_redis()
    _keep_answering()
except ConfigurationError as error:
    sys.exit(str(error))

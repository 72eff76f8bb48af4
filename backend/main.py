"""The web application: `uvicorn main:app`, from `backend/`."""

import gc
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from api import access_log, batches, docs_page, emails, health, problems, tasks
from api.batch_events import streams
from api.limits import BodyLimit, Limit
from mail.errors import ConfigurationError, OutboxUnavailable
from mail.wire import refuse_unfit
from settings import Settings, get_settings
from utils.composition import close, get_outbox

logger = logging.getLogger(__name__)


@asynccontextmanager
async def _lifespan(_: FastAPI) -> AsyncIterator[None]:
    streams.end_with_process()
    yield
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
    )
    problems.install(app)
    access_log.install()
    docs_page.install(app)
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
            allow_headers=["Authorization", "X-API-Key", "Idempotency-Key", "Content-Type", "Last-Event-ID"],
            expose_headers=["Idempotent-Replayed", "Retry-After"],
        )
    for router in (emails.router, batches.router, tasks.router, health.router):
        app.include_router(router)
    return app


def _say_if_closed(settings: Settings) -> None:
    if not settings.keys:  # development only: elsewhere the settings demand one
        logger.warning("No API_KEYS: every call of the API is answered with 401, which says how to make a key.")


def _check_redis() -> None:
    """Refuse a Redis that will never do; a start without one is fine.

    Not in the lifespan: whatever is raised there ends in a traceback.
    """
    outbox = get_outbox()  # on a developer's machine this makes the outbox's key, before a worker makes another
    try:
        with outbox.answered():
            refuse_unfit(outbox.info())
    except OutboxUnavailable as error:
        logger.warning("%s; until that is mended, emails are answered with 503.", error)


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
    app = create_app(get_settings())
    _say_if_closed(get_settings())
    _check_redis()
    _keep_answering()
except ConfigurationError as error:
    sys.exit(str(error))

"""The web application: `uvicorn main:app`, from `backend/`."""

import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import redis
from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from fastapi.middleware.cors import CORSMiddleware

from api import access_log, emails, health, problems, tasks
from api.limits import BodyLimit
from mail.errors import ConfigurationError
from settings import Settings, get_settings
from utils.composition import close, get_outbox

logger = logging.getLogger(__name__)


@asynccontextmanager
async def _lifespan(_: FastAPI) -> AsyncIterator[None]:
    try:
        await run_in_threadpool(get_outbox().refuse_cluster)
    except redis.RedisError:
        logger.warning("Redis cannot be reached yet; emails are answered with 503 until it can")
    yield
    close()


def create_app(settings: Settings) -> FastAPI:
    """Build the application from settings."""
    app = problems.ProblemApp(
        title="LMS mail",
        version="0.1.0",
        description="Accepts emails for the learning-management system, keeps them, and sends them.",
        lifespan=_lifespan,
    )
    problems.install(app)
    access_log.install()
    app.add_middleware(BodyLimit, limit=settings.max_body_bytes)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "X-API-Key", "Idempotency-Key", "Content-Type"],
            expose_headers=["Idempotent-Replayed", "Retry-After"],
        )
    for router in (emails.router, tasks.router, health.router):
        app.include_router(router)
    return app


try:
    app = create_app(get_settings())
    get_outbox()  # on a developer's machine this makes the key of the outbox, before a worker could make another
except ConfigurationError as error:
    sys.exit(str(error))

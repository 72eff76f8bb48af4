"""`/health/live` and `/health/ready`."""

from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from api.auth import find_caller
from api.problems import problem, responses
from mail.errors import OutboxUnavailable
from mail.kinds import Lane
from mail.wire import nearly_full
from settings import Scope
from utils.composition import get_outbox

router = APIRouter(prefix="/health", tags=["health"])


@router.get("/live", summary="The process runs")
async def live() -> dict[str, str]:
    """Needs nothing but this process."""
    return {"status": "ok"}


@router.get("/ready", summary="Emails are accepted", responses=responses(503))
def ready(request: Request) -> Response:
    """503 only when Redis cannot be reached. With a `read` key the answer holds warnings and the lanes."""
    outbox = get_outbox()
    try:
        with outbox.answered():
            info, lanes = outbox.info(), outbox.lanes()
    except OutboxUnavailable as error:
        return problem(503, f"{error}.", headers={"Retry-After": "2"})
    caller = find_caller(request)
    body: dict[str, Any] = {"status": "ok"}
    if caller and Scope.READ in caller.scopes:
        body |= {"warnings": [*_redis_warnings(info), *_lane_warnings(lanes)], "lanes": _plain(lanes)}
    elif "Authorization" in request.headers or "X-API-Key" in request.headers:
        body["detail"] = "Warnings are shown to a key with the scope read."
    return JSONResponse(body)


def _redis_warnings(info: Mapping[str, Any]) -> Iterator[str]:
    if not info:
        yield "Redis forbids INFO: persistence and memory cannot be checked"
        return
    if not info.get("aof_enabled"):
        yield "Redis keeps no append-only file: accepted emails die with it. redis-cli CONFIG SET appendonly yes"
    elif info.get("aof_last_write_status") != "ok":
        yield "Redis cannot write its append-only file: look at its disk and log"
    if info.get("maxmemory") and info.get("maxmemory_policy") != "noeviction":
        yield f"Redis may evict emails: maxmemory-policy is {info['maxmemory_policy']}. Set noeviction"
    if nearly_full(info):
        yield "Redis memory is over 90 % of maxmemory: accepting has stopped"


def _lane_warnings(lanes: Mapping[Lane, Mapping[str, Any]]) -> Iterator[str]:
    for lane, status in lanes.items():
        if not status["nodes"]:
            yield f"{lane}: no worker node serves this lane. Run ./start_celery.sh"
        if status["closed"]:
            yield f"{lane}: kept back since {status['closed']['since'].isoformat()}: {status['closed']['reason']}"
        if status["slowed"]:
            yield f"{lane}: slowed since {status['slowed']['since'].isoformat()}: {status['slowed']['reason']}"


def _plain(lanes: Mapping[Lane, Mapping[str, Any]]) -> dict[str, Any]:
    return {
        lane: {
            "due": status["due"],
            "oldest_due_seconds": status["oldest_due_seconds"],
            "nodes": status["nodes"],
            "held": bool(status["closed"]),
            "slowed": bool(status["slowed"]),
        }
        for lane, status in lanes.items()
    }

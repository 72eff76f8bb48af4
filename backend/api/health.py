"""`/health/live` and `/health/ready`."""

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from api.auth import find_caller
from api.problems import problem, responses
from mail.errors import OutboxUnavailable
from mail.findings import lane_findings, redis_findings
from mail.measures import Measurement
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
            info, measured = outbox.info(), outbox.measure()
    except OutboxUnavailable as error:
        return problem(503, f"{error}.", headers={"Retry-After": "2"})
    caller = find_caller(request)
    body: dict[str, Any] = {"status": "ok"}
    if caller and Scope.READ in caller.scopes:
        found = [one for one in (*redis_findings(info), *lane_findings(measured)) if not one.well]
        body |= {"warnings": [f"{one.sentence}. {one.fix}" for one in found], "lanes": _plain(measured)}
    elif "Authorization" in request.headers or "X-API-Key" in request.headers:
        body["detail"] = "Warnings are shown to a key with the scope read."
    return JSONResponse(body)


def _plain(found: Measurement) -> dict[str, Any]:
    return {
        lane: {
            "due": status.due,
            "oldest_due_seconds": status.oldest_due,
            "nodes": status.nodes,
            "held": bool(found.closed(lane)),
            "slowed": bool(status.slowed),
        }
        for lane, status in found.lanes.items()
    }

"""The first page: is mail going out, and if not, why. Live."""

import hashlib
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response

from api.console.charts import chart_of
from api.console.page import Page, follow, fragment, render
from api.streams import Moment
from mail.findings import lane_findings, redis_findings
from mail.records import State
from utils.composition import get_outbox

router = APIRouter(prefix="/console", include_in_schema=False, route_class=Page)

RECENT = 8


@router.get("")
def overview(request: Request) -> Response:
    return render(request, "overview.html", **_found())


@router.get("/events")
async def events(last_event_id: Annotated[str | None, Header()] = None) -> Response:
    """The inside of the page, whenever it changes."""
    return follow(_moment, last_event_id)


def _moment() -> Moment:
    page = fragment("_overview.html", **_found())
    return Moment(hashlib.sha256(page.encode()).hexdigest()[:16], "page", page)


def _found() -> dict[str, Any]:
    outbox = get_outbox()
    with outbox.answered():
        info, measured, hour = outbox.info(), outbox.measure(), outbox.last_hour()
        failed, held = (outbox.list(state=state, limit=RECENT).items for state in (State.FAILED, State.HELD))
    troubles = [one for one in (*redis_findings(info), *lane_findings(measured)) if not one.well]
    recent = sorted([*failed, *held], key=lambda record: record.updated_at, reverse=True)[:RECENT]
    return {"measured": measured, "troubles": troubles, "recent": recent, "chart": chart_of(hour)}

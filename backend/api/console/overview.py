"""The first page: is mail going out, and if not, why. Live."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Header, Request, Response

from api.console.charts import chart_of
from api.console.page import Page, follow, fragment, render, snapshot
from mail.findings import Finding, Level, lane_findings, redis_findings
from mail.records import State
from utils.composition import get_outbox

router = APIRouter(prefix="/console", include_in_schema=False, route_class=Page)

RECENT = 8


class Trouble(NamedTuple):
    """What is not well; `lanes`: those that suffer from it."""

    level: Level
    text: str
    fix: str
    since: datetime | None
    lanes: Sequence[str]


@router.get("")
def overview(request: Request) -> Response:
    return render(request, "overview.html", **_found())


@router.get("/events")
async def events(request: Request, last_event_id: Annotated[str | None, Header()] = None) -> Response:
    """The inside of the page, whenever it changes."""
    return follow(lambda: snapshot(fragment(request, "_overview.html", **_found())), last_event_id)


def _found() -> dict[str, Any]:
    outbox = get_outbox()
    with outbox.answered():
        info, measured, hour = outbox.info(), outbox.measure(), outbox.last_hour()
        failed, held = (outbox.list(state=state, limit=RECENT).items for state in (State.FAILED, State.HELD))
    troubles = troubles_of((*redis_findings(info), *lane_findings(measured)))
    recent = sorted([*failed, *held], key=lambda record: record.updated_at, reverse=True)[:RECENT]
    return {"measured": measured, "troubles": troubles, "recent": recent, "chart": chart_of(hour)}


def troubles_of(findings: Iterable[Finding]) -> list[Trouble]:
    """What is not well, once: a server that takes no mail keeps all lanes waiting. The worst first."""
    lanes: dict[Finding, list[str]] = {}
    for one in findings:
        if not one.well:
            lanes.setdefault(one._replace(name=""), []).append(one.lane)
    found = [Trouble(one.level, one.text, one.fix, one.since, [*filter(None, of)]) for one, of in lanes.items()]
    return sorted(found, key=lambda trouble: list(Level).index(trouble.level), reverse=True)

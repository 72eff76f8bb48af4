"""The first page: is mail going out, and if not, why."""

from fastapi import APIRouter, Request, Response

from api.console.page import Page, render
from mail.findings import lane_findings, redis_findings
from mail.records import State
from utils.composition import get_outbox

router = APIRouter(prefix="/console", include_in_schema=False, route_class=Page)

RECENT = 8


@router.get("")
def overview(request: Request) -> Response:
    outbox = get_outbox()
    with outbox.answered():
        info, measured = outbox.info(), outbox.measure()
        troubles = [one for one in (*redis_findings(info), *lane_findings(measured)) if not one.well]
        failures = outbox.list(state=State.FAILED, limit=RECENT).items
        held = outbox.list(state=State.HELD, limit=RECENT).items
    recent = sorted([*failures, *held], key=lambda record: record.updated_at, reverse=True)[:RECENT]
    return render(request, "overview.html", measured=measured, troubles=troubles, recent=recent)

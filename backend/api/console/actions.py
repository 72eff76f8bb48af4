"""What was done by hand, and by whom."""

from fastapi import APIRouter, Request, Response

from api.console.page import Page, render
from utils.composition import get_actions

router = APIRouter(prefix="/console/actions", include_in_schema=False, route_class=Page)

SHOWN = 200


@router.get("")
def actions(request: Request) -> Response:
    """The last ones, newest first."""
    return render(request, "actions.html", actions=get_actions().latest(SHOWN))

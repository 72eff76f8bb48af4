"""Batches: how far each is, what became of whom, and steering."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Header, HTTPException, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from api.console.page import Page, demand, done, follow, fragment, render, snapshot
from api.streams import Moment
from mail.batches import Batch, Batches, BatchState
from mail.records import State
from settings import Scope
from utils.composition import get_batches

router = APIRouter(prefix="/console/batches", include_in_schema=False, route_class=Page)

SIZE = 25
RECIPIENTS = 50
ORDER = (
    State.SENT,
    State.SENDING,
    State.RETRYING,
    State.QUEUED,
    State.SCHEDULED,
    State.FAILED,
    State.HELD,
    State.CANCELLED,
    State.EXPIRED,
    State.SUPPRESSED,
)
USUAL = {State.SENT, State.SENDING, State.RETRYING, State.QUEUED, State.FAILED, State.HELD}
"""Shown at 0 too, so that nothing moves when there is a first one."""


class Steer(NamedTuple):
    """One thing that can be done with a batch. `ask`: the question before it, where it cannot be taken back."""

    act: Callable[[Batches, str], Batch]
    label: str
    fits: Callable[[Batch], bool]
    ask: str = ""


STEERS: Mapping[str, Steer] = {
    "pause": Steer(Batches.pause, "Pause", lambda one: one.state in {BatchState.QUEUED, BatchState.SENDING}),
    "resume": Steer(Batches.resume, "Resume", lambda one: one.state is BatchState.PAUSED),
    "retry-failed": Steer(Batches.retry_failed, "Send again to the failed", lambda one: State.FAILED in one.counts),
    "release-held": Steer(
        Batches.release_held,
        "Send again to the held",
        lambda one: State.HELD in one.counts,
        "Nobody can tell whether they have it: some may get the mail twice.",
    ),
    "drop-held": Steer(
        Batches.drop_held,
        "Give up on the held",
        lambda one: State.HELD in one.counts,
        "They end as failed, and may have the mail all the same.",
    ),
    "cancel": Steer(
        Batches.cancel,
        "Cancel",
        lambda one: not one.ended and one.state is not BatchState.CANCELLED,
        "Who has not been sent to gets nothing. This cannot be taken back.",
    ),
}


@router.get("")
def batches(request: Request, cursor: Annotated[str | None, Query(max_length=200)] = None) -> Response:
    """All batches, newest first."""
    page = get_batches().list(cursor=cursor, limit=SIZE)
    may_write = request.state.session.may(Scope.BULK)
    return render(
        request,
        "batches.html",
        batches=page.items,
        more=page.next,
        first=cursor is None,
        order=ORDER,
        may_write=may_write,
    )


@router.get("/{batch_id}")
def batch(
    request: Request,
    batch_id: str,
    *,
    state: Annotated[str, Query(max_length=20)] = "",
    cursor: Annotated[str | None, Query(max_length=200)] = None,
) -> Response:
    """One batch, live, and its recipients."""
    found = get_batches().batch(batch_id)
    missed = state == "missed"
    wanted = State(state) if state in set(State) else None
    page = get_batches().recipients(batch_id, state=wanted, missed=missed, cursor=cursor, limit=RECIPIENTS)
    return render(
        request,
        "batch.html",
        **_shown(request, found),
        recipients=page.items,
        more=page.next,
        first=cursor is None,
        asked=state,
    )


@router.get("/{batch_id}/events")
async def events(request: Request, batch_id: str, last_event_id: Annotated[str | None, Header()] = None) -> Response:
    """The live part of the page, whenever it changes."""

    def look() -> Moment:
        found = get_batches().batch(batch_id)
        return snapshot(fragment(request, "_batch.html", **_shown(request, found)))

    await run_in_threadpool(look)
    return follow(look, last_event_id)


@router.post("/{batch_id}/{verb}")
def steer(request: Request, batch_id: str, verb: str) -> Response:
    """Do one of STEERS."""
    demand(request, Scope.BULK)
    if verb not in STEERS:
        raise HTTPException(404, "There is nothing at this address.")
    STEERS[verb].act(get_batches(), batch_id)
    return done(request, f"{STEERS[verb].label}: {batch_id}", f"/console/batches/{batch_id}")


def _shown(request: Request, found: Batch) -> dict[str, Any]:
    may_steer = request.state.session.may(Scope.BULK)
    return {"batch": found, "order": ORDER, "usual": USUAL, "steers": STEERS if may_steer else {}}

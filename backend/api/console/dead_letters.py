"""Dead letters: what failed or is held, grouped by cause, and what can be done with all of a cause."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool

from api.console.page import Page, demand, done, form, render
from mail.errors import WrongState
from mail.records import Record, State
from settings import Scope
from utils.composition import get_outbox

router = APIRouter(prefix="/console/dead-letters", include_in_schema=False, route_class=Page)

MOST = 2_000  # the newest of each state; whoever has more mends a cause first
SHOWN = 5

# What differs from mail to mail of one cause: addresses, queue ids, times.
_DIFFERS = re.compile(r"[^\s<>@]+@[^\s<>@]+|\b(?=\w*\d)(?=\w*[a-zA-Z])\w{7,}\b|\b\d{4,}\b")


@dataclass
class Cause:
    """Records that failed, or are held, for the same reason, newest first."""

    state: State
    text: str
    records: list[Record] = field(default_factory=list)

    @property
    def id(self) -> str:
        return hashlib.sha256(f"{self.state}:{self.text}".encode()).hexdigest()[:16]


@router.get("")
def dead_letters(request: Request) -> Response:
    """All causes, the one with most mails first."""
    causes = sorted(_causes(), key=lambda cause: len(cause.records), reverse=True)
    more = any(sum(len(one.records) for one in causes if one.state is state) >= MOST for state in _STATES)
    may_act = request.state.session.may(Scope.ADMIN)
    return render(request, "dead_letters.html", causes=causes, shown=SHOWN, more=more, may_act=may_act)


@router.post("/retry")
async def retry(request: Request) -> Response:
    """Send all of one cause again; those that cannot be sent any more stay, each with its reason."""
    demand(request, Scope.ADMIN)
    wanted = (await form(request)).get("cause", "")
    number = await run_in_threadpool(_retry, wanted)
    return await run_in_threadpool(done, request, f"sent again: {number} dead letters", "/console/dead-letters")


def _retry(wanted: str) -> int:
    cause = next((one for one in _causes() if one.id == wanted), None)
    if cause is None:
        raise HTTPException(404, "There is no such cause any more: what it held was sent or removed.")
    number = 0
    for record in cause.records:
        with suppress(WrongState):  # its secret or its time is gone, or somebody else was faster
            get_outbox().retry(record.id)
            number += 1
    return number


_STATES = (State.FAILED, State.HELD)


def _causes() -> Sequence[Cause]:
    found: dict[tuple[State, str], Cause] = {}
    for record in _records():
        text = _DIFFERS.sub("…", record.error or "no reason was written down")
        cause = found.setdefault((record.state, text), Cause(record.state, text))
        cause.records.append(record)
    return list(found.values())


def _records() -> Iterator[Record]:
    outbox = get_outbox()
    for state in _STATES:
        cursor, left = None, MOST
        while left > 0:
            page = outbox.list(state=state, cursor=cursor, limit=min(200, left))
            yield from page.items
            left -= len(page.items)
            cursor = page.next
            if cursor is None:
                break

"""Dead letters: what failed or is held, grouped by cause; sent again, released or given up, one or all of a cause."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse

from api.console.page import Page, demand, fields, render
from mail.errors import FieldError, InvalidEmail, UnknownEmail, WrongState
from mail.records import Record, State
from settings import Scope
from utils.composition import get_actions, get_outbox
from utils.sessions import Session

router = APIRouter(prefix="/console/dead-letters", include_in_schema=False, route_class=Page)

MOST = 2_000  # the newest of each state; whoever has more mends a cause first
SHOWN = 5
SHOWN_OF_ONE = 200
LONGEST_REASON = 200

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
def dead_letters(
    request: Request,
    *,
    cause: Annotated[str, Query(max_length=16)] = "",
    done: Annotated[int | None, Query(ge=0)] = None,
    left: Annotated[int, Query(ge=0)] = 0,
) -> Response:
    """All causes, the one with most mails first; or one of them, with more of its mails. `done`, `left`: what became
    of those that were chosen on the page before."""
    causes = sorted(_causes(), key=lambda one: len(one.records), reverse=True)
    of_state = Counter(record.state for one in causes for record in one.records)
    return render(
        request,
        "dead_letters.html",
        causes=[one for one in causes if cause in {"", one.id}],
        asked=cause,
        shown=SHOWN_OF_ONE if cause else SHOWN,
        most=MOST if max(of_state.values(), default=0) >= MOST else 0,
        may_act=request.state.session.may(Scope.ADMIN),
        done=done,
        left=left,
    )


@router.post("/retry")
async def retry(request: Request) -> Response:
    """Send those that are chosen again. Those that cannot be sent any more stay, each with its reason."""
    session = demand(request, Scope.ADMIN)
    given = await fields(request)
    return await run_in_threadpool(_do, session, given, "sent again", get_outbox().retry)


@router.post("/drop")
async def drop(request: Request) -> Response:
    """Give those that are chosen up, for a reason."""
    session = demand(request, Scope.ADMIN)
    given = await fields(request)
    reason = dropped_for(dict(given), session)
    return await run_in_threadpool(_do, session, given, "dropped", lambda one: get_outbox().drop(one, reason))


def dropped_for(given: Mapping[str, str], session: Session) -> str:
    """The reason that somebody gives a mail up for, as its record keeps it. Raises InvalidEmail without one."""
    reason = " ".join(given.get("reason", "").split())
    if not 0 < len(reason) <= LONGEST_REASON:
        raise InvalidEmail([FieldError("reason", f"say why, in at most {LONGEST_REASON} characters")])
    return f"dropped in the console by {session.name}: {reason}"


def _do(session: Session, given: Sequence[tuple[str, str]], word: str, act: Callable[[str], object]) -> Response:
    ids = _chosen(given)
    number = 0
    for email_id in ids:
        with suppress(WrongState, UnknownEmail):  # its secret or its time is gone, or somebody else was faster
            act(email_id)
            number += 1
    get_actions().note(session.name, f"{word}: {number} dead letter{'s' * (number != 1)}", "/console/dead-letters")
    return RedirectResponse(f"/console/dead-letters?done={number}&left={len(ids) - number}", 303)


def _chosen(given: Sequence[tuple[str, str]]) -> Sequence[str]:
    """Ids of emails: those of the boxes that are ticked, or all of the cause."""
    wanted = dict(given).get("cause", "")
    cause = next((one for one in _causes() if one.id == wanted), None)
    if cause is None:
        raise HTTPException(404, "There is no such cause any more: what it held was sent, dropped or removed.")
    ids = [record.id for record in cause.records]
    if "all" not in dict(given):
        ticked = {value for name, value in given if name == "id"}
        ids = [one for one in ids if one in ticked]
    if not ids:
        raise HTTPException(422, "No mail was chosen. Go back, and tick some, or all of the cause.")
    return ids


STATES = (State.FAILED, State.HELD)


def _causes() -> Sequence[Cause]:
    found: dict[tuple[State, str], Cause] = {}
    for record in _records():
        text = _DIFFERS.sub("…", record.error or "no reason was written down")
        cause = found.setdefault((record.state, text), Cause(record.state, text))
        cause.records.append(record)
    return list(found.values())


def _records() -> Iterator[Record]:
    outbox = get_outbox()
    for state in STATES:
        cursor, left = None, MOST
        while left > 0:
            page = outbox.list(state=state, cursor=cursor, limit=min(200, left))
            yield from page.items
            left -= len(page.items)
            cursor = page.next
            if cursor is None:
                break

"""Emails: searching them, one page for each, and what can be done with one."""

from contextlib import suppress
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Header, HTTPException, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse
from markupsafe import escape
from pydantic import BaseModel, BeforeValidator, Field

from api.console.dead_letters import dropped_for
from api.console.gallery import framed
from api.console.moments import day_of, zone_of
from api.console.page import Page, demand, done, follow, form, fragment, has_inbox, render, snapshot
from api.streams import Moment
from mail.answers import Page as Found
from mail.errors import UnknownEmail
from mail.kinds import KINDS
from mail.records import Record, State
from settings import Scope
from utils.composition import get_batches, get_outbox, get_service
from utils.email_async import enqueue
from utils.sessions import Session

router = APIRouter(prefix="/console/emails", include_in_schema=False, route_class=Page)

SIZE = 50
ENDS = {State.SENT, State.CANCELLED, State.EXPIRED, State.SUPPRESSED}  # what is failed or held may go on


class Search(BaseModel):
    """What is looked for. `q`: an address, or an id, which leads to the email's page; `day` in `zone`."""

    q: Annotated[str, Field(max_length=254), BeforeValidator(str.strip)] = ""
    kind: Annotated[str, Field(max_length=50)] = ""
    state: Annotated[str, Field(max_length=20)] = ""
    batch: Annotated[str, Field(max_length=100), BeforeValidator(str.strip)] = ""
    day: Annotated[str, Field(max_length=10)] = ""
    zone: Annotated[str, Field(max_length=64)] = ""
    cursor: Annotated[str | None, Field(max_length=200)] = None

    @property
    def live(self) -> bool:
        """Whether it is cheap to look again and again: the newest ones, by what has an index."""
        return self.cursor is None and not self.kind and not self.batch and self.state != State.SENT

    def address(self, *, cursor: str | None = None) -> str:
        """As the query of an address."""
        return urlencode(self.model_copy(update={"cursor": cursor}).model_dump(exclude_defaults=True))

    def page(self) -> Found:
        """Raises InvalidEmail, UnknownBatch, OutboxUnavailable."""
        state = State(self.state) if self.state in set(State) else None
        since, until = day_of(self.day, zone_of(self.zone)) if self.day else (None, None)
        if self.batch and not self.q:
            accepted = get_batches().batch(self.batch).created_at
            if since and until and not since <= accepted < until:
                return Found([], None)
            return get_batches().records(self.batch, state=state, cursor=self.cursor, limit=SIZE)
        return get_outbox().list(
            to=self.q or None,
            kind=self.kind or None,
            state=state,
            batch=self.batch or None,
            since=since,
            until=until,
            cursor=self.cursor,
            limit=SIZE,
        )


@router.get("")
def search(request: Request, asked: Annotated[Search, Query()]) -> Response:
    if asked.q and "@" not in asked.q:
        with suppress(UnknownEmail):
            return RedirectResponse(f"/console/emails/{get_outbox().record(asked.q).id}", 303)
        page = Found([], None)
    else:
        page = asked.page()
    return render(
        request,
        "emails.html",
        records=page.items,
        more=f"/console/emails?{asked.address(cursor=page.next)}" if page.next else "",
        events=f"/console/emails/events?{asked.address()}" if asked.live else "",
        asked=asked,
        kinds=list(KINDS),
        states=list(State),
    )


@router.get("/events")
async def newest(
    request: Request, asked: Annotated[Search, Query()], last_event_id: Annotated[str | None, Header()] = None
) -> Response:
    """The first page of a search, whenever it changes."""
    if not asked.live:
        raise HTTPException(404, "This search is not live.")
    await run_in_threadpool(asked.page)  # what is wrong with it is said now

    def look() -> Moment:
        page = asked.page()
        return snapshot(fragment(request, "_emails.html", records=page.items, asked=asked, more=page.next))

    return follow(look, last_event_id)


@router.get("/{email_id}")
def email(request: Request, email_id: str) -> Response:
    """One email with its timeline, live."""
    return render(request, "email.html", **_shown(request, get_outbox().record(email_id)))


@router.get("/{email_id}/events")
async def events(request: Request, email_id: str, last_event_id: Annotated[str | None, Header()] = None) -> Response:
    """The live part of the page, whenever it changes."""

    def look() -> Moment:
        record = get_outbox().record(email_id)
        return snapshot(fragment(request, "_email.html", **_shown(request, record)), ended=record.state in ENDS)

    await run_in_threadpool(look)
    return follow(look, last_event_id)


def _shown(request: Request, record: Record) -> dict[str, Any]:
    session: Session = request.state.session
    kind = KINDS.get(record.kind)
    # A link that was secret is not kept, so a mail that had one cannot be made again.
    repeatable = kind is not None and not kind.secret_fields() and session.may(Scope(kind.scope))
    return {
        "record": record,
        "may_act": session.may(Scope.ADMIN),
        "repeatable": repeatable,
        "has_inbox": has_inbox(),
    }


@router.get("/{email_id}/html")
def html(email_id: str) -> Response:
    """How its recipient reads it, without its secrets."""
    outbox = get_outbox()
    rendered, _ = get_service().preview(outbox.email_of(outbox.record(email_id)))
    return framed(rendered.html or f"<pre>{escape(rendered.text)}</pre>")


@router.post("/{email_id}/again")
def again(request: Request, email_id: str) -> Response:
    """The same mail once more, as a new one."""
    outbox = get_outbox()
    email = outbox.email_of(outbox.record(email_id))
    session = demand(request, Scope(email.scope))
    if email.secret_fields():
        raise HTTPException(409, "The link in this mail was secret and is not kept. Let the LMS send a new one.")
    new = enqueue(email, scope=f"console:{session.name}").id
    return done(request, f"sent as a new mail: email {email_id}", f"/console/emails/{new}")


@router.post("/{email_id}/retry")
def retry(request: Request, email_id: str) -> Response:
    """Send a failed or held email again."""
    demand(request, Scope.ADMIN)
    get_outbox().retry(email_id)
    return done(request, f"sent again: email {email_id}", f"/console/emails/{email_id}")


@router.post("/{email_id}/drop")
async def drop(request: Request, email_id: str) -> Response:
    """Give a failed or held email up, for a reason."""
    session = demand(request, Scope.ADMIN)
    reason = dropped_for(await form(request), session)
    await run_in_threadpool(get_outbox().drop, email_id, reason)
    return await run_in_threadpool(done, request, f"dropped: email {email_id}", f"/console/emails/{email_id}")


@router.post("/{email_id}/cancel")
def cancel(request: Request, email_id: str) -> Response:
    """Stop one that was not sent."""
    session = demand(request, Scope.ADMIN)
    get_outbox().cancel(email_id, f"cancelled in the console by {session.name}")
    return done(request, f"cancelled: email {email_id}", f"/console/emails/{email_id}")

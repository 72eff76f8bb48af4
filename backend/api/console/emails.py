"""Emails: searching them, one page for each, and what can be done with one."""

from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, HTTPException, Query, Request, Response
from fastapi.responses import RedirectResponse
from markupsafe import escape

from api.console.gallery import framed
from api.console.page import Page, demand, done, render
from mail.errors import UnknownEmail
from mail.kinds import KINDS
from mail.records import State
from settings import Scope
from utils.composition import get_batches, get_outbox, get_service
from utils.email_async import enqueue

router = APIRouter(prefix="/console/emails", include_in_schema=False, route_class=Page)

SIZE = 50


@router.get("")
def search(
    request: Request,
    *,
    q: Annotated[str, Query(max_length=254)] = "",
    kind: Annotated[str, Query(max_length=50)] = "",
    state: Annotated[str, Query(max_length=20)] = "",
    batch: Annotated[str, Query(max_length=100)] = "",
    cursor: Annotated[str | None, Query(max_length=200)] = None,
) -> Response:
    """`q`: an address, or an id, which leads to the email's page."""
    words = q.strip()
    if words and "@" not in words:
        return _by_id(request, words)
    asked: dict[str, Any] = {"q": words, "kind": kind, "state": state, "batch": batch}
    wanted = State(state) if state in set(State) else None
    if batch and not words:
        page = get_batches().records(batch, state=wanted, cursor=cursor, limit=SIZE)
    else:
        page = get_outbox().list(
            to=words or None, kind=kind or None, state=wanted, batch=batch or None, cursor=cursor, limit=SIZE
        )
    more = urlencode({name: value for name, value in asked.items() if value} | {"cursor": page.next or ""})
    return render(
        request,
        "emails.html",
        records=page.items,
        more=f"/console/emails?{more}" if page.next else "",
        first=cursor is None,
        asked=asked,
        kinds=list(KINDS),
        states=list(State),
    )


def _by_id(request: Request, words: str) -> Response:
    try:
        return RedirectResponse(f"/console/emails/{get_outbox().record(words).id}", 303)
    except UnknownEmail:
        asked = {"q": words, "kind": "", "state": "", "batch": ""}
        return render(
            request, "emails.html", records=[], more="", first=True, asked=asked, kinds=list(KINDS),
            states=list(State),
        )  # fmt: skip


@router.get("/{email_id}")
def email(request: Request, email_id: str) -> Response:
    """One email with its timeline."""
    record = get_outbox().record(email_id)
    kind = KINDS.get(record.kind)
    # A link that was secret is not kept, so a mail that had one cannot be made again.
    repeatable = kind is not None and not kind.secret_fields() and request.state.session.may(Scope(kind.scope))
    may_act = request.state.session.may(Scope.ADMIN)
    return render(request, "email.html", record=record, may_act=may_act, repeatable=repeatable)


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


@router.post("/{email_id}/cancel")
def cancel(request: Request, email_id: str) -> Response:
    """Stop one that was not sent."""
    session = demand(request, Scope.ADMIN)
    get_outbox().cancel(email_id, f"cancelled in the console by {session.name}")
    return done(request, f"cancelled: email {email_id}", f"/console/emails/{email_id}")

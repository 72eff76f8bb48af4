"""Writing an announcement: Markdown, recipients from a CSV file, tried out before it is sent."""

import io
import uuid
from collections.abc import Mapping
from typing import Any, NamedTuple

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from markdown_it import MarkdownIt

from api.console.gallery import framed
from api.console.moments import moment_of, zone_of
from api.console.page import Page, demand, done, form, render
from mail.check import Check
from mail.errors import FieldError, InvalidEmail
from mail.intake import read_terms
from mail.kinds import parse
from mail.mailing import Mailing, Recipient
from mail.placeholders import PLACEHOLDER
from settings import Scope, get_settings
from utils.composition import get_actions, get_policy, get_service
from utils.csv_recipients import CsvRecipients, hand_over
from utils.email_async import enqueue, open_batch

router = APIRouter(prefix="/console/batches", include_in_schema=False, route_class=Page)

TRIED = 1_000  # recipients whose mails are tried out while somebody writes; when it is sent, all are
FAULTS = 20
FIELDS = (
    "subject", "body", "recipients", "course_id", "send_at", "expires_at", "on_unknown", "zone", "test_to", "key",
)  # fmt: skip
STARTS: Mapping[str, str] = {
    "subject": "News of {{ course }}",
    "body": "Hello {{ name }},\n\nthe next lesson of **{{ course }}** begins on *Monday*.\n",
    "recipients": "to,name,course\nada@example.com,Ada,Algebra\n",
}


class Draft(NamedTuple):
    """What is written so far, looked over. `first`: the recipient whose mail is shown; `total`: rows with one."""

    mailing: Mailing | None
    faults: list[FieldError]
    first: Recipient | None
    total: int
    distinct: int
    columns: tuple[str, ...]
    names: tuple[str, ...]

    @property
    def ready(self) -> bool:
        return self.mailing is not None and not self.faults and self.total > 0


@router.get("/new")
def blank(request: Request) -> Response:
    """An empty announcement."""
    demand(request, Scope.BULK)
    given = {name: STARTS.get(name, "") for name in FIELDS} | {"key": uuid.uuid4().hex}
    return _page(request, given, look_over(given))


@router.post("/new")
async def act(request: Request) -> Response:
    """`do`: show the page again, send a test mail, or send it to all."""
    session = demand(request, Scope.BULK)
    posted = await form(request)
    given = {name: posted.get(name, "") for name in FIELDS}
    draft = await run_in_threadpool(look_over, given)
    match posted.get("do"):
        case "test":
            return await run_in_threadpool(_test, request, given, draft, session.name)
        case "send":
            return await run_in_threadpool(_send, request, given, draft, posted.get("count", ""), session.name)
    return await run_in_threadpool(_page, request, given, draft)


@router.post("/preview")
async def preview(request: Request) -> Response:
    """The mail to the first recipient, as a document that can do nothing."""
    demand(request, Scope.BULK)
    draft = await run_in_threadpool(look_over, await form(request))
    if draft.mailing is None or draft.first is None:
        return framed("<p>There is nothing to show yet: see the remarks.</p>")
    prepared = get_service().prepare(draft.mailing)
    rendered = await run_in_threadpool(prepared.render, draft.first)
    return framed(rendered.html or "")


def look_over(given: Mapping[str, str]) -> Draft:
    """Find out what would be wrong with it. Costs no more for many recipients than for TRIED."""
    faults: list[FieldError] = []
    names = tuple(dict.fromkeys(PLACEHOLDER.findall(f"{given.get('subject', '')} {given.get('body', '')}")))
    mailing, checker = None, None
    try:
        head = _head(given)
        read_terms(head)
        mailing = Mailing.parse(head)
        checker = Check(mailing, get_policy(), get_service().prepare(mailing))
        checker.mailing()
    except InvalidEmail as error:
        faults += [FieldError("body" if one.field == "html" else one.field, one.message) for one in error.errors]
    first: Recipient | None = None
    columns: tuple[str, ...] = ()
    seen: set[str] = set()
    total = 0
    try:
        rows = CsvRecipients(io.BytesIO(given.get("recipients", "").encode()))
        columns = rows.columns
        for row in rows:
            if isinstance(row, FieldError):
                faults.append(row)
                continue
            total += 1
            seen.add(row.recipient["to"].casefold())
            if checker is None or total > TRIED:
                continue
            try:
                recipient = checker.recipient(row.recipient)
                first = first or recipient
            except InvalidEmail as error:
                faults += [FieldError(f"line {row.line}, {fault.field}", fault.message) for fault in error.errors]
    except InvalidEmail as error:
        faults += error.errors
    if not total and not faults:
        faults.append(FieldError("recipients", "there is nobody yet"))
    return Draft(mailing, faults, first, total, len(seen), columns, names)


def _head(given: Mapping[str, str]) -> dict[str, Any]:
    """What `open_batch` takes. Raises InvalidEmail for what is no time."""
    head: dict[str, Any] = {"subject": given.get("subject", ""), "html": html_of(given.get("body", ""))}
    head |= {name: value for name in ("course_id", "on_unknown") if (value := given.get(name, "").strip())}
    zone = zone_of(given.get("zone", ""))
    return head | {
        name: moment_of(name, value, zone) for name in ("send_at", "expires_at") if (value := given.get(name, ""))
    }


def html_of(markdown: str) -> str:
    """CommonMark as HTML; tags in it are text. Placeholders stay, also in the address of a link."""
    tight = PLACEHOLDER.sub(lambda found: "{{" + found[1] + "}}", markdown)  # an address may hold no spaces
    rendered: str = _Markdown("commonmark", {"html": False}).render(tight)
    return rendered


class _Markdown(MarkdownIt):
    def normalizeLink(self, url: str) -> str:
        return url  # its own would write the braces of a placeholder as %7B


def _test(request: Request, given: Mapping[str, str], draft: Draft, name: str) -> Response:
    if not draft.ready or draft.mailing is None or draft.first is None:
        return _page(request, given, draft, status=422)
    mail = draft.mailing.email(draft.first).model_dump(mode="json", exclude_none=True)
    try:
        accepted = enqueue(parse({**mail, "to": given["test_to"].strip()}), scope=f"console:{name}")
    except InvalidEmail as error:
        wrong = [fault._replace(field="test_to" if fault.field == "to" else fault.field) for fault in error.errors]
        return _page(request, given, draft._replace(faults=wrong), status=422)
    get_actions().note(name, f"sent a test mail: email {accepted.id}", f"/console/emails/{accepted.id}")
    return _page(request, given, draft, tested=accepted.id)


def _send(request: Request, given: Mapping[str, str], draft: Draft, count: str, name: str) -> Response:
    if not draft.ready:
        return _page(request, given, draft, status=422)
    if count.replace(",", "").strip() != str(draft.distinct):
        wrong = FieldError("count", f"type {draft.distinct} to send it: so many get the mail")
        return _page(request, given, draft._replace(faults=[wrong]), status=422)
    try:
        # The key is of this form: a second click, or a reload, sends nothing twice.
        limit = get_settings().batch_max_recipients
        intake = open_batch(_head(given), idempotency_key=given["key"] or None, scope=f"console:{name}", limit=limit)
        try:
            hand_over(CsvRecipients(io.BytesIO(given["recipients"].encode())), intake)
            batch_id = intake.finish().id
        finally:
            intake.discard()
    except InvalidEmail as error:
        return _page(request, given, draft._replace(faults=list(error.errors)), status=422)
    return done(request, f"announced to {draft.distinct}: {batch_id}", f"/console/batches/{batch_id}")


def _remarks(draft: Draft) -> dict[str, Any]:
    return {
        "draft": draft,
        "most": FAULTS,
        "tried": TRIED,
        "missing": [one for one in draft.names if one not in draft.columns],
    }


def _page(
    request: Request, given: Mapping[str, str], draft: Draft, *, status: int = 200, tested: str = ""
) -> Response:
    if not given.get("key"):
        raise HTTPException(400, "This form is not whole. Go back, reload, and try again.")
    return render(request, "compose.html", status=status, given=given, tested=tested, **_remarks(draft))

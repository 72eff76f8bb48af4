"""Every kind of email as its recipients see it, with a sample whose fields can be changed."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Header, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, PlainTextResponse
from jinja2 import TemplateError, TemplateSyntaxError
from markupsafe import escape

from api.console.looks import look_over
from api.console.page import Page, demand, done, follow, form, render, snapshot
from mail.errors import FieldError, InvalidEmail
from mail.kinds import KINDS, AnyEmail, Email, parse
from mail.message import Message
from mail.rendering import Rendered
from settings import BACKEND, Scope, get_settings
from utils.composition import get_service
from utils.email_async import enqueue

router = APIRouter(prefix="/console/gallery", include_in_schema=False, route_class=Page)

LONG = {"html", "text"}
LONGEST_QUERY = 8_000  # characters of an address; without scripts a longer mail is not shown in its frame
TEMPLATES = BACKEND / "templates" / "emails"
# Neither script, nor form, nor way out of the frame; styles and pictures as a mail program has them.
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src {images}; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'self'; sandbox allow-popups allow-popups-to-escape-sandbox"
)


@router.get("")
def gallery(request: Request) -> Response:
    """All kinds, small."""
    return render(request, "gallery.html", kinds={kind: _subject(kind) for kind in KINDS})


def _subject(kind: str) -> str:
    try:
        return _preview(kind, _fields(kind, {}))[0].subject
    except InvalidEmail as error:
        return "; ".join(fault.message for fault in error.errors)


@router.get("/changes")
async def changes(last_event_id: Annotated[str | None, Header()] = None) -> Response:
    """In development: an event whenever a template has changed."""
    if not get_settings().development:
        raise HTTPException(404, "Templates are read once here. In development a change of them shows by itself.")
    return follow(lambda: snapshot(_version()), last_event_id)


def _version() -> str:
    """Of all templates, by when they were written."""
    return " ".join(f"{path.name} {path.stat().st_mtime_ns}" for path in sorted(TEMPLATES.iterdir()))


@router.get("/{kind}")
def one(request: Request, kind: str) -> Response:
    """One kind; its sample's fields are taken from the address, where it has any."""
    return _page(request, kind, _fields(kind, request.query_params))


@router.post("/{kind}")
async def change(request: Request, kind: str) -> Response:
    """The same page with other fields; a form's token does not belong into an address."""
    given = await form(request)
    return await run_in_threadpool(_page, request, kind, _fields(kind, given), me=given.get("me", ""))


@router.get("/{kind}/html")
def html(request: Request, kind: str, pictures: str = "on") -> Response:
    """The HTML part, as a document that can do nothing. `pictures=off`: as mail programs show it at first."""
    return _html(kind, _fields(kind, request.query_params), pictures)


@router.post("/{kind}/html")
async def changed_html(request: Request, kind: str, pictures: str = "on") -> Response:
    """The same of the fields of a form."""
    return await run_in_threadpool(_html, kind, _fields(kind, await form(request)), pictures)


def _html(kind: str, fields: Mapping[str, str], pictures: str) -> Response:
    try:
        rendered, _ = _preview(kind, fields)
    except InvalidEmail:
        return framed("<p>With these fields there is no mail: see the remarks beside them.</p>")
    return framed(rendered.html or f"<pre>{escape(rendered.text)}</pre>", pictures=pictures != "off")


def framed(html: str, *, pictures: bool = True) -> Response:
    """The HTML of a mail as a document for a frame, in which nothing runs."""
    images = "data: https: http:" if pictures else "data:"
    headers = {"Content-Security-Policy": POLICY.format(images=images), "Cross-Origin-Opener-Policy": "unsafe-none"}
    return HTMLResponse(html, headers=headers)


@router.get("/{kind}/source")
def source(request: Request, kind: str) -> Response:
    """The message as it goes over the wire."""
    return _source(kind, _fields(kind, request.query_params))


@router.post("/{kind}/source")
async def changed_source(request: Request, kind: str) -> Response:
    """The same of the fields of a form."""
    return await run_in_threadpool(_source, kind, _fields(kind, await form(request)))


def _source(kind: str, fields: Mapping[str, str]) -> Response:
    _, message = _preview(kind, fields)
    return PlainTextResponse(message.data.decode(errors="replace"))


@router.post("/{kind}/send")
async def send(request: Request, kind: str) -> Response:
    """Send it, through the outbox as any mail, to the address of whoever looks at it."""
    given = await form(request)
    session = demand(request, Scope(_class(kind).scope))
    fields, me = _fields(kind, given), given.get("me", "").strip()
    try:
        email = _email(kind, fields | {"to": me})
        accepted = await run_in_threadpool(enqueue, email, scope=f"console:{session.name}")
    except InvalidEmail as error:
        faults = [one._replace(field="me") if one.field == "to" else one for one in error.errors]
        return await run_in_threadpool(_page, request, kind, fields, faults, me=me)
    return await run_in_threadpool(
        done, request, f"sent a sample: email {accepted.id}", f"/console/emails/{accepted.id}"
    )


def _page(
    request: Request, kind: str, fields: Mapping[str, str], faults: Sequence[FieldError] = (), *, me: str = ""
) -> Response:
    found: dict[str, Any] = {"rendered": None, "looks": []}
    faults = list(faults)
    try:
        rendered, message = _preview(kind, fields)
        found = {"rendered": rendered, "looks": look_over(rendered, message.data)}
    except InvalidEmail as error:
        faults += [fault for fault in error.errors if fault not in faults]
    query = urlencode(fields)
    return render(
        request,
        "kind.html",
        status=422 if faults else 200,
        kind=kind,
        kinds=list(KINDS),
        fields=fields,
        long=LONG,
        faults=faults,
        me=me,
        query=query if len(query) < LONGEST_QUERY else "",
        watched=get_settings().development,
        may_send=request.state.session.may(Scope(_class(kind).scope)),
        **found,
    )


def _class(kind: str) -> type[Email]:
    if kind not in KINDS:
        raise HTTPException(404, f"There is no kind {kind}. There are {', '.join(KINDS)}.")
    return KINDS[kind]


def _fields(kind: str, given: Mapping[str, str]) -> dict[str, str]:
    """What can be changed, as text; what is not given comes from the sample."""
    sample = _class(kind).sample().model_dump(mode="json")
    names = ("to", *_class(kind).template_fields(), "reply_to", "from_name")
    return {name: given.get(name, sample.get(name) or "") for name in names}


def _preview(kind: str, fields: Mapping[str, str]) -> tuple[Rendered, Message]:
    """Raises InvalidEmail, of the field `template` where that is wrong: somebody is writing it."""
    try:
        return get_service().preview(_email(kind, fields))
    except TemplateSyntaxError as error:
        text = f"{error.name}, line {error.lineno}: {error.message}"
        raise InvalidEmail([FieldError("template", text)]) from None
    except TemplateError as error:
        raise InvalidEmail([FieldError("template", str(error.message))]) from None


def _email(kind: str, fields: Mapping[str, str]) -> AnyEmail:
    return parse({"kind": kind, **{name: value for name, value in fields.items() if value}})

"""Every kind of email as its recipients see it, with a sample whose fields can be changed."""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, PlainTextResponse

from api.console.looks import look_over
from api.console.page import Page, demand, done, form, render
from mail.errors import FieldError, InvalidEmail
from mail.kinds import KINDS, AnyEmail, Email, parse
from settings import Scope
from utils.composition import get_service
from utils.email_async import enqueue

router = APIRouter(prefix="/console/gallery", include_in_schema=False, route_class=Page)

LONG = {"html", "text"}
# Neither script, nor form, nor way out of the frame; styles and pictures as a mail program has them.
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src {images}; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'self'; sandbox allow-popups allow-popups-to-escape-sandbox"
)


@router.get("")
def gallery(request: Request) -> Response:
    """All kinds, small."""
    samples = {word: parse(kind.sample().model_dump()) for word, kind in KINDS.items()}
    subjects = {word: get_service().preview(email)[0].subject for word, email in samples.items()}
    return render(request, "gallery.html", kinds=subjects)


@router.get("/{kind}")
def one(request: Request, kind: str) -> Response:
    """One kind; its sample's fields are taken from the address, where it has any."""
    return _page(request, kind, _fields(kind, request.query_params))


@router.post("/{kind}")
async def change(request: Request, kind: str) -> Response:
    """The same page with other fields; a form's token does not belong into an address."""
    return await run_in_threadpool(_page, request, kind, _fields(kind, await form(request)))


@router.get("/{kind}/html")
def html(request: Request, kind: str) -> Response:
    """The HTML part, as a document that can do nothing. `pictures=off`: as mail programs show it at first."""
    rendered, _ = get_service().preview(_email(kind, _fields(kind, request.query_params)))
    return framed(rendered.html or "", pictures=request.query_params.get("pictures") != "off")


def framed(html: str, *, pictures: bool = True) -> Response:
    """The HTML of a mail as a document for a frame, in which nothing runs."""
    images = "data: https: http:" if pictures else "data:"
    headers = {"Content-Security-Policy": POLICY.format(images=images), "Cross-Origin-Opener-Policy": "unsafe-none"}
    return HTMLResponse(html, headers=headers)


@router.get("/{kind}/source")
def source(request: Request, kind: str) -> Response:
    """The message as it goes over the wire."""
    _, message = get_service().preview(_email(kind, _fields(kind, request.query_params)))
    return PlainTextResponse(message.data.decode(errors="replace"))


@router.post("/{kind}/send")
async def send(request: Request, kind: str) -> Response:
    """Send it, through the outbox as any mail, to one address."""
    given = await form(request)
    session = demand(request, Scope(_class(kind).scope))
    fields = _fields(kind, given) | {"to": given.get("to", "").strip()}
    try:
        email = _email(kind, fields)
        accepted = await run_in_threadpool(enqueue, email, scope=f"console:{session.name}")
    except InvalidEmail as error:
        return await run_in_threadpool(_page, request, kind, fields, error.errors, 422)
    return await run_in_threadpool(
        done, request, f"sent a sample: email {accepted.id}", f"/console/emails/{accepted.id}"
    )


def _page(
    request: Request, kind: str, fields: Mapping[str, str], faults: Sequence[FieldError] = (), status: int = 200
) -> Response:
    found: dict[str, Any] = {"rendered": None, "looks": []}
    faults = list(faults)
    try:
        rendered, message = get_service().preview(_email(kind, fields))
        found = {"rendered": rendered, "looks": look_over(rendered, message.data)}
    except InvalidEmail as error:
        faults += [fault for fault in error.errors if fault not in faults]
        status = 422
    scope = Scope(_class(kind).scope)
    return render(
        request,
        "kind.html",
        status=status,
        kind=kind,
        kinds=list(KINDS),
        fields=fields,
        long=LONG,
        faults=faults,
        query=urlencode(fields),
        may_send=request.state.session.may(scope),
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


def _email(kind: str, fields: Mapping[str, str]) -> AnyEmail:
    return parse({"kind": kind, **{name: value for name, value in fields.items() if value}})

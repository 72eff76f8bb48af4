"""What every page has: who is signed in, the frame, the headers, and words for what goes wrong."""

import hashlib
import hmac
from collections.abc import Callable, Coroutine, Mapping, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

import redis
from fastapi import HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.routing import APIRoute
from fastapi.sse import EventSourceResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from api.console.words import FILTERS
from api.streams import Moment, streams
from logs import current_request_id
from mail.errors import EmailError, InvalidEmail, OutboxUnavailable, UnknownEmail, WrongState
from settings import BACKEND, Scope, get_settings
from utils.composition import get_actions, get_sessions
from utils.sessions import IDLE, Session

MOST_FIELDS = 500
LIVE_FOR = 300.0  # seconds; then the browser comes back, if it is still signed in
COOKIE = "lms_mail_console"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
KEPT = "Mails that were accepted are kept. Reload this page in a moment."
PLACES = {
    "Overview": "/console",
    "Emails": "/console/emails",
    "Batches": "/console/batches",
    "Dead letters": "/console/dead-letters",
    "Gallery": "/console/gallery",
    "Actions": "/console/actions",
}

_environment = Environment(
    loader=FileSystemLoader(BACKEND / "templates" / "console"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.filters |= FILTERS


def render(request: Request, template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
    """One page in the frame of all."""
    session = _session(request)
    text = fragment(
        request,
        template,
        session=session,
        places=_places() if session else {},
        path=request.url.path,
        brand=get_settings().brand_name,
        environment=get_settings().environment,
        **values,
    )
    return HTMLResponse(text, status)


def has_inbox() -> bool:
    """Whether mail goes to the development inbox, as far as the settings tell."""
    settings = get_settings()
    return settings.development and settings.smtp_host in {"127.0.0.1", "localhost"}


def _places() -> Mapping[str, str]:
    return {**PLACES, "Inbox": "/console/inbox"} if has_inbox() else PLACES


def _session(request: Request) -> Session | None:
    session: Session | None = getattr(request.state, "session", None)
    return session


def fragment(request: Request, template: str, **values: Any) -> str:
    """A part of a page, with the token for its forms."""
    session = _session(request)
    form_token = get_sessions().form_token(session) if session else ""
    return _environment.get_template(template).render(form_token=form_token, **values)


def snapshot(text: str, *, ended: bool = False) -> Moment:
    """A live part of a page as it stands."""
    return Moment(hashlib.sha256(text.encode()).hexdigest()[:16], "page", text, ended)


def follow(look: Callable[[], Moment], last_id: str | None) -> Response:
    """The events of a live part of a page."""
    if streams.full:
        raise HTTPException(503, "Too many pages are live on this server.", headers={"Retry-After": "10"})
    stream = streams.follow(look, last_id=last_id, longest=LIVE_FOR)
    return EventSourceResponse(stream, headers={"X-Accel-Buffering": "no"})


def done(request: Request, what: str, place: str) -> Response:
    """Write down what somebody has done, and lead to the page that shows it."""
    get_actions().note(request.state.session.name, what, place)
    return RedirectResponse(place, 303)


def keep(request: Request, response: Response, session: Session) -> None:
    """Put a session's cookie, fresh for another while, into an answer."""
    response.set_cookie(
        COOKIE,
        get_sessions().cookie(session),
        max_age=IDLE,
        path="/console",
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )


def forget(response: Response) -> None:
    """Take the cookie away."""
    response.delete_cookie(COOKIE, path="/console", httponly=True, samesite="strict")


def signed_in(request: Request) -> Session | None:
    """Whoever the request's cookie stands for.

    Raises:
        OutboxUnavailable
    """
    cookie = request.cookies.get(COOKIE, "")
    return get_sessions().read(cookie) if cookie else None


class Page(APIRoute):
    """A route of the console: for those who are signed in, and with words for people where something goes wrong."""

    open_to_all = False

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_page(request: Request) -> Response:
            try:
                request.state.session = session = await run_in_threadpool(signed_in, request)
                if session is None and not self.open_to_all:
                    return _to_sign_in(request)
                if session and request.method == "POST":
                    await _check_form(request, session)
                response = await handle(request)
            except (EmailError, HTTPException, RequestValidationError, redis.RedisError) as error:
                response = _fault(request, error)
            else:
                # A page that is only looked at is not used: its events keep nobody signed in.
                used = response.media_type != "text/event-stream" and "set-cookie" not in response.headers
                if session and used:
                    keep(request, response, session)
            for name, value in HEADERS.items():
                response.headers.setdefault(name, value)  # a mail that is shown has walls of its own
            return response

        return handle_page


class OpenPage(Page):
    """One for strangers, too."""

    open_to_all = True


def _to_sign_in(request: Request) -> Response:
    if request.method != "GET":
        return _fault(request, HTTPException(401, "You are not signed in any more. Sign in, and do it again."))
    here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    wanted = "" if here == "/console" else f"?next={quote(here, safe='')}"
    response = RedirectResponse(f"/console/sign-in{wanted}", 303)
    response.headers.update(HEADERS)
    return response


async def fields(request: Request) -> Sequence[tuple[str, str]]:
    """The names and values of a form. Raises HTTPException for one without end."""
    try:
        text = (await request.body()).decode(errors="replace")
        return parse_qsl(text, keep_blank_values=True, max_num_fields=MOST_FIELDS)
    except ValueError:
        raise HTTPException(422, f"This form has more than {MOST_FIELDS} fields.") from None


async def form(request: Request) -> Mapping[str, str]:
    """The fields of a form; of several with one name the last. Raises HTTPException for one without end."""
    return dict(await fields(request))


async def _check_form(request: Request, session: Session) -> None:
    # SameSite=Strict keeps other sites out; this also keeps out what runs on another port of the same host.
    given = (await form(request)).get("token", "")
    origin = request.headers.get("origin")
    foreign = origin is not None and urlsplit(origin).netloc != request.headers.get("host")
    if foreign or not hmac.compare_digest(given.encode(), get_sessions().form_token(session).encode()):
        raise HTTPException(403, "This form is not from a page of yours, or too old. Go back, reload, and try again.")


def demand(request: Request, *scopes: Scope) -> Session:
    """Whoever is signed in, if the key has one of these scopes; else 403."""
    session: Session = request.state.session
    if not any(session.may(scope) for scope in scopes):
        raise HTTPException(403, f"Your key has not the scope {' or '.join(scopes)}.")
    return session


def _fault(request: Request, error: Exception) -> Response:
    status, text, headers = _told(error)
    response = render(
        request,
        "fault.html",
        status=status,
        title=HTTPStatus(status).phrase,
        text=text,
        request_id=current_request_id(),
    )
    response.headers.update({**HEADERS, **headers})
    return response


def _told(error: Exception) -> tuple[int, str, Mapping[str, str]]:
    match error:
        case HTTPException():
            return error.status_code, str(error.detail), error.headers or {}
        case UnknownEmail():
            return 404, "There is nothing of this id. Records are kept for OUTBOX_RETENTION_DAYS.", {}
        case WrongState():
            return 409, f"{str(error)[:1].upper()}{str(error)[1:]}.", {}
        case InvalidEmail():
            return 422, "; ".join(f"{one.field}: {one.message}" for one in error.errors), {}
        case RequestValidationError():
            return 422, "; ".join(f"{fault['loc'][-1]}: {fault['msg']}" for fault in error.errors()), {}
        case OutboxUnavailable():
            return (
                503,
                f"{error}. Mails that were accepted are kept; this page comes back by itself.",
                {"Retry-After": "2"},
            )
    return 503, "Redis does not answer. Mails that were accepted are kept.", {"Retry-After": "2"}

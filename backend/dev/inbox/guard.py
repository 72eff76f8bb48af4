"""Keeps other web sites out: the inbox has no password, and holds password reset links.

A page of another site, open in the same browser, can send requests to loopback. The same-origin policy keeps
the answers from it; what remains is DNS rebinding (its own name pointed at loopback) and requests whose effect
is the harm.
"""

from collections.abc import Sequence
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "frame-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        # No string ever becomes markup or code on the page.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
)
# What an answer says itself takes precedence (see view.py).
SECURITY_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    # A page that a link of a mail opens gets no `opener`, even if the link asks for one.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}


class Guard:
    """ASGI middleware: refuses foreign Host (400), requests that pages of other sites make, and, where something
    changes, foreign Origin headers (403). A link on another page may lead here.

    `host` is the configured listen address. Beside it, `localhost` and loopback addresses are always right;
    listening on all addresses makes every literal address right, since rebinding needs a name. `framed_by` are the
    origins whose pages may show the inbox in a frame.
    """

    def __init__(self, app: ASGIApp, host: str, framed_by: Sequence[str] = ()) -> None:
        self._app = app
        self._framed_by = framed_by
        self._host = host.lower()
        self._any_address = _is_address(host) and ip_address(host).is_unspecified

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
                # Of a mail in a frame of the page, too: every page around it must be allowed.
                around = " ".join(["'self'", *self._framed_by]) if self._framed_by or framed else "'none'"
                headers["Content-Security-Policy"] += f"; frame-ancestors {around}"
            await send(message)

        framed = scope["type"] == "http" and scope["path"].startswith("/view/")
        if scope["type"] == "http" and (refusal := self._refusal(scope, Headers(scope=scope))):
            await refusal(scope, receive, send_guarded)
        else:
            await self._app(scope, receive, send_guarded)

    def _refusal(self, scope: Scope, headers: Headers) -> JSONResponse | None:
        method, host, origin = scope["method"], headers.get("host", ""), headers.get("origin")
        if not self._allows(_hostname(host)):
            return JSONResponse({"Error": "this Host is not the inbox's own"}, 400)
        if method not in SAFE_METHODS and origin is not None and _netloc(origin) != host.lower():
            return JSONResponse({"Error": "requests from other web sites may not change anything here"}, 403)
        # Such as the images of a mail: asking for another mail would mark it as read.
        foreign = headers.get("sec-fetch-site") in {"cross-site", "same-site"}
        shown = {"document", "iframe"} if self._framed_by and scope["path"] == "/" else {"document"}
        if foreign and headers.get("sec-fetch-dest") not in shown:
            return JSONResponse({"Error": "pages of other web sites may only link here"}, 403)
        return None

    def _allows(self, name: str) -> bool:
        if _is_address(name):
            return self._any_address or ip_address(name).is_loopback or name == self._host
        return name in {"localhost", self._host} - {""}


def _hostname(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True

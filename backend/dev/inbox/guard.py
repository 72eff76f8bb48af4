"""Keeps other web sites out: the inbox has no password, and holds password reset links.

A page of another site, open in the same browser, can send requests to loopback. The same-origin policy keeps
the answers from it; what remains is DNS rebinding (its own name pointed at loopback) and requests whose effect
is the harm.
"""

from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# The frame with a mail's HTML inherits this policy and tightens it further. Inline styles and data: images are
# allowed for its sake: mail has no other styles.
CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self' 'unsafe-inline'",
        "img-src data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
SECURITY_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}


class Guard:
    """ASGI middleware: refuses foreign Host (400) and, where something changes, foreign Origin headers (403).

    `host` is the configured listen address. Beside it, `localhost` and loopback addresses are always right;
    listening on all addresses makes every literal address right, since rebinding needs a name.
    """

    def __init__(self, app: ASGIApp, host: str) -> None:
        self._app = app
        self._host = host.lower()
        self._any_address = _is_address(host) and ip_address(host).is_unspecified

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(SECURITY_HEADERS)
            await send(message)

        if scope["type"] == "http" and (refusal := self._refusal(scope["method"], Headers(scope=scope))):
            await refusal(scope, receive, send_guarded)
        else:
            await self._app(scope, receive, send_guarded)

    def _refusal(self, method: str, headers: Headers) -> JSONResponse | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._allows(_hostname(host)):
            return JSONResponse({"Error": "this Host is not the inbox's own"}, 400)
        if method not in SAFE_METHODS and origin is not None and _netloc(origin) != host.lower():
            return JSONResponse({"Error": "requests from other web sites may not change anything here"}, 403)
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

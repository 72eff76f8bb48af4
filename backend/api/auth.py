"""API keys with scopes. A key comes as `Authorization: Bearer <key>` or `X-API-Key: <key>`."""

import hashlib
import hmac
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import HTTPException, Request, Response, Security
from fastapi.routing import APIRoute
from fastapi.security import APIKeyHeader, HTTPBearer

from settings import ApiKey, Scope, get_settings

# These two only describe the schemes in OpenAPI, so that "Authorize" in /docs works; KeyedRoute does the check.
_WHAT = "The key of an entry in API_KEYS, without its name and scopes. One of the two ways is enough."
_bearer = HTTPBearer(auto_error=False, description=_WHAT)
_header = APIKeyHeader(name="X-API-Key", auto_error=False, description=_WHAT)
DESCRIBED = [Security(_bearer), Security(_header)]


def find_caller(request: Request) -> ApiKey | None:
    """The owner of the key that a request carries, if it carries a right one."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    given = token.strip() if scheme.lower() == "bearer" else request.headers.get("X-API-Key", "")
    digest = hashlib.sha256(given.encode()).digest()
    found = None
    # Every key is compared, whichever fits: the time taken tells nothing.
    for key in get_settings().keys:
        if hmac.compare_digest(digest, key.digest):
            found = key
    return found


def _require_caller(request: Request) -> ApiKey:
    caller = find_caller(request)
    if caller:
        return caller
    settings = get_settings()
    if "Authorization" in request.headers or "X-API-Key" in request.headers:
        detail = (
            "This API key is not known. Send the key of an entry in API_KEYS, without its name and scopes, as "
            "Authorization: Bearer <key>, or X-API-Key: <key>."
        )
    else:
        detail = "An API key is needed: Authorization: Bearer <key>, or X-API-Key: <key>."
    if settings.development and not settings.keys:
        detail = (
            "No API key is configured. Put API_KEYS=dev:send+custom+bulk+read+admin:<a long random string> into "
            "backend/.env, restart, and send it as Authorization: Bearer <key>."
        )
    raise HTTPException(401, detail, headers={"WWW-Authenticate": "Bearer"})


class KeyedRoute(APIRoute):
    """A route that looks at the key before FastAPI reads the body: a stranger learns nothing about the schema."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_keyed(request: Request) -> Response:
            request.state.caller = _require_caller(request)
            return await handle(request)

        return handle_keyed


def demand(request: Request, scope: str) -> ApiKey:
    """The caller, if its key has the scope; else 403."""
    caller: ApiKey = request.state.caller
    if Scope(scope) not in caller.scopes:
        raise HTTPException(403, f"This key lacks the scope {scope}.")
    return caller


def requires(scope: Scope) -> Callable[[Request], ApiKey]:
    """A dependency that demands a scope of the caller."""

    def check(request: Request) -> ApiKey:
        return demand(request, scope)

    return check

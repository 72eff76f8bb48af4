"""API keys with scopes. A key comes as `Authorization: Bearer <key>` or `X-API-Key: <key>`."""

import hashlib
import hmac
from collections.abc import Callable, Coroutine
from ipaddress import IPv6Address
from typing import Any

from fastapi import HTTPException, Request, Response, Security
from fastapi.routing import APIRoute
from fastapi.security import APIKeyHeader, HTTPBearer

from settings import ApiKey, Scope, get_settings
from utils.composition import get_key_rate, get_stranger_rate

# These two only describe the schemes in OpenAPI, so that "Authorize" in /docs works; KeyedRoute does the check.
_WHAT = "The key of an entry in API_KEYS, without its name and scopes. One of the two ways is enough."
_bearer = HTTPBearer(auto_error=False, description=_WHAT)
_header = APIKeyHeader(name="X-API-Key", auto_error=False, description=_WHAT)
DESCRIBED = [Security(_bearer), Security(_header)]


def find_caller(request: Request) -> ApiKey | None:
    """The owner of the key that a request carries, if it carries a right one."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return owner_of(token.strip() if scheme.lower() == "bearer" else request.headers.get("X-API-Key", ""))


def owner_of(given: str) -> ApiKey | None:
    """Whose key this is."""
    digest = hashlib.sha256(given.encode()).digest()
    found = None
    # Every key is compared, whichever fits: the time taken tells nothing.
    for key in get_settings().keys:
        if hmac.compare_digest(digest, key.digest):
            found = key
    return found


def require_caller(request: Request) -> ApiKey:
    """The owner of the key that a request carries; else 401, and 429 to who tries many."""
    caller = find_caller(request)
    if caller:
        return caller
    settings = get_settings()
    if "Authorization" in request.headers or "X-API-Key" in request.headers:
        _count_wrong_key(request)
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


def _count_wrong_key(request: Request) -> None:
    # A right key is never refused for wrong ones from its address, which may be that of a proxy: somebody could lock
    # the LMS out. What this limits is the work that wrong keys make; nobody guesses a key of 24 characters.
    allowance = get_stranger_rate().take(network_of(client_of(request)))
    if not allowance.granted:
        detail = f"Too many wrong API keys came from this address. Try again in {allowance.retry_after} s."
        raise HTTPException(429, detail, headers={"Retry-After": str(allowance.retry_after)})


def client_of(request: Request) -> str:
    """The address of whoever asks."""
    return request.client.host if request.client else ""


def network_of(host: str) -> str:
    """A client by its address; of IPv6 by the first half, since a customer chooses the second (RFC 6177)."""
    try:
        address = IPv6Address(host)
    except ValueError:
        return host
    return host if address.ipv4_mapped else address.packed[:8].hex()


def _count_call(caller: ApiKey) -> dict[str, str]:
    """The headers that tell a caller how many calls are left (draft-ietf-httpapi-ratelimit-headers-10)."""
    rate = get_key_rate()
    if rate is None:
        return {}
    allowance = rate.take(caller.name)
    full_in = -(-(rate.per_minute - allowance.remaining) * 60 // rate.per_minute)
    headers = {
        "RateLimit-Policy": f'"key";q={rate.per_minute};w=60',
        "RateLimit": f'"key";r={allowance.remaining};t={full_in}',
    }
    if allowance.granted:
        return headers
    raise HTTPException(
        429,
        f"This API key made over {rate.per_minute} requests in a minute. Try again in {allowance.retry_after} s.",
        headers={**headers, "Retry-After": str(allowance.retry_after)},
    )


class KeyedRoute(APIRoute):
    """A route that looks at the key before FastAPI reads the body: a stranger learns nothing about the schema.

    Each call counts against the rate of its key.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_keyed(request: Request) -> Response:
            request.state.caller = caller = require_caller(request)
            left = _count_call(caller)
            response = await handle(request)
            response.headers.update(left)
            return response

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

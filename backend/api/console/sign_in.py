"""Signing in with an API key, or with the link that ./start.sh prints; and out again."""

import re

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import RedirectResponse

from api.auth import client_of, network_of, owner_of
from api.console.page import OpenPage, forget, form, keep, render
from settings import ApiKey, Scope, get_settings
from utils.composition import get_sessions, get_sign_in_rate

router = APIRouter(prefix="/console", include_in_schema=False, route_class=OpenPage)


@router.get("/sign-in")
def ask(request: Request, next: str = "", once: str = "") -> Response:
    """The form; or, from this machine, the link that signs in once."""
    if once:
        return _follow(request, once)
    return render(request, "sign_in.html", next=_inside(next), fault="")


@router.post("/sign-in")
async def sign_in(request: Request) -> Response:
    given = await form(request)
    allowance = get_sign_in_rate().take(network_of(client_of(request)))
    if not allowance.granted:
        raise HTTPException(429, f"Too many attempts. Try again in {allowance.retry_after} s.")
    caller = owner_of(given.get("key", "").strip())
    next_ = _inside(given.get("next", ""))
    if caller is None:
        fault = "This key is not known. It is what follows the last colon of an entry in API_KEYS."
        return render(request, "sign_in.html", status=401, next=next_, fault=fault)
    if Scope.READ not in caller.scopes:
        fault = f"The key {caller.name} has not the scope read."
        return render(request, "sign_in.html", status=403, next=next_, fault=fault)
    return _welcome(request, caller, next_)


@router.post("/sign-out")
def sign_out(request: Request) -> Response:
    """End the session, here and wherever its cookie was copied to."""
    if request.state.session:
        get_sessions().end(request.state.session)
    response = RedirectResponse("/console/sign-in", 303)
    forget(response)
    return response


def _follow(request: Request, word: str) -> Response:
    from_here = client_of(request) in {"127.0.0.1", "::1"}
    if not (get_settings().development and from_here):
        raise HTTPException(403, "This link signs in only in development, and from the machine itself.")
    caller = get_sessions().follow(word)
    if caller is None:
        fault = "This link was used, or is too old. Sign in with a key, or start ./start.sh again for a new link."
        return render(request, "sign_in.html", status=401, next="/console", fault=fault)
    return _welcome(request, caller, "/console")


def _welcome(request: Request, caller: ApiKey, place: str) -> Response:
    response = RedirectResponse(place, 303)
    keep(request, response, get_sessions().begin(caller))
    return response


def _inside(place: str) -> str:
    """Where to go after signing in: a page of the console, never of another site."""
    ours = re.fullmatch(r"/console([/?][!-~]*)?", place) and not place.startswith("/console/sign-")
    return place if ours else "/console"

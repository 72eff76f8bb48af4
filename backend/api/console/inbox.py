"""The development inbox, in its place: it is a program of its own, and shown in a frame."""

from urllib.parse import urlencode

from fastapi import APIRouter, HTTPException, Request, Response

from api.console.page import POLICY, Page, has_inbox, render
from settings import get_settings

router = APIRouter(prefix="/console/inbox", include_in_schema=False, route_class=Page)

LOOPBACK = {"127.0.0.1", "localhost"}


@router.get("")
def inbox(request: Request, query: str = "") -> Response:
    """`query`: what is searched for in it."""
    if not has_inbox():
        raise HTTPException(404, "There is no inbox here: it is for development, and mail goes elsewhere.")
    # Under the same name as this page, else the frame is another site's to the browser. It listens on loopback only.
    host = request.url.hostname if request.url.hostname in LOOPBACK else "127.0.0.1"
    origin = f"http://{host}:{get_settings().inbox_port}"
    address = f"{origin}/?{urlencode({'query': query})}" if query else f"{origin}/"
    response = render(request, "inbox.html", address=address, here=request.url.hostname in LOOPBACK)
    response.headers["Content-Security-Policy"] = POLICY.replace("frame-src 'self'", f"frame-src {origin}")
    return response

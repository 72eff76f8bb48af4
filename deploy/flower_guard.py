"""Keeps pages of other web sites away from a Flower that has no password of its own.

Such a Flower allows every site to read its API (`Access-Control-Allow-Origin: *`) and checks no token where something
changes: a page that is open in the same browser could list tasks, and stop workers if FLOWER_READ_ONLY is off. And it
answers to any Host, so that a page may point a name of its own at this machine (DNS rebinding).
"""

import ipaddress
from typing import Any
from urllib.parse import urlsplit

from flower.app import Flower
from tornado.httputil import HTTPServerRequest
from tornado.web import ErrorHandler

SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}


def install(*, check_host: bool) -> None:
    """Guard every page. `check_host`: refuse names other than this machine's own, which a proxy may send."""
    find = Flower.find_handler

    def find_guarded(self: Flower, request: HTTPServerRequest, **more: Any) -> Any:
        if is_foreign(request) or (check_host and not names_this_machine(request.host)):
            return self.get_handler_delegate(request, ErrorHandler, {"status_code": 403})
        return find(self, request, **more)

    Flower.find_handler = find_guarded


def is_foreign(request: HTTPServerRequest) -> bool:
    """Whether a page of another site makes this request. A link that somebody follows is none."""
    origin = request.headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc != request.host:
        return True
    if request.headers.get("Sec-Fetch-Site") not in ("cross-site", "same-site"):
        return False
    return request.method not in SAFE_METHODS or request.headers.get("Sec-Fetch-Dest") != "document"


def names_this_machine(host: str) -> bool:
    name = urlsplit(f"//{host}").hostname or ""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"

"""A mail's HTML as a document of its own, which can be looked at and do nothing.

The walls are headers of the answer, which no markup can undo: a sandbox without scripts, forms, automatic redirects
and ways to the page around it, and a policy that loads nothing but images. The browser knows them before it reads
the first byte, so that nothing depends on understanding the HTML, with one exception: see `_LOADS_UNASKED`.
"""

import re
from base64 import b64encode
from html import unescape
from urllib.parse import unquote

from dev.inbox.parsing import Content, Part

# Links open in new tabs, which are ordinary ones.
SANDBOX = "allow-popups allow-popups-to-escape-sandbox"

# A mail may show one large image a thousand times; written out each time it would fill the memory.
MAX_INLINED_CHARACTERS = 64 * 1024 * 1024

# `<link rel=preconnect>` opens a connection, and no Content-Security-Policy keeps it from that; a nested frame may
# hold such a link in its `srcdoc`, written with entities. A start tag needs these very characters (HTML section
# 13.2.5.6), so none is missed. `meta` is void and harmless, whatever attributes it is left with.
_LOADS_UNASKED = re.compile(r"<(?=(?:link|iframe)(?:[\s/>]|\Z))", re.IGNORECASE)

# Where links say themselves where they open, in this frame they would open nowhere.
_TARGET = re.compile(r"(<(?:a|area)\s[^<>]*?)\btarget\s*=\s*(?:\"[^\"<>]*\"|'[^'<>]*'|[^\s\"'<>]+)", re.IGNORECASE)

# `base` has to come before every other one, and after the doctype: before it, the browser would draw in quirks mode.
_DOCTYPE = re.compile(r"\ufeff?(?:\s|<!--(?>.*?-->))*+<!doctype[^>]*>", re.IGNORECASE | re.DOTALL)

_CID = re.compile(r"\bcid:([^\s\"'<>)]+)", re.IGNORECASE)
_IMAGE_TYPE = re.compile(r"image/[\w.+-]+", re.ASCII)


def security_headers(*, remote_images: bool) -> dict[str, str]:
    """The headers to answer `document` with. Images that the mail brings itself are always shown."""
    policy = [
        "default-src 'none'",
        f"img-src data:{' http: https:' if remote_images else ''}",
        "style-src 'unsafe-inline'",  # mail has no other styles
        "base-uri 'none'",
        "form-action 'none'",
        f"sandbox {SANDBOX}",
    ]
    return {
        "Content-Security-Policy": "; ".join(policy),
        "Cross-Origin-Opener-Policy": "unsafe-none",  # another value and a sandbox exclude each other
        "X-DNS-Prefetch-Control": "off",
    }


def document(content: Content) -> str:
    html = _with_own_images(_TARGET.sub(r"\1", content.html), content.inline)
    html = _LOADS_UNASKED.sub("<meta ", html)  # last: nothing may be put together after it
    doctype = _DOCTYPE.match(html)
    start = doctype.end() if doctype else 0
    return f'{html[:start]}<base target="_blank">{html[start:]}'


def _with_own_images(html: str, parts: tuple[Part, ...]) -> str:
    """`cid:` URLs (RFC 2392) as data: URLs, since a sandboxed document may ask this server for nothing."""
    images = {part.content_id: part for part in parts if _IMAGE_TYPE.fullmatch(part.content_type)}
    urls: dict[str, str] = {}
    left = MAX_INLINED_CHARACTERS

    def url(match: re.Match[str]) -> str:
        nonlocal left
        content_id = unquote(unescape(match[1]))
        if content_id not in images:
            return match[0]
        if content_id not in urls:
            image = images[content_id]
            urls[content_id] = f"data:{image.content_type};base64,{b64encode(image.content).decode()}"
        left -= len(urls[content_id])
        return urls[content_id] if left >= 0 else match[0]

    return _CID.sub(url, html)

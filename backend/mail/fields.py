"""The types of an email's fields: what may stand in a name, a header, a link, an address or a body.

Each type refuses at the edge what could do harm further down: header injection, spam smuggled through a name
field, links that a browser reads differently from us.
"""

import re
import unicodedata
from typing import Annotated
from urllib.parse import urlsplit

from email_validator import SPECIAL_USE_DOMAIN_NAMES, EmailNotValidError, validate_email
from pydantic import AfterValidator, AnyUrl, HttpUrl, StringConstraints, TypeAdapter, ValidationError

MAX_LINK = 2_048
MAX_BODY = 500_000


class Secret:
    """Marks a field that holds a credential: stored encrypted, erased when no longer needed, never shown."""


# Embeddings, overrides and isolates make a reader see another order than the one written (Unicode TR 36).
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
TLDS = (
    "com|net|org|info|biz|io|co|dev|app|me|ly|gl|gg|to|tv|cc|ru|cn|su|tk|ml|ga|cf|gq|xyz|top|site|online|shop|"
    "store|click|link|live|club|vip|icu|work|space|website|fun|buzz|win|bet|loan|zip|mov|de|uk|fr|eu|us|in|br"
)
_URL = re.compile(
    r"://|\bwww\.|\b[\w-]+\.[a-z]{2,}/"
    # "ASP.NET" and its kin are names of courses; mail programs would make a link of most other dotted words.
    rf"|(?!\b[A-Z]{{2,3}}\.NET\b)\b[\w-]{{2,}}\.(?i:{TLDS})\b(?!\.\w)",
)
# RFC 3986 section 2: what may stand in a URL as it is. A backslash, a quote or a space is read differently by
# browsers (WHATWG) and by RFC 3986 parsers, so such a link is rewritten to the browser's reading.
_PLAIN_URL = re.compile(r"[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%]+")
# Not "--", which may begin a name in punycode.
_PLAIN_ADDRESS = re.compile(
    r"(?!.*--)[A-Za-z0-9_+-]+(?:\.[A-Za-z0-9_+-]+)*@(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]{2,63}"
)
_SPECIAL = {name.rpartition(".")[2] for name in SPECIAL_USE_DOMAIN_NAMES} | {"test"}
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_http_url = TypeAdapter(HttpUrl)
_any_url = TypeAdapter(AnyUrl)


def is_visible(text: str) -> bool:
    """Whether a reader would see anything: more than spaces, line breaks and characters without a width."""
    return any(unicodedata.category(character) not in ("Cc", "Cf", "Zs", "Zl", "Zp") for character in text)


def is_url(link: str) -> bool:
    """Whether browsers can read it as an absolute URL (WHATWG), of whatever scheme."""
    try:
        _any_url.validate_python(link)
    except ValidationError:
        return False
    return True


def host_of(link: str) -> str | None:
    """The host that a link leads to, in lower case and punycode.

    None when it leads nowhere, when mail programs disagree about where (a backslash is a slash to browsers only),
    or when a user name makes it look like another place (`https://lms.example.com@evil.example`).
    """
    if "\\" in link:
        return None
    try:
        parsed = _any_url.validate_python(link)
    except ValidationError:
        return None
    if parsed.host is None or parsed.username is not None or parsed.password is not None:
        return None
    return parsed.host.lower()


def header_text(value: str) -> str:
    """One printable line in the form in which a header shows it."""
    return unicodedata.normalize("NFC", value).strip()


def _printable(value: str) -> str:
    if value.isascii() and value.isprintable():
        return value
    for character in value:
        # Cc, Zl and Zp break a header (RFC 5322 2.2); Cs has no UTF-8 form.
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp"):
            raise ValueError("must not contain line breaks or control characters")
        if character in _BIDI:
            raise ValueError("must not contain characters that change the direction of text")
    return value


def _body(value: str) -> str:
    if _CONTROL.search(value):
        raise ValueError("must not contain control characters other than line breaks and tabs")
    return _not_blank(value)


def _header_text(value: str) -> str:
    return header_text(_printable(value))


def _not_blank(value: str) -> str:
    if not is_visible(value):
        raise ValueError("must not be blank")
    return value


def _no_url(value: str) -> str:
    if _URL.search(value):
        raise ValueError("must not contain a web address")
    return value


def is_plain(address: str) -> bool:
    """Whether an address is valid and normalised at first sight: most are, and a look costs a tenth of a parser."""
    if not _PLAIN_ADDRESS.fullmatch(address):
        return False
    local, _, domain = address.partition("@")
    return len(local) <= 64 and len(address) <= 254 and domain.rpartition(".")[2] not in _SPECIAL


def _address(value: str) -> str:
    _printable(value)
    if is_plain(value):
        return value
    try:
        # strict: without it a local part of 65 characters passes (RFC 5321 4.5.3.1.1 allows 64). Domains under
        # .test parse here, and Policy refuses them outside development.
        found = validate_email(value, strict=True, check_deliverability=False, test_environment=True)
    except EmailNotValidError:
        raise ValueError("must be one email address, such as ada@example.com") from None
    return found.normalized


def _link(value: str) -> str:
    _printable(value)
    if any(character.isspace() for character in value):
        raise ValueError("must not contain spaces")
    try:
        parsed = _http_url.validate_python(value)
    except ValidationError:
        raise ValueError("must be a web address that begins with https:// or http://") from None
    if parsed.username is not None or parsed.password is not None:
        raise ValueError("must not contain a user name")
    plain = _PLAIN_URL.fullmatch(value) and (urlsplit(value).hostname or "") == (parsed.host or "").lower()
    return value if plain else str(parsed)


def mailbox_of(address: str) -> str:
    """The mailbox to which the spellings of an address lead, as far as one can tell. For limits only: now and then it
    takes two people for one.

    Left out are case, compatibility forms, what follows a + (RFC 5233), and the dots of Gmail's names.
    """
    local, _, domain = unicodedata.normalize("NFKC", address).casefold().rpartition("@")
    local = local.partition("+")[0] or local
    if domain in ("gmail.com", "googlemail.com"):
        return f"{local.replace('.', '')}@gmail.com"
    return f"{local}@{domain}"


def mask_address(address: str) -> str:
    """`ada@example.com` as `a***@example.com`: enough to recognise, too little to harvest."""
    local, _, domain = address.rpartition("@")
    return f"{local[:1]}***@{domain}"


class WebAddress:
    """Marks a field that a reader will click: the installation may restrict where it points."""


HeaderText = Annotated[
    str, StringConstraints(max_length=200), AfterValidator(_header_text), AfterValidator(_not_blank)
]
"""One line for a header, 1 to 200 characters."""

Label = Annotated[str, StringConstraints(max_length=100), AfterValidator(_header_text), AfterValidator(_not_blank)]
"""What a caller names something by: 1 to 100 characters on one line."""

Name = Annotated[
    str,
    StringConstraints(max_length=100),
    AfterValidator(_header_text),
    AfterValidator(_not_blank),
    AfterValidator(_no_url),
]
"""The name of a person or a course: 1 to 100 characters, no web address."""

Address = Annotated[str, StringConstraints(max_length=254), AfterValidator(_address)]
"""One mailbox (RFC 5321 4.1.2, RFC 6531), normalised: domain in lower case, NFC."""

Link = Annotated[str, StringConstraints(min_length=1, max_length=MAX_LINK), AfterValidator(_link), WebAddress()]
"""An absolute http(s) URL without user information."""

Body = Annotated[
    str,
    StringConstraints(min_length=1, max_length=MAX_BODY),
    AfterValidator(_body),
]
"""HTML or plain text of a custom mail."""

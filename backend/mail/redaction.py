"""What a log line, a page of Flower or an alert must not show, taken out of a text: the one place that decides it.

What an operator needs to recognise stays: the host of a link, the first letter and the domain of an address.
"""

import json
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator
from functools import lru_cache, partial
from urllib.parse import quote

from mail.fields import mask_address

HIDDEN = "***"
SHORT = 8  # characters: a shorter secret is hidden only where it is a word of its own
WORD = 40

# Repetitions are bounded: else a long word costs the square of its length.
_TELLING = re.compile(
    r"""
      (?P<scheme>[a-z][a-z0-9+.-]{0,30}://)(?P<place>[^\s"'<>]*)
    | (?P<local>[^\s"'<>(),;:\[\]@]{1,64})(?P<at>@|%40)(?P<domain>[\w-]+(?:\.[\w-]+)+)
    | (?P<query>\?[^\s"'<>=]{0,200}=)[^\s"'<>]*
    | (?P<login>\b(?:Bearer|Basic|X-API-Key:|AUTH[ ](?:PLAIN|LOGIN|XOAUTH2|OAUTHBEARER))[ ])[^\s"'<>]+
    """,
    re.VERBOSE | re.IGNORECASE,
)
_MARKS = re.compile(r"[@?]|%40|://|(?:bearer|basic|x-api-key:|auth) ", re.IGNORECASE)
"""Without one of these a text has nothing telling, which is quicker to see."""


class Redactor:
    """`redactor(text)` is the text without secrets, credentials, tokens and whole addresses.

    Hidden are the secrets it was told (`hide`), in clear, quoted, percent-encoded, and anywhere inside base64; what
    follows the host of any URL, and its user and password; the query of a bare path; what follows `Bearer`, `Basic`
    and `AUTH PLAIN`; and all of an address but its first letter and its domain. Twice is the same as once.
    """

    def __init__(self) -> None:
        self.hide(())

    def hide(self, secrets: Iterable[str]) -> None:
        """Replace the secrets it knows."""
        patterns = sorted({pattern for secret in secrets if secret for pattern in _patterns(secret)}, key=len)
        # Longest first, so that a secret within another does not leave half of it.
        self._secrets = re.compile("|".join(reversed(patterns))) if patterns else None
        # Half of what is logged are the same few words: kinds, lanes, states, paths.
        self._word = lru_cache(maxsize=1024)(self._redacted)

    def __call__(self, text: str) -> str:
        return self._word(text) if len(text) <= WORD else self._redacted(text)

    def _redacted(self, text: str) -> str:
        if self._secrets is not None:
            text = self._secrets.sub(HIDDEN, text)
        return _TELLING.sub(_cut, text) if _MARKS.search(text) else text


def _cut(found: re.Match[str]) -> str:
    if scheme := found["scheme"]:
        host, *rest = re.split("([/?#].*)", found["place"], maxsplit=1)
        user, _, host = host.rpartition("@")
        path = rest[0] if rest else ""
        # Redis's databases have a number, and that is no secret.
        shown = path if re.fullmatch(r"(/\d{0,3})?", path) else f"/{HIDDEN}"
        return f"{scheme}{HIDDEN + '@' if user else ''}{host}{shown}"
    if found["local"]:
        return mask_address(f"{found['local']}@{found['domain']}")
    return f"{found['query'] or found['login']}{HIDDEN}"


def _patterns(secret: str) -> Iterator[str]:
    data = secret.encode("utf-8", "surrogateescape")
    quoted = {write(secret)[1:-1] for write in (repr, json.dumps, partial(json.dumps, ensure_ascii=False))}
    for form in {secret, quote(data, safe=""), *quoted}:
        yield re.escape(form) if len(form) >= SHORT else rf"(?<!\w){re.escape(form)}(?!\w)"
    for before in range(3):
        # The characters of base64 that depend on the secret alone, with so many bytes of something else before it.
        inner = b64encode(bytes(before) + data).decode().rstrip("=")
        inner = inner[(0, 2, 3)[before] : None if (before + len(data)) % 3 == 0 else -1]
        if len(inner) >= SHORT:
            yield rf"{re.escape(inner)}[\w+/=]*"


redact = Redactor()
"""The redactor of this process. It knows the secrets of the settings as soon as they are read."""

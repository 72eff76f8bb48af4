"""Finds a secret wherever it is written, in every spelling."""

import base64
import codecs
import html
import json
import quopri
import re
from collections.abc import Iterator
from urllib.parse import quote


def spellings(secret: str) -> Iterator[bytes]:
    """The forms in which a text may carry it."""
    yield secret.encode()
    yield secret.encode("utf-16-le")
    yield secret.encode().hex().encode()
    yield quote(secret, safe="").encode()
    yield quote(quote(secret, safe=""), safe="").encode()
    yield html.escape(secret).encode()
    yield json.dumps(secret)[1:-1].encode()
    yield quopri.encodestring(secret.encode()).replace(b"=\n", b"")
    yield codecs.encode(secret, "unicode_escape")
    for shift in range(3):  # in base64 it looks different after each number of bytes before it
        encoded = base64.b64encode(b"\0" * shift + secret.encode())
        whole = encoded[4 * bool(shift) : len(encoded) // 4 * 4 - 4]
        yield whole
        yield whole.translate(bytes.maketrans(b"+/", b"-_"))


class Needles:
    """Every spelling of these secrets."""

    def __init__(self, *secrets: str) -> None:
        self._needles = {needle for secret in secrets for needle in spellings(secret)}

    def found(self, content: bytes) -> set[bytes]:
        """Those that are in it."""
        # Lines may be folded, with quoted-printable's = or without.
        unfolded = re.sub(rb"=?\r?\n[ \t]*", b"", content.replace(b"\\r\\n", b"\n").replace(b"\\n", b"\n"))
        return {needle for needle in self._needles if needle in content or needle in unfolded}

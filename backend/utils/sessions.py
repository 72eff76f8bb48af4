"""Who is signed in: a signed cookie, made of an API key.

The cookie is a Fernet token under a key derived from OUTBOX_KEYS, so nobody can read, forge or prolong one, and every
process of the API knows it. It names the key it was made of with a part of the key's digest: a key that is removed or
changed ends its sessions. What must be remembered on the server, sign-outs and links that were used, is in Redis.
"""

import base64
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from mail.wire import Wire
from settings import ApiKey, Scope

IDLE = 30 * 60  # seconds
LONGEST = 12 * 60 * 60
LINK_LIVES = 12 * 60 * 60


class Session(NamedTuple):
    """Somebody who is signed in. `began`: seconds since the epoch."""

    id: str
    name: str
    scopes: frozenset[Scope]
    began: float

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes


class Sessions:
    """Makes and reads sessions.

    Args:
        keys: those of the outbox, newest first.
        callers: whose keys may sign in.
    """

    def __init__(self, wire: Wire, keys: Sequence[str], callers: Sequence[ApiKey]) -> None:
        self._wire = wire
        self._cookies = MultiFernet([Fernet(_derived(key, "cookie")) for key in keys])
        self._links = MultiFernet([Fernet(_derived(key, "link")) for key in keys])
        self._secret = _derived(keys[0], "form")
        self._callers = {caller.name: caller for caller in callers}

    def begin(self, caller: ApiKey) -> Session:
        """A new session of this key's owner."""
        return Session(secrets.token_urlsafe(16), caller.name, caller.scopes, time.time())

    def cookie(self, session: Session) -> str:
        """What the browser keeps; good for IDLE from now on."""
        caller = self._callers[session.name]
        content = {"id": session.id, "name": session.name, "key": _print(caller), "began": session.began}
        return _sealed(self._cookies, content)

    def read(self, cookie: str) -> Session | None:
        """The session of a cookie, unless it has ended.

        Raises:
            OutboxUnavailable
        """
        found = _opened(self._cookies, cookie, IDLE)
        caller = self._owner(found)
        if caller is None or time.time() - found["began"] > LONGEST:
            return None
        with self._wire.answered():
            ended = self._wire.client.exists(self._ended(found["id"]))
        return None if ended else Session(found["id"], caller.name, caller.scopes, found["began"])

    def end(self, session: Session) -> None:
        """Sign out: the cookie is worth nothing any more, wherever a copy of it is.

        Raises:
            OutboxUnavailable
        """
        with self._wire.answered():
            self._wire.client.set(self._ended(session.id), 1, ex=LONGEST)

    def form_token(self, session: Session) -> str:
        """What every form of this session carries, and no page of another site knows."""
        return hmac.new(self._secret, session.id.encode(), hashlib.sha256).hexdigest()

    def link(self, caller: ApiKey) -> str:
        """A word that signs its bearer in, once."""
        content = {"once": secrets.token_urlsafe(16), "name": caller.name, "key": _print(caller)}
        return _sealed(self._links, content)

    def follow(self, word: str) -> ApiKey | None:
        """Whom a link signs in, the first time.

        Raises:
            OutboxUnavailable
        """
        found = _opened(self._links, word, LINK_LIVES)
        caller = self._owner(found)
        if caller is None:
            return None
        used = self._wire.key("console", "used", found["once"])
        with self._wire.answered():
            fresh = self._wire.client.set(used, 1, ex=LINK_LIVES, nx=True)
        return caller if fresh else None

    def _owner(self, found: Mapping[str, Any]) -> ApiKey | None:
        caller = self._callers.get(found.get("name", ""))
        return caller if caller and hmac.compare_digest(found["key"], _print(caller)) else None

    def _ended(self, session_id: str) -> str:
        return self._wire.key("console", "ended", session_id)


def _sealed(fernet: MultiFernet, content: Mapping[str, Any]) -> str:
    return fernet.encrypt(json.dumps(content).encode()).decode()


def _opened(fernet: MultiFernet, word: str, lives: int) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(fernet.decrypt(word, ttl=lives))
    except (InvalidToken, ValueError):
        return {}
    return content


def _print(caller: ApiKey) -> str:
    return caller.digest[:8].hex()


def _derived(key: str, purpose: str) -> bytes:
    # A key for each purpose (RFC 5869): a link is no cookie, and neither opens a secret of a mail.
    raw = HKDF(SHA256(), 32, salt=None, info=f"lms mail console {purpose}".encode()).derive(
        base64.urlsafe_b64decode(key)
    )
    return base64.urlsafe_b64encode(raw)

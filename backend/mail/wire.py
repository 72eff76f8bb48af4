"""The way to Redis: runs the outbox's scripts, knows Redis's time, and turns its silence into our error."""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import redis
import structlog

from mail.errors import OutboxUnavailable

logger = structlog.get_logger(__name__)

SCRIPTS = Path(__file__).parent / "scripts"
SILENCE = 1.0  # seconds


class Wire:
    """Calls to one Redis. Safe to share between threads.

    Args:
        client: decodes responses and does not retry; its `socket_timeout` bounds how long a frozen Redis holds a
            caller up.
        prefix: begins every key.
        answer_within: after so long a script that waits in a frozen Redis must do nothing any more.
        gap: seconds without an answer that count as having lost Redis.
    """

    def __init__(self, client: "redis.Redis", *, prefix: str, answer_within: timedelta, gap: float) -> None:
        self.client = client
        self.prefix = prefix
        self._answer_within = answer_within.total_seconds()
        self._gap = gap
        self._clock: _Clock | None = None
        self._silent_until = float("-inf")
        self._last_contact = float("-inf")
        self._regained = float("-inf")
        common = "".join(path.read_text() for path in sorted(SCRIPTS.glob("_*.lua")))
        self._scripts = {path.stem: _Script.assemble(path.read_text(), common) for path in SCRIPTS.glob("[!_]*.lua")}

    def key(self, *parts: str) -> str:
        """A key of the outbox: `key("email", "some-id")`."""
        return self.prefix + ":".join(parts)

    @contextmanager
    def answered(self, email_id: str | None = None) -> Iterator[None]:
        """Around calls that somebody waits for: a Redis that is away becomes an error of ours.

        After a timeout it fails at once for a while. Requests queue for threads; if each waited out a timeout of
        its own, the last ones would wait for many.

        Raises:
            OutboxUnavailable: with `email_id` if the answer may have been lost on the way.
        """
        if time.monotonic() < self._silent_until:
            raise OutboxUnavailable("Redis does not answer")
        try:
            yield
        except redis.RedisError as error:
            if isinstance(error, redis.TimeoutError):
                self._silent_until = time.monotonic() + SILENCE
            raise _unavailable(error, email_id) from error

    def run(self, script: str, *arguments: object) -> Any:
        """Run a script, once more if a connection turned out dead: each may run twice.

        Never after a timeout: a frozen Redis would be waited for twice. Every script answers with Redis's time,
        first, or second after a word.

        Raises:
            redis.RedisError
        """
        values = [self.prefix, *(str(argument) for argument in arguments)]
        asked = time.monotonic()
        try:
            reply = self._call(self._scripts[script], values)
        except redis.ConnectionError as error:
            if _refused(error):
                raise
            try:
                reply = self._call(self._scripts[script], values)
            except redis.ConnectionError:
                # The first call may have been run; that the second was refused does not undo it.
                raise error from None
        if isinstance(reply[-1], list):
            _tell(reply.pop())
        self._note(asked, time.monotonic(), reply[1] if isinstance(reply[0], str) else reply[0])
        return reply

    def run_in_time(self, script: str, email_id: str, *arguments: object) -> Any:
        """Run a script that gets a deadline as its second argument, by which a caller has given up.

        A clock that was set, or a machine that slept, makes the first guess at Redis's time wrong; the refusal
        brings the right one.
        """
        reply = self.run(script, email_id, self._deadline(), *arguments)
        if reply[0] == "late":
            reply = self.run(script, email_id, self._deadline(), *arguments)
        return reply

    def in_contact_for(self) -> float:
        """For how many seconds Redis has answered this process without a gap, in silence or in its time."""
        now = time.monotonic()
        return now - self._regained if now - self._last_contact < self._gap else 0.0

    def now(self) -> float:
        """Redis's time in seconds, as its last answer makes it likely; early rather than late."""
        if self._clock is None:
            self.run("tick")
        return time.monotonic() + (self._clock.ahead_at_least if self._clock else 0.0)

    def info(self, *sections: str) -> Mapping[str, Any]:
        """Redis's own INFO; empty where its ACL forbids it.

        Raises:
            redis.RedisError: no answer.
        """
        try:
            return self.client.info(*sections)
        except redis.ResponseError:
            return {}

    def _call(self, script: "_Script", values: Sequence[str]) -> Any:
        try:
            return self.client.evalsha(script.digest, 0, *values)
        except redis.exceptions.NoScriptError:
            # Not SCRIPT LOAD, as redis-py's own helper does: a full Redis refuses that, and delivering must go on.
            return self.client.eval(script.source, 0, *values)

    def _note(self, asked: float, received: float, redis_time: int) -> None:
        clock = _Clock(redis_time / 1000 - received, redis_time / 1000 - asked)
        moved = clock.moved_from(self._clock) if self._clock else 0.0
        if abs(moved) > self._gap:
            logger.warning("redis.clock_moved", seconds=round(moved, 1))
        if received - self._last_contact > self._gap or abs(moved) > self._gap:
            self._regained = received
        self._last_contact = received
        self._clock = clock

    def _deadline(self) -> int:
        return int((self.now() + self._answer_within) * 1000)


class _Clock(NamedTuple):
    """How many seconds Redis's time is ahead of this process's monotonic clock."""

    ahead_at_least: float
    ahead_at_most: float

    def moved_from(self, before: "_Clock") -> float:
        """How far it was moved since, at least: an answer that was slow to come is no movement."""
        return max(0.0, self.ahead_at_least - before.ahead_at_most) or min(
            0.0, self.ahead_at_most - before.ahead_at_least
        )


class _Script(NamedTuple):
    source: str
    digest: str

    @classmethod
    def assemble(cls, source: str, common: str) -> "_Script":
        shebang, _, body = source.partition("\n")
        whole = f"{shebang}\n{common}\nlocal function main()\n{body}\nend\nreturn with_news(main())\n"
        return cls(whole, hashlib.sha1(whole.encode(), usedforsecurity=False).hexdigest())


def _tell(news: Sequence[str]) -> None:
    """Log what a script has brought about besides its answer."""
    for line in news:
        facts = json.loads(line)
        getattr(logger, facts.pop("level"))(facts.pop("event"), **facts)


def _refused(error: redis.RedisError) -> bool:
    return isinstance(error.__cause__ or error.__context__, ConnectionRefusedError)


def _unavailable(error: redis.RedisError, email_id: str | None) -> OutboxUnavailable:
    """Redis's refusal in our words. Only a lost answer leaves it open whether the email was taken."""
    if isinstance(error, redis.AuthenticationError):
        return OutboxUnavailable("Redis refuses the password in REDIS_URL")
    if isinstance(error, redis.ResponseError):
        return OutboxUnavailable("Redis refuses to write; see its log")
    if _refused(error):
        return OutboxUnavailable("Redis cannot be reached")
    return OutboxUnavailable("Redis does not answer", email_id=email_id)

"""What Redis holds of a batch's recipients, read: their ids, their records, and the mailing they share.

A recipient is two things in Redis: a place in its chunk's content, and a letter in the batch's states. One that met
a failure has an email record of its own beside it, which then has the last word.
"""

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

from mail.errors import UnknownBatch
from mail.mailing import Mailing, Recipient
from mail.records import Record, State
from mail.wire import Wire

CHUNK = 100
"""Recipients in one chunk, as in scripts/_common.lua."""

LETTERS: Mapping[str, State] = {
    "q": State.QUEUED,
    "i": State.SENDING,
    "r": State.RETRYING,
    "s": State.SENT,
    "f": State.FAILED,
    "h": State.HELD,
    "c": State.CANCELLED,
    "e": State.EXPIRED,
    "u": State.SUPPRESSED,
}
UNSEEN = frozenset({"accepting", "erasing"})
"""States of a batch that is none yet, or never will be."""

_EMAIL_ID = re.compile(r"(batch-[0-9a-f]+)-([0-9]{1,9})")
_BATCH_ID = re.compile(r"batch-[0-9a-f]+")


class Place(NamedTuple):
    """Where a recipient stands in its batch."""

    batch: str
    position: int

    @property
    def email_id(self) -> str:
        return f"{self.batch}-{self.position}"

    @classmethod
    def of(cls, email_id: str) -> "Place | None":
        """The place that an email id names, if it is one of a batch."""
        found = _EMAIL_ID.fullmatch(email_id)
        return cls(found[1], int(found[2])) if found else None


def is_batch_id(text: str) -> bool:
    """Whether a word has the form of a batch id."""
    return bool(_BATCH_ID.fullmatch(text))


class BatchRecords:
    """Reads recipients and mailings. Safe to share between threads."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._mailings: OrderedDict[str, Mailing] = OrderedDict()
        self._lock = threading.Lock()

    def mailing(self, batch: str) -> Mailing:
        """What the recipients of a batch share. Kept for the few batches used last: it never changes.

        Raises:
            UnknownBatch, redis.RedisError
        """
        with self._lock:
            if batch in self._mailings:
                self._mailings.move_to_end(batch)
                return self._mailings[batch]
        stored = self._wire.client.get(self._wire.key("mailing", batch))
        if stored is None:
            raise UnknownBatch
        mailing = Mailing.restored(json.loads(cast("str", stored)))
        with self._lock:
            self._mailings[batch] = mailing
            while len(self._mailings) > 8:
                self._mailings.popitem(last=False)
        return mailing

    def content(self, batch: str, number: int) -> list[Recipient]:
        """The recipients of one chunk, in order.

        Raises:
            UnknownBatch, redis.RedisError
        """
        stored = self._wire.client.hget(self._wire.key("chunk", batch, str(number)), "content")
        if stored is None:
            raise UnknownBatch
        return [Recipient.restored(entry) for entry in json.loads(cast("str", stored))]

    def record(self, place: Place) -> Record | None:
        """One recipient; None when there is no such batch or position."""
        return next(iter(self.records(place.batch, [place.position])), None)

    def records(self, batch: str, positions: Sequence[int]) -> Iterator[Record]:
        """The records of recipients, in the order of `positions`. Reads each chunk once."""
        key, client = self._wire.key, self._wire.client
        shared = cast("dict[str, str]", client.hgetall(key("batch", batch)))
        if shared.get("state", "accepting") in UNSEEN:
            return
        seconds, micros = client.time()
        now = seconds * 1000 + micros // 1000
        chunks: dict[int, list[Any]] = {}
        for start in range(0, len(positions), CHUNK):
            part = positions[start : start + CHUNK]
            pipe = client.pipeline(transaction=False)
            for position in part:
                pipe.getrange(key("states", batch), position, position)
                pipe.hget(key("chunk", batch, str(position // CHUNK)), str(position))
                pipe.hgetall(key("email", f"{batch}-{position}"))
            answers = iter(pipe.execute())
            for position in part:
                letter, fact, own = next(answers), next(answers), next(answers)
                if not letter:
                    continue
                if "state" in own:
                    yield Record.parse(f"{batch}-{position}", own)
                    continue
                number = position // CHUNK
                if number not in chunks:
                    content = client.hget(key("chunk", batch, str(number)), "content")
                    chunks = {number: json.loads(cast("str", content))} if content else {}
                if number in chunks:
                    recipient = chunks[number][position % CHUNK]
                    state = LETTERS[letter.lower()]
                    if state is State.QUEUED and int(shared.get("send_at", "0")) > now:
                        state = State.SCHEDULED
                    yield _compact(Place(batch, position), shared, state, recipient, fact)


def _compact(place: Place, shared: Mapping[str, str], state: State, recipient: list[Any], fact: str | None) -> Record:
    """The record of a recipient that has none of its own, in the form that email records have in Redis."""
    created = int(shared["created"])
    log: list[dict[str, Any]] = []
    data = {
        "kind": shared["kind"],
        "to": recipient[0],
        "lane": "bulk",
        "state": state.value,
        "batch": place.batch,
        "payload": json.dumps(recipient),
        "attempts": "1" if state is State.SENT else "0",
        "created": shared["created"],
        "updated": shared["created"],
    }
    data |= {name: shared[name] for name in ("send_at", "expires", "request_id") if name in shared}
    if fact and state is State.SENT:  # before that it is a mark, for whoever takes a chunk over
        at, worker, code, reply = (*json.loads(fact), None, None)[:4]
        data |= {"sent": str(at), "updated": str(at)}
        data |= {name: str(value) for name, value in (("code", code), ("reply", reply)) if value is not None}
        log.append({"at": at, "state": "sent", "worker": worker, "attempt": 1, "code": code, "reply": reply})
    elif state is not State.QUEUED:
        log.append({"at": created, "state": state.value})
    data["log"] = "\n".join(json.dumps(line) for line in log)
    return Record.parse(place.email_id, data)

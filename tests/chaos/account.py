"""The account of a run: each mail that was asked for, against what arrived and what the service says of it.

Pure, so that it can be tested itself: an account that cannot find a loss proves nothing.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

OPEN = frozenset({"scheduled", "queued", "sending", "retrying"})


class Asked(NamedTuple):
    """One request. `accepted`: answered with an id. `refused`: answered otherwise, or never taken in. `unclear`: the
    connection broke, or the answer says that it may have been lost; `id` is then None, or what the answer names."""

    to: str
    answer: Literal["accepted", "refused", "unclear"]
    id: str | None = None
    at: float = 0.0


class Arrived(NamedTuple):
    """One message that the SMTP server has taken, answered or not. `at` is monotonic."""

    to: str
    message_id: str
    at: float = 0.0


class Fate(NamedTuple):
    """What the service says became of a mail. `state` is the outbox's, or for a service without records `queued`
    while its broker still has it; None: it knows nothing of it."""

    state: str | None
    reported: bool = False
    reason: str = ""


@dataclass
class Account:
    """Where each mail ended up. Every accepted one is in exactly one of the first nine lists."""

    sent: list[str] = field(default_factory=list)
    copied: list[str] = field(default_factory=list)
    """More than once, the same Message-ID, and the service says so."""
    held: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    """Cancelled, expired, suppressed; nothing arrived."""
    unreported: list[str] = field(default_factory=list)
    """More than once, and nobody says so; or with different Message-IDs."""
    stuck: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    false: list[str] = field(default_factory=list)
    """The record says something else than what happened."""
    unclear_copies: list[str] = field(default_factory=list)
    """Asked for with an unclear answer, more than once, and nobody says so."""
    intruders: list[str] = field(default_factory=list)
    """Refused or never asked for, and yet arrived."""
    accepted: int = 0
    refused: int = 0
    unclear: int = 0
    copies: int = 0
    """Messages beyond the first, reported or not."""

    def wrong(self) -> list[str]:
        """Whatever breaks the promise, by name."""
        kinds = ("lost", "stuck", "unreported", "false", "unclear_copies", "intruders")
        faults = [f"{kind}: {name}" for kind in kinds for name in getattr(self, kind)]
        placed = (self.sent, self.copied, self.held, self.failed, self.ended, self.unreported, self.stuck, self.lost)
        if sum(map(len, (*placed, self.false))) != self.accepted:
            faults.append("the account does not add up")
        return faults

    def __str__(self) -> str:
        counts = {name: len(value) for name, value in vars(self).items() if isinstance(value, list) and value}
        return f"{self.accepted} accepted, {self.refused} refused, {self.unclear} unclear: {counts}"


def settle(
    asked: Sequence[Asked], arrived: Iterable[Arrived], fates: Mapping[str, Fate], *, records: bool = True
) -> Account:
    """Place every mail. `fates` is by id; `records`: whether the service keeps one of every mail.

    Recipients must differ from request to request: they are what a message is known by.
    """
    account = Account()
    messages: dict[str, list[str]] = {}
    for arrival in arrived:
        messages.setdefault(arrival.to, []).append(arrival.message_id)
    if doubled := [to for to, count in Counter(one.to for one in asked).items() if count > 1]:
        raise ValueError(f"asked for twice: {doubled[:3]}")
    account.copies = sum(len(ids) - 1 for ids in messages.values())
    for one in asked:
        ids = messages.pop(one.to, [])
        match one.answer:
            case "accepted":
                account.accepted += 1
                _place(account, one.id or one.to, ids, fates.get(one.id or "", Fate(None)), records)
            case "refused":
                account.refused += 1
                account.intruders += [one.to] if ids else []
            case "unclear":
                account.unclear += 1
                # It may have been taken in or not; only a silent copy breaks a promise.
                known = fates.get(one.id or _id(ids), Fate(None))
                if len(ids) > 1 and not (known.reported and len(set(ids)) == 1):
                    account.unclear_copies.append(one.to)
    account.intruders += messages
    return account


def _place(account: Account, name: str, ids: Sequence[str], fate: Fate, records: bool) -> None:
    count = len(ids)
    if fate.state in OPEN:
        account.stuck.append(name)
    elif fate.state is None and not count:
        account.lost.append(name)
    elif fate.state is None and records:
        account.false.append(f"{name} arrived, and has no record")
    elif count > 1:
        (account.copied if fate.reported and len(set(ids)) == 1 else account.unreported).append(name)
    elif fate.state in ("sent", None):
        # "sent" of which nothing arrived is the worst kind of loss: nobody looks for it.
        (account.sent if count else account.lost).append(name)
    elif fate.state == "held":
        account.held.append(name)
    elif count and not fate.reported:
        account.false.append(f"{name} is {fate.state}, and arrived")
    elif fate.state == "failed" and not fate.reason:
        account.false.append(f"{name} failed without a reason")
    else:
        (account.failed if fate.state == "failed" else account.ended).append(name)


def _id(ids: Sequence[str]) -> str:
    return ids[0].partition("@")[0] if ids else ""

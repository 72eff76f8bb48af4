"""How the pages say things."""

from collections.abc import Callable, Mapping
from datetime import datetime

from markupsafe import Markup

from mail.batches import BatchState
from mail.records import State

TONES: Mapping[State, str] = {
    State.SENT: "good",
    State.FAILED: "bad",
    State.HELD: "bad",
    State.RETRYING: "warn",
    State.SENDING: "busy",
}
"""How the state of an email is coloured; the others stay grey. The word always stands beside the colour."""


def time_of(moment: datetime | None) -> Markup:
    """A time in UTC, which the browser turns into the reader's zone; the exact one shows on hover."""
    if moment is None:
        return Markup("")
    exact = moment.isoformat(timespec="milliseconds")
    return Markup('<time datetime="{}" title="{}">{}</time>').format(exact, exact, f"{moment:%Y-%m-%d %H:%M:%S} UTC")


def lasting(seconds: float) -> str:
    """A period in its largest two units."""
    left = int(seconds)
    units = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
    parts: list[str] = []
    for name, size in units:
        count, left = divmod(left, size)
        if count or (name == "s" and not parts):
            parts.append(f"{count} {name}")
    return " ".join(parts[:2])


def tone(state: State) -> str:
    return TONES.get(state, "calm")


BATCH_TONES: Mapping[BatchState, str] = {
    BatchState.FINISHED: "good",
    BatchState.SENDING: "busy",
    BatchState.PAUSED: "warn",
}


def batch_tone(state: BatchState) -> str:
    return BATCH_TONES.get(state, "calm")


LIMITS = {
    "gate": "the SMTP server",
    "day": "SMTP_MAX_PER_DAY",
    "pace": "the server asked for patience",
    "rate": "SMTP_MAX_PER_SECOND",
    "connections": "SMTP_MAX_CONNECTIONS",
}


def held_by(limits: Mapping[str, bool]) -> str:
    """What keeps a lane from going faster."""
    return ", ".join(LIMITS[name] for name, holds in limits.items() if holds) or "nothing"


FILTERS: Mapping[str, Callable[..., object]] = {
    "time": time_of,
    "lasting": lasting,
    "tone": tone,
    "batch_tone": batch_tone,
    "held_by": held_by,
    "number": lambda value: f"{value:,}",
}

"""Trouble on purpose, so that developers see retries and failures with their own eyes."""

import random
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

MOST_SEEN = 100_000

_chance = random.SystemRandom()


class Fault(StrEnum):
    """What the server does wrong."""

    NONE = "none"
    REFUSE = "refuse"  # 550 to RCPT: for good
    GREYLIST = "greylist"  # 451 to the first RCPT of each recipient
    DELAY = "delay"  # the reply to a mail takes its time
    CUT = "cut"  # the mail is taken, and the connection breaks before the reply


class Trouble(BaseModel):
    """A fault, how likely it is for each mail, and for how many seconds a reply is delayed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fault: Fault = Fault.NONE
    probability: float = Field(1.0, ge=0, le=1)
    seconds: float = Field(5.0, ge=0, le=600)


class Chaos:
    """The trouble of now. Only the event loop touches it."""

    def __init__(self) -> None:
        self.trouble = Trouble()
        self._seen: set[str] = set()

    def change(self, trouble: Trouble) -> None:
        self.trouble = trouble
        self._seen.clear()

    def strikes(self, fault: Fault) -> bool:
        """Whether this mail gets into this trouble."""
        return self.trouble.fault is fault and _chance.random() < self.trouble.probability

    def refusal(self, recipient: str) -> str | None:
        """What RCPT is answered with, if not that all is well."""
        if self.strikes(Fault.REFUSE):
            return "550 5.1.1 no such user (chaos of the development inbox)"
        if recipient in self._seen:
            return None
        if len(self._seen) < MOST_SEEN and self.strikes(Fault.GREYLIST):
            self._seen.add(recipient)
            return "451 4.7.1 greylisted, come back later (chaos of the development inbox)"
        return None

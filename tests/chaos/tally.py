"""What one fault did over all its runs, as a row of the table in docs/reliability.md."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos.account import Account
from chaos.driver import Service, Stand


@dataclass
class Tally:
    """`recovery`: seconds from the end of a fault to the next mail that arrived. `wrong`: what breaks the promise."""

    runs: int = 0
    mails: int = 0
    lost: int = 0
    stuck: int = 0
    copies: int = 0
    unreported: int = 0
    held: int = 0
    recovery: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    remark: str = ""

    def add(self, account: Account, *, runs: int = 1) -> None:
        self.runs += runs
        self.mails += account.accepted
        self.lost += len(account.lost)
        self.stuck += len(account.stuck)
        self.copies += account.copies
        self.unreported += len(account.unreported)
        self.held += len(account.held)
        self.wrong += account.wrong()

    def demand(self, holds: bool, what: str) -> None:
        """Note what should hold and does not."""
        if not holds:
            self.wrong.append(what)

    def cells(self) -> list[str]:
        """runs, mails, lost, stuck, copies (unreported), recovery, remark."""
        copies = f"{self.copies}" + (f" ({self.unreported} unreported)" if self.unreported else "")
        recovery = f"{min(self.recovery):.1f}-{max(self.recovery):.1f} s" if self.recovery else ""
        numbers = [self.runs, f"{self.mails:,}", self.lost, self.stuck, copies, recovery, self.remark]
        return [str(number) for number in numbers]


class Lab:
    """Where a fault finds its service: each stand gets a directory of its own below `directory`."""

    def __init__(self, directory: Path, service: Callable[..., Service], *, short: bool = False) -> None:
        self.directory = directory
        self.service = service
        self.short = short
        self._count = 0

    def stand(self, **options: Any) -> Stand:
        self._count += 1
        place = self.directory / str(self._count)
        place.mkdir(parents=True)
        return Stand(place, self.service, **options)

    def runs(self, full: int) -> Iterable[int]:
        return range(1 if self.short else full)

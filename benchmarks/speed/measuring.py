"""Cases that are measured in turns, and the table that comes of it."""

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple


class Case(NamedTuple):
    """One way to do it. `run` does it once and answers with what it took."""

    name: str
    run: Callable[[], float]


class Row(NamedTuple):
    """What a case took: median, least and most, and its median ratio to the first case of the same round."""

    name: str
    median: float
    least: float
    most: float
    ratio: float


class Table(NamedTuple):
    """The answer of a yardstick. `reached`: whether the target holds; `notes` say what was counted and how."""

    title: str
    unit: str
    rows: Sequence[Row]
    target: str
    value: float
    reached: bool
    notes: str = ""

    def __str__(self) -> str:
        verdict = "reached" if self.reached else "NOT REACHED"
        head = f"### {self.title}\n\nTarget: {self.target}. Measured: {self.value:.2f}, {verdict}.\n"
        lines = [f"| | median ({self.unit}) | least to most | ratio to the first |", "|---|---|---|---|"]
        for row in self.rows:
            span = f"{_short(row.least)} to {_short(row.most)}"
            lines.append(f"| {row.name} | {_short(row.median)} | {span} | {row.ratio:.2f} |")
        return "\n".join([head, *lines, "", self.notes, ""] if self.notes else [head, *lines, ""])

    def ratio(self, name: str) -> float:
        return next(row.ratio for row in self.rows if row.name == name)


def measured(cases: Sequence[Case], rounds: int) -> list[Row]:
    """Run each case once a round, in an order that changes, so that what else the machine does meets all of them. The
    ratio is of values of one round."""
    found: Mapping[str, list[float]] = {case.name: [] for case in cases}
    shuffled = list(cases)
    for _ in range(rounds):
        random.shuffle(shuffled)
        for case in shuffled:
            found[case.name].append(case.run())
    return rows_of(found)


def rows_of(found: Mapping[str, Sequence[float]]) -> list[Row]:
    """Values of rounds as rows; the first name is what the others are compared with."""
    base = next(iter(found.values()))
    return [
        Row(
            name,
            statistics.median(values),
            min(values),
            max(values),
            statistics.median(value / first for value, first in zip(values, base, strict=True)),
        )
        for name, values in found.items()
    ]


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

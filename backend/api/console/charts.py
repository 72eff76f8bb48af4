"""The last hour as a chart: a bar for each minute."""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from mail.measures import Minute
from mail.records import State

STATES = (State.SENT, State.RETRYING, State.FAILED, State.HELD)
MINUTES = 60


class Piece(NamedTuple):
    """A part of a bar: `y` and `height` in hundredths of the highest bar, from the top."""

    state: State
    number: int
    y: float
    height: float


class Bar(NamedTuple):
    """One minute. `x`: its place, of MINUTES."""

    x: int
    ends: datetime
    pieces: Sequence[Piece]


class Chart(NamedTuple):
    """`totals`: of the hour; `most`: of one minute."""

    bars: Sequence[Bar]
    totals: Counter[State]
    most: int


def chart_of(hour: Sequence[Minute]) -> Chart:
    """Draw the last MINUTES before the newest one."""
    totals = Counter(dict.fromkeys(STATES, 0))
    newest = hour[-1].ends if hour else None
    recent = [one for one in hour if newest and (newest - one.ends).total_seconds() < MINUTES * 60]
    most = max((sum(one.reached.get(state, 0) for state in STATES) for one in recent), default=0)
    bars = []
    for one in recent:
        pieces, top = [], 100.0
        for state in STATES:
            if number := one.reached.get(state, 0):
                totals[state] += number
                height = 100 * number / most
                top -= height
                pieces.append(Piece(state, number, round(top, 2), round(height, 2)))
        age = int((newest - one.ends).total_seconds() // 60) if newest else 0
        bars.append(Bar(MINUTES - 1 - age, one.ends, pieces))
    return Chart(bars, totals, most)

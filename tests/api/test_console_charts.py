"""The chart of the last hour."""

from datetime import UTC, datetime, timedelta

from api.console.charts import MINUTES, chart_of
from mail.measures import Minute
from mail.records import State

NOW = datetime(2030, 1, 31, 9, 0, tzinfo=UTC)


def minute(ago: int, **reached: int) -> Minute:
    return Minute(NOW - timedelta(minutes=ago), {State(word): number for word, number in reached.items()})


def test_nothing() -> None:
    chart = chart_of([])
    assert (chart.bars, chart.most, set(chart.totals.values())) == ([], 0, {0})


def test_bars_stand_on_the_ground_and_in_their_minute() -> None:
    chart = chart_of(
        [minute(90, sent=500), minute(59, sent=1), minute(5), minute(1, sent=6, failed=2), minute(0, sent=4)]
    )
    assert [bar.x for bar in chart.bars] == [0, MINUTES - 6, MINUTES - 2, MINUTES - 1]
    assert chart.totals == {State.SENT: 11, State.RETRYING: 0, State.FAILED: 2, State.HELD: 0}
    assert chart.most == 8
    sent, failed = chart.bars[2].pieces
    assert (sent.y, sent.height, failed.y, failed.height) == (25, 75, 0, 25)
    assert all(piece.y + piece.height <= 100 for bar in chart.bars for piece in bar.pieces)
    assert chart.bars[3].pieces[0].y == 50


def test_what_is_on_its_way_is_not_drawn() -> None:
    chart = chart_of([minute(0, queued=50, sending=50, sent=1)])
    assert chart.most == 1
    assert [piece.state for piece in chart.bars[0].pieces] == [State.SENT]

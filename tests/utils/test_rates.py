"""Token buckets: how many calls, how soon again, and how much memory."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from utils.rates import MOST_NAMES, Allowance, Rate


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_so_many_at_once_then_one_at_a_time(clock: Clock) -> None:
    rate = Rate(120, clock)
    assert [rate.take("ada").remaining for _ in range(120)] == [*range(119, -1, -1)]
    assert rate.take("ada") == Allowance(False, 0, 1)
    clock.now += 0.5
    assert rate.take("ada").granted
    assert not rate.take("ada").granted


def test_it_fills_up_and_not_over(clock: Clock) -> None:
    rate = Rate(60, clock)
    for _ in range(60):
        rate.take("ada")
    clock.now += 30
    assert rate.take("ada").remaining == 29
    clock.now += 3_600
    assert rate.take("ada").remaining == 59


@pytest.mark.parametrize(("per_minute", "seconds"), [(1, 60), (7, 9), (6_000, 1)])
def test_it_says_when_to_come_again(clock: Clock, per_minute: int, seconds: int) -> None:
    rate = Rate(per_minute, clock)
    while (answer := rate.take("ada")).granted:
        assert answer.retry_after == 0
    assert answer.retry_after == seconds
    clock.now += answer.retry_after
    assert rate.take("ada").granted


def test_each_name_has_its_own(clock: Clock) -> None:
    rate = Rate(1, clock)
    assert rate.take("ada").granted
    assert not rate.take("ada").granted
    assert rate.take("bob").granted


def test_asking_in_vain_does_not_put_it_off(clock: Clock) -> None:
    rate = Rate(1, clock)
    rate.take("ada")
    for _ in range(59):
        clock.now += 1
        assert not rate.take("ada").granted
    clock.now += 1
    assert rate.take("ada").granted


def test_new_names_without_end_fill_no_memory(clock: Clock) -> None:
    rate = Rate(1, clock)
    for number in range(MOST_NAMES + 100):
        rate.take(str(number))
        rate.take("ada")
    assert len(rate._buckets) == MOST_NAMES
    assert not rate.take("ada").granted


def test_threads_get_no_more_than_there_is(clock: Clock) -> None:
    rate = Rate(1_000, clock)
    with ThreadPoolExecutor(8) as pool:
        assert sum(one.granted for one in pool.map(rate.take, ["ada"] * 4_000)) == 1_000

"""Permits for connections, in one process."""

import pytest

import mail.permits
from mail.permits import Permits


@pytest.fixture
def closed() -> list[int]:
    """What the pool was told to keep."""
    return []


@pytest.fixture
def permits(closed: list[int]) -> Permits:
    return Permits(limited=True, trim=closed.append)


def test_one_that_was_granted_is_used_again(permits: Permits, closed: list[int]) -> None:
    with permits.permit() as first:
        first.granted = True
    with permits.permit() as second:
        assert second.name == first.name
        second.granted = True
    assert permits.held() == [first.name]
    assert closed == []


def test_each_mail_at_the_same_time_has_its_own(permits: Permits) -> None:
    with permits.permit() as first, permits.permit() as second:
        assert first.name != second.name
        assert set(permits.held()) == {first.name, second.name}


def test_one_that_was_refused_is_forgotten_with_its_connection(permits: Permits, closed: list[int]) -> None:
    with permits.permit() as first:
        first.granted = True
    with permits.permit() as again:
        assert again.name == first.name
        again.granted = False
    assert permits.held() == []
    assert closed == [0]


def test_one_that_was_not_needed_after_all_is_kept(permits: Permits) -> None:
    with permits.permit() as first:
        first.granted = True
    with permits.permit() as again:
        pass  # the email had ended
    assert permits.held() == [again.name] == [first.name]


def test_idle_ones_lapse(permits: Permits, closed: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    with permits.permit() as first:
        first.granted = True
        assert permits.lapse() == []
    assert permits.lapse() == []
    monkeypatch.setattr(mail.permits, "LINGER", 0.0)
    assert permits.lapse() == [first.name]
    assert (permits.held(), closed) == ([], [0])


def test_without_a_limit_there_is_nothing_to_hold(closed: list[int]) -> None:
    permits = Permits(limited=False, trim=closed.append)
    with permits.permit() as permit:
        assert permit.name == ""
        permit.granted = True
    assert (permits.held(), permits.lapse(), closed) == ([], [], [])

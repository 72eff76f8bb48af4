"""The account itself: every way to break the promise is found, by name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos.account import OPEN, Arrived, Asked, Fate, settle

SENT = Fate("sent")


def asked(*names: str) -> list[Asked]:
    return [Asked(f"{name}@example.com", "accepted", name) for name in names]


def arrived(*names: str) -> list[Arrived]:
    return [Arrived(f"{name}@example.com", f"{name}@lms.example.com") for name in names]


def test_all_is_well() -> None:
    account = settle(asked("a", "b"), arrived("a", "b"), {"a": SENT, "b": SENT})
    assert account.sent == ["a", "b"]
    assert account.wrong() == []


@pytest.mark.parametrize(
    ("what", "messages", "fate", "wrong"),
    [
        ("no record, no message", [], Fate(None), "lost: a"),
        ("recorded as sent, never arrived", [], SENT, "lost: a"),
        ("still waiting", [], Fate("queued"), "stuck: a"),
        ("in nobody's hands", [], Fate("sending"), "stuck: a"),
        ("a copy that nobody reports", ["a", "a"], SENT, "unreported: a"),
        ("arrived, no record", ["a"], Fate(None), "false: a arrived, and has no record"),
        ("failed, and arrived", ["a"], Fate("failed", reason="550"), "false: a is failed, and arrived"),
        ("cancelled, and arrived", ["a"], Fate("cancelled"), "false: a is cancelled, and arrived"),
        ("failed without a reason", [], Fate("failed"), "false: a failed without a reason"),
    ],
)
def test_a_broken_promise_is_named(what: str, messages: list[str], fate: Fate, wrong: str) -> None:
    account = settle(asked("a", "b"), arrived("b", *messages), {"a": fate, "b": SENT})
    assert account.wrong() == [wrong], what


def test_a_copy_with_another_message_id_is_no_reported_copy() -> None:
    messages = [*arrived("a"), Arrived("a@example.com", "other@lms.example.com")]
    assert settle(asked("a"), messages, {"a": Fate("sent", reported=True)}).wrong() == ["unreported: a"]


def test_what_was_refused_must_not_arrive() -> None:
    account = settle([Asked("a@example.com", "refused")], arrived("a", "b"), {})
    assert account.wrong() == ["intruders: a@example.com", "intruders: b@example.com"]


def test_an_answer_that_was_lost_may_mean_either() -> None:
    one = [Asked("a@example.com", "unclear")]
    assert settle(one, [], {}).wrong() == []
    assert settle(one, arrived("a"), {"a": SENT}).wrong() == []
    assert settle(one, arrived("a", "a"), {"a": SENT}).wrong() == ["unclear_copies: a@example.com"]
    assert settle(one, arrived("a", "a"), {"a": Fate("sent", reported=True)}).wrong() == []


def test_recipients_must_differ() -> None:
    with pytest.raises(ValueError, match="asked for twice"):
        settle(asked("a", "a"), [], {})


STATES = [None, "sent", "failed", "held", "cancelled", "expired", *sorted(OPEN)]


@given(
    st.lists(st.tuples(st.sampled_from(STATES), st.integers(0, 3), st.booleans(), st.booleans())),
    st.booleans(),
)
def test_every_accepted_mail_is_in_one_place(mails: list[tuple[str | None, int, bool, bool]], records: bool) -> None:
    names = [f"m{number}" for number in range(len(mails))]
    messages = [name for name, (_, count, _, _) in zip(names, mails, strict=True) for _ in range(count)]
    fates = {
        name: Fate(state, reported, "a reason" if reason else "")
        for name, (state, _, reported, reason) in zip(names, mails, strict=True)
    }
    account = settle(asked(*names), arrived(*messages), fates, records=records)
    assert "the account does not add up" not in account.wrong()
    assert account.copies == sum(max(0, count - 1) for _, count, _, _ in mails)

"""Batches in the outbox: taken in whole or not at all, claimed, settled, steered; the counts always add up."""

import itertools
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
from cryptography.fernet import Fernet

from mail.answers import Claim, Idempotency, Numbers, Waits
from mail.batches import Batch, Batches, BatchState
from mail.chunks import ChunkClaim, ChunkDone, ChunkId, Chunks, ChunkWaits, Result
from mail.errors import (
    BatchBeingAccepted,
    FieldError,
    IdempotencyConflict,
    InvalidEmail,
    OutboxUnavailable,
    UnknownBatch,
    UnknownEmail,
    WrongState,
)
from mail.intake import Intake, Terms
from mail.kinds import Lane, PasswordResetEmail, WelcomeEmail
from mail.mailing import Mailing, Recipient
from mail.outbox import Outbox
from mail.records import State
from mail.vault import Vault
from support.processes import Valkey, wait_until

MAILING = {"subject": "News", "text": "The library is open."}
SENT = ("sent", {"code": 250, "reply": "OK"})
REFUSED = ("failed", {"code": 550, "reply": "no such user", "error": "550 no such user"})
GREYLISTED = ("retry", {"code": 451, "error": "451 later", "delay": 1, "attempts": 5})
LOST = ("retry", {"error": "cut after the dot", "delay": 1, "attempts": 5, "unknown": True, "note": "…"})
BUSY = ("release", {"error": "421 too many", "slow": True})
DOWN = ("release", {"error": "connection refused", "gate": "smtp", "cap": 50})

_prefixes = itertools.count(1)


class AnyRecipient:
    """Stands for the check, which has its own tests: an address with "wrong" in it is."""

    def recipient(self, raw: object) -> Recipient:
        if "wrong" in str(raw):
            raise InvalidEmail([FieldError("to", "must be one email address")])
        return Recipient(str(raw))


@pytest.fixture
def make(valkey: Valkey) -> Iterator[Callable[..., Outbox]]:
    """Outboxes on one Redis; the same `prefix` means the same data."""
    outboxes: list[Outbox] = []
    name = f"b{uuid.uuid4().hex[:8]}:"

    def build(**numbers: Any) -> Outbox:
        outbox = Outbox(
            valkey.client(), prefix=name, vault=Vault([Fernet.generate_key().decode()]), numbers=Numbers(**numbers)
        )
        outboxes.append(outbox)
        return outbox

    yield build
    for outbox in outboxes:
        outbox.close()


@pytest.fixture
def outbox(make: Callable[..., Outbox]) -> Outbox:
    return make()


def intake(outbox: Outbox, *, limit: int = 1_000_000, key: str | None = None, **terms: Any) -> Intake:
    return Intake(
        outbox,
        Batches(outbox),
        Mailing.parse(MAILING),
        AnyRecipient(),
        Terms(**terms),
        limit=limit,
        idempotency=Idempotency("test", key) if key else None,
    )


def accept(outbox: Outbox, count: int, **terms: Any) -> str:
    taking = intake(outbox, **terms)
    taking.take([f"p{number}@example.com" for number in range(count)])
    return taking.finish().id


def claim(outbox: Outbox, batch_id: str, number: int = 0, *, token: str = "t", size: int = 10) -> Any:
    return Chunks(outbox).claim(ChunkId(batch_id, number), token, "node", size=size)


def granted(outbox: Outbox, batch_id: str, number: int = 0, *, token: str = "t", size: int = 10) -> ChunkClaim:
    found = claim(outbox, batch_id, number, token=token, size=size)
    assert isinstance(found, ChunkClaim), found
    return found


def settle(outbox: Outbox, claim: ChunkClaim, *outcomes: Any, leave: bool = False) -> None:
    given = [*outcomes, *[outcomes[-1]] * (len(claim.positions) - len(outcomes))]
    results = [Result(at, *outcome) for at, outcome in zip(claim.positions, given, strict=True)]
    Chunks(outbox).settle(claim, "node", results, leave=leave)


def seen(outbox: Outbox, batch_id: str) -> Batch:
    """The batch; its counts add up, and are what its recipients say one by one."""
    batches = Batches(outbox)
    batch = batches.batch(batch_id)
    assert sum(batch.counts.values()) == batch.total
    one_by_one: Counter[State] = Counter()
    cursor = None
    while True:
        page = batches.recipients(batch_id, cursor=cursor, limit=300)
        one_by_one.update(recipient.state for recipient in page.items)
        if (cursor := page.next) is None:
            break
    assert one_by_one == Counter(batch.counts)
    return batch


def keys(outbox: Outbox) -> set[str]:
    return {key.removeprefix(outbox.wire.prefix) for key in outbox.wire.client.scan_iter(f"{outbox.wire.prefix}*")}


class TestIntake:
    def test_a_batch_is_live_when_it_is_finished_and_not_before(self, outbox: Outbox) -> None:
        taking = intake(outbox, course_id="course-7")
        taking.take([f"p{number}@example.com" for number in range(1234)])
        with pytest.raises(UnknownBatch):
            Batches(outbox).batch(taking.id)
        with pytest.raises(UnknownEmail):
            outbox.record(f"{taking.id}-0")
        assert outbox.list(to="p0@example.com").items == []
        assert outbox.sweep(Lane.BULK, 10, "node").due == []
        accepted = taking.finish()
        assert (accepted.total, accepted.duplicates, accepted.state) == (1234, 0, BatchState.QUEUED)
        batch = seen(outbox, taking.id)
        assert batch.counts == {State.QUEUED: 1234}
        assert (batch.course_id, batch.subject, batch.kind) == ("course-7", "News", "custom")
        assert len(outbox.sweep(Lane.BULK, 100, "node").due) == 13

    def test_the_same_person_twice_gets_one_mail(self, outbox: Outbox) -> None:
        taking = intake(outbox)
        taking.take(["ada@example.com", "bob@example.com", "Ada@example.com", "ada@example.com"])
        accepted = taking.finish()
        assert (accepted.total, accepted.duplicates) == (2, 2)

    def test_one_wrong_recipient_and_nothing_is_kept(self, outbox: Outbox) -> None:
        taking = intake(outbox)
        taking.take([f"p{number}@example.com" for number in range(700)])
        taking.take(["fine@example.com", "wrong"])
        with pytest.raises(InvalidEmail) as caught:
            taking.finish()
        assert caught.value.errors[0].field == "recipients.701.to"
        taking.discard()
        assert keys(outbox) == set()

    def test_faults_name_the_line_where_there_are_lines(self, outbox: Outbox) -> None:
        taking = intake(outbox)
        taking.take(["fine@example.com", "wrong"], first_line=2)
        with pytest.raises(InvalidEmail, match="line 3, to: must be"):
            taking.finish()

    def test_twenty_faults_are_enough(self, outbox: Outbox) -> None:
        taking = intake(outbox)
        with pytest.raises(InvalidEmail) as caught:
            taking.take(["wrong"] * 50)
        assert len(caught.value.errors) == 20

    def test_more_than_the_limit(self, outbox: Outbox) -> None:
        taking = intake(outbox, limit=3)
        with pytest.raises(InvalidEmail, match=r"recipients\.3: at most 3"):
            taking.take([f"p{number}@example.com" for number in range(4)])

    def test_redis_fills_up_in_the_middle(self, outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
        taking = intake(outbox)
        taking.take([f"p{number}@example.com" for number in range(500)])
        full = {"used_memory": 95, "maxmemory": 100}
        monkeypatch.setattr(outbox.wire, "info", lambda *_: full)
        monkeypatch.setattr(outbox, "_memory_checked", float("-inf"))
        with pytest.raises(OutboxUnavailable, match="nearly full"):
            taking.take([f"q{number}@example.com" for number in range(500)])
        taking.discard()
        assert keys(outbox) == set()

    def test_no_recipient(self, outbox: Outbox) -> None:
        with pytest.raises(InvalidEmail, match="at least one recipient"):
            intake(outbox).finish()

    def test_a_list_of_one_address_over_and_over_is_a_mistake(self, outbox: Outbox) -> None:
        taking = intake(outbox)
        taking.take(["ada@example.com"] * 10_000)
        with pytest.raises(InvalidEmail, match=r"recipients\.100\.to: this address comes more than 100 times"):
            taking.finish()

    def test_what_was_begun_and_left_is_erased_by_the_sweep(self, make: Callable[..., Outbox]) -> None:
        outbox = make(batch_patience=timedelta(milliseconds=1))
        taking = intake(outbox, key="k")
        taking.take([f"p{number}@example.com" for number in range(1700)])

        def gone() -> bool:
            Batches(outbox).tend()
            return keys(outbox) == set()

        wait_until(gone, what="the halves of a batch to be erased")

    def test_a_request_that_goes_on_is_not_erased(self, outbox: Outbox) -> None:
        taking = intake(outbox)
        taking.take([f"p{number}@example.com" for number in range(600)])
        Batches(outbox).tend()
        assert taking.finish().total == 600

    def test_a_batch_whose_answer_was_lost_is_not_discarded(
        self, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        taking = intake(outbox, key="k")
        taking.take(["ada@example.com"])
        run = outbox.wire.run_in_time

        def lose_the_answer(script: str, *arguments: Any) -> Any:
            reply = run(script, *arguments)
            if script == "batch_flip":
                raise redis.TimeoutError
            return reply

        with monkeypatch.context() as patched:
            patched.setattr(outbox.wire, "run_in_time", lose_the_answer)
            with pytest.raises(OutboxUnavailable) as caught:
                taking.finish()
        assert caught.value.email_id == taking.id
        taking.discard()
        outbox.wire._silent_until = 0.0
        assert seen(outbox, taking.id).counts == {State.QUEUED: 1}
        again = intake(outbox, key="k")
        again.take(["ada@example.com"])
        assert (again.finish().id, again.finish().replayed) == (taking.id, True)

    def test_what_is_given_up_cannot_be_gone_on_with(self, make: Callable[..., Outbox]) -> None:
        outbox = make(batch_patience=timedelta(milliseconds=1))
        taking = intake(outbox)
        taking.take([f"p{number}@example.com" for number in range(700)])
        # The sweep has just begun to erase it.
        wait_until(lambda: len(outbox.wire.run("batch_tend", 1)) > 1, what="the batch to be given up")
        with pytest.raises(OutboxUnavailable):
            taking.finish()
        Batches(outbox).tend()
        assert keys(outbox) == set()

    def test_the_times(self, outbox: Outbox) -> None:
        past = datetime.now(UTC) - timedelta(hours=1)
        for terms in ({"send_at": past}, {"expires_at": past}):
            taking = intake(outbox, **terms)
            taking.take(["ada@example.com"])
            with pytest.raises(InvalidEmail, match=next(iter(terms))):
                taking.finish()
            taking.discard()
        assert keys(outbox) == set()


class TestIdempotency:
    def test_the_same_key_and_batch_is_taken_once(self, outbox: Outbox) -> None:
        answers = []
        for _ in range(2):
            taking = intake(outbox, key="k")
            taking.take(["ada@example.com", "bob@example.com", "bob@example.com"])
            answers.append(taking.finish())
            taking.discard()
        assert answers[0].id == answers[1].id
        assert [answer.replayed for answer in answers] == [False, True]
        assert (answers[1].total, answers[1].duplicates) == (2, 1)
        assert len(Batches(outbox).list().items) == 1

    @pytest.mark.parametrize("others", [["bob@example.com"], ["ada@example.com", "bob@example.com"]])
    def test_the_same_key_and_another_batch_is_refused(self, outbox: Outbox, others: list[str]) -> None:
        first = intake(outbox, key="k")
        first.take(["ada@example.com"])
        first.finish()
        second = intake(outbox, key="k")
        second.take(others)
        with pytest.raises(IdempotencyConflict):
            second.finish()

    def test_the_terms_belong_to_it(self, outbox: Outbox) -> None:
        for on_unknown in ("hold", "resend"):
            taking = intake(outbox, key="k", on_unknown=on_unknown)
            taking.take(["ada@example.com"])
            if on_unknown == "hold":
                taking.finish()
        with pytest.raises(IdempotencyConflict):
            taking.finish()

    def test_a_key_whose_batch_is_still_being_taken_in(self, outbox: Outbox) -> None:
        first = intake(outbox, key="k")
        with pytest.raises(BatchBeingAccepted):
            intake(outbox, key="k")
        first.discard()
        second = intake(outbox, key="k")
        second.take(["ada@example.com"])
        assert not second.finish().replayed


class TestSending:
    def test_ten_at_a_time_to_the_end(self, outbox: Outbox) -> None:
        batch_id = accept(outbox, 25)
        sizes = []
        for turn in range(3):
            found = granted(outbox, batch_id, token=f"t{turn}")
            sizes.append(len(found.positions))
            assert seen(outbox, batch_id).counts[State.SENDING] == sizes[-1]
            settle(outbox, found, SENT)
        assert sizes == [10, 10, 5]
        assert isinstance(claim(outbox, batch_id, token="t3"), ChunkDone)
        batch = seen(outbox, batch_id)
        assert batch.state is BatchState.FINISHED
        assert batch.counts == {State.SENT: 25}
        assert batch.ended
        record = outbox.record(f"{batch_id}-24")
        assert (record.state, record.smtp_code, record.smtp_reply, record.batch) == ("sent", 250, "OK", batch_id)
        assert [change.state for change in record.timeline] == ["queued", "sent"]

    def test_a_call_whose_answer_was_lost_may_be_repeated(self, outbox: Outbox) -> None:
        batch_id = accept(outbox, 25)
        first = granted(outbox, batch_id)
        assert granted(outbox, batch_id).positions == first.positions
        for _ in range(2):
            settle(outbox, first, SENT, REFUSED, GREYLISTED, LOST, SENT)
        counts = seen(outbox, batch_id).counts
        assert counts == {
            State.SENT: 7,
            State.FAILED: 1,
            State.RETRYING: 1,
            State.HELD: 1,
            State.QUEUED: 15,
        }

    def test_one_that_met_a_failure_goes_its_own_way(self, outbox: Outbox) -> None:
        batch_id = accept(outbox, 3)
        settle(outbox, granted(outbox, batch_id), SENT, GREYLISTED, REFUSED)
        assert isinstance(claim(outbox, batch_id, token="t2"), ChunkDone)
        assert seen(outbox, batch_id).state is BatchState.SENDING
        email_id = f"{batch_id}-1"
        due = wait_until(lambda: outbox.sweep(Lane.BULK, 10, "node").due, what="the greylisted one to be due")
        assert [(one.id, one.kind, one.to) for one in due or []] == [(email_id, "custom", "p1@example.com")]
        own = outbox.claim(email_id, "own", "node")
        assert isinstance(own, Claim)
        email = outbox.open(own)
        assert (email.to, email.kind) == ("p1@example.com", "custom")
        outbox.settle(email_id, "own", "sent", code=250, reply="OK")
        batch = seen(outbox, batch_id)
        assert (batch.state, batch.counts) == (BatchState.FINISHED, {State.SENT: 2, State.FAILED: 1})
        assert outbox.record(email_id).attempts == 2
        assert [record.id for record in outbox.list(state=State.FAILED).items] == [f"{batch_id}-2"]
        assert [record.id for record in outbox.list(to="p1@example.com").items] == [email_id]

    def test_a_chunk_has_one_worker(self, outbox: Outbox) -> None:
        batch_id = accept(outbox, 150)
        granted(outbox, batch_id, 0, token="a")
        assert isinstance(claim(outbox, batch_id, 0, token="b"), ChunkWaits)
        assert granted(outbox, batch_id, 1, token="b").positions == list(range(100, 110))

    def test_a_server_that_is_down_uses_up_nothing(self, outbox: Outbox) -> None:
        batch_id = accept(outbox, 12)
        settle(outbox, granted(outbox, batch_id), SENT, DOWN, ("release", {"error": "connection refused"}))
        assert seen(outbox, batch_id).counts == {State.SENT: 1, State.QUEUED: 11}
        assert Batches(outbox).batch(batch_id).limited_by == "kept back: connection refused"
        probe = wait_until(
            lambda: found if isinstance(found := claim(outbox, batch_id, token="p"), ChunkClaim) else None,
            what="the gate to let a probe through",
        )
        assert probe is not None
        assert len(probe.positions) == 1
        settle(outbox, probe, SENT)
        assert len(granted(outbox, batch_id, token="t3").positions) == 10

    def test_busy_slows_the_lane(self, outbox: Outbox) -> None:
        batch_id = accept(outbox, 100)
        settle(outbox, granted(outbox, batch_id), BUSY, ("release", {"error": "421 too many"}))
        found = granted(outbox, batch_id, token="t2")
        assert found.gap == pytest.approx(0.25)
        assert len(found.positions) <= 5
        assert "slowed to 4 mails per second: 421" in (Batches(outbox).batch(batch_id).limited_by or "")

    def test_it_waits_for_its_time(self, outbox: Outbox) -> None:
        batch_id = accept(outbox, 3, send_at=datetime.now(UTC) + timedelta(seconds=1))
        assert seen(outbox, batch_id).counts == {State.SCHEDULED: 3}
        assert isinstance(claim(outbox, batch_id), ChunkWaits)
        assert outbox.sweep(Lane.BULK, 10, "node").due == []
        wait_until(lambda: outbox.sweep(Lane.BULK, 10, "node").due, what="the batch to be due")
        granted(outbox, batch_id)

    def test_it_ends_with_its_time(self, outbox: Outbox) -> None:
        batch_id = accept(outbox, 250, expires_at=datetime.now(UTC) + timedelta(seconds=0.5))
        settle(outbox, granted(outbox, batch_id), SENT, GREYLISTED)

        def ended() -> bool:
            Batches(outbox).tend()
            outbox.sweep(Lane.BULK, 0, "node")
            return seen(outbox, batch_id).ended

        wait_until(ended, what="the batch to expire")
        assert seen(outbox, batch_id).counts == {State.SENT: 1, State.EXPIRED: 249}


class TestCrash:
    """A worker dies with ten mails claimed: three were sent, the fourth was in SMTP, the others were not begun."""

    def crash(self, make: Callable[..., Outbox], **terms: Any) -> tuple[Outbox, str, ChunkClaim]:
        outbox = make(lease=timedelta(milliseconds=300))
        batch_id = accept(outbox, 25, **terms)
        chunks, dead = Chunks(outbox), granted(outbox, batch_id, token="dead")
        before = None
        for position in range(4):
            assert chunks.mark(dead, position, "node", before)
            before = Result(position, *SENT)

        def next_worker() -> ChunkClaim | None:
            found = claim(outbox, batch_id, token="heir")
            return found if isinstance(found, ChunkClaim) else None

        heir = wait_until(next_worker, what="the lease of the dead worker to run out")
        assert heir is not None
        assert heir.positions == list(range(4, 14))
        assert not chunks.mark(dead, 4, "node", before)
        settle(outbox, heir, SENT)
        return outbox, batch_id, dead

    def test_the_one_in_smtp_is_held_by_name(self, make: Callable[..., Outbox]) -> None:
        outbox, batch_id, _ = self.crash(make)
        assert seen(outbox, batch_id).counts == {State.HELD: 1, State.SENT: 13, State.QUEUED: 11}
        missed = Batches(outbox).recipients(batch_id, missed=True)
        assert [one.to for one in missed.items] == ["p3@example.com"]
        assert "nobody can tell" in (missed.items[0].error or "")
        assert outbox.record(f"{batch_id}-2").smtp_reply == "OK"

    def test_or_sent_again_and_reported_where_that_was_asked_for(self, make: Callable[..., Outbox]) -> None:
        outbox, batch_id, _ = self.crash(make, on_unknown="resend")
        assert seen(outbox, batch_id).counts == {State.RETRYING: 1, State.SENT: 13, State.QUEUED: 11}
        record = outbox.record(f"{batch_id}-3")
        assert record.possible_duplicate
        assert isinstance(outbox.claim(record.id, "own", "node"), Claim)

    def test_a_worker_that_comes_back_late_is_believed(self, make: Callable[..., Outbox]) -> None:
        outbox, batch_id, dead = self.crash(make)
        settle(outbox, dead, SENT, SENT, SENT, SENT, ("release", {"error": "frozen"}))
        assert seen(outbox, batch_id).counts == {State.SENT: 14, State.QUEUED: 11}
        assert outbox.record(f"{batch_id}-3").timeline[-1].note == (
            "recorded late, by a worker that had lost its lease"
        )

    def test_a_death_counts_once_and_is_not_forgotten(self, make: Callable[..., Outbox]) -> None:
        outbox = make(lease=timedelta(milliseconds=300))
        batch_id = accept(outbox, 1, on_unknown="resend")
        settle(outbox, granted(outbox, batch_id), ("retry", {**GREYLISTED[1], "delay": 0}))
        email_id = f"{batch_id}-0"
        assert isinstance(outbox.claim(email_id, "first", "node"), Claim)
        outbox.settle(email_id, "first", "release", error="connection refused")
        assert isinstance(outbox.claim(email_id, "dead", "node"), Claim)
        gate = outbox.wire.key("gate", "smtp")
        outbox.wire.client.hset(gate, mapping={"step": 1, "next": 1 << 50, "reason": "down"})

        def noticed() -> bool:
            outbox.claim(email_id, "heir", "node")
            return outbox.record(email_id).state is State.RETRYING

        wait_until(noticed, what="the lease of the dead worker to run out")
        for turn in range(3):
            assert isinstance(outbox.claim(email_id, f"t{turn}", "node"), Waits)
        assert seen(outbox, batch_id).counts == {State.RETRYING: 1}
        outbox.wire.client.delete(gate)
        assert isinstance(outbox.claim(email_id, "last", "node"), Claim)
        # The same fault as before takes its own line back from the timeline, and no other.
        outbox.settle(email_id, "last", "release", error="connection refused")
        record = outbox.record(email_id)
        assert record.possible_duplicate
        assert record.timeline[-1].note == "possible duplicate: the worker before died while sending"

    def test_in_a_cancelled_batch_it_is_cancelled_with_its_doubt(self, make: Callable[..., Outbox]) -> None:
        outbox = make(lease=timedelta(milliseconds=300))
        batch_id = accept(outbox, 3, on_unknown="resend")
        Chunks(outbox).mark(granted(outbox, batch_id, token="dead"), 0, "node", None)
        Batches(outbox).cancel(batch_id)
        wait_until(lambda: isinstance(claim(outbox, batch_id, token="heir"), ChunkDone), what="the lease to run out")
        batch = seen(outbox, batch_id)
        assert (batch.counts, batch.ended) == ({State.CANCELLED: 3}, True)
        assert outbox.record(f"{batch_id}-0").possible_duplicate
        assert not outbox.record(f"{batch_id}-1").possible_duplicate

    @pytest.mark.parametrize("late", [("release", {"error": "frozen"}), REFUSED, GREYLISTED, LOST])
    def test_a_worker_that_comes_back_late_takes_nothing_out_of_the_next_ones_hands(
        self, make: Callable[..., Outbox], late: Any
    ) -> None:
        outbox = make(lease=timedelta(milliseconds=300))
        batch_id = accept(outbox, 25)
        frozen = granted(outbox, batch_id, token="frozen")

        def next_worker(token: str) -> ChunkClaim:
            found = wait_until(
                lambda: one if isinstance(one := claim(outbox, batch_id, token=token), ChunkClaim) else None,
                what="the lease before to run out",
            )
            assert found is not None
            return found

        heir = next_worker("heir")
        assert heir.positions == frozen.positions
        assert Chunks(outbox).mark(heir, 0, "node", None)
        settle(outbox, frozen, late)
        assert seen(outbox, batch_id).counts == {State.SENDING: 10, State.QUEUED: 15}
        # And the mail that the heir has in SMTP is in doubt when it dies.
        assert next_worker("third").positions == list(range(1, 11))
        assert seen(outbox, batch_id).counts == {State.HELD: 1, State.SENDING: 10, State.QUEUED: 14}

    def test_a_repeated_settlement_takes_nothing_out_of_the_next_ones_hands(self, outbox: Outbox) -> None:
        batch_id = accept(outbox, 10)
        first = granted(outbox, batch_id, token="first")
        settle(outbox, first, SENT, BUSY)
        outbox.wire.client.delete(outbox.wire.key("pace", "bulk"))
        assert granted(outbox, batch_id, token="second").positions == list(range(1, 10))
        settle(outbox, first, SENT, BUSY)  # because its answer was lost
        assert seen(outbox, batch_id).counts == {State.SENT: 1, State.SENDING: 9}

    def test_one_that_died_before_its_first_mail_leaves_nothing_in_doubt(self, make: Callable[..., Outbox]) -> None:
        outbox = make(lease=timedelta(milliseconds=300))
        batch_id = accept(outbox, 25)
        granted(outbox, batch_id, token="dead")
        heir = wait_until(
            lambda: found if isinstance(found := claim(outbox, batch_id, token="heir"), ChunkClaim) else None,
            what="the lease of the dead worker to run out",
        )
        assert heir is not None
        assert heir.positions == list(range(10))

    def test_a_retry_whose_worker_dies_is_held_too(self, make: Callable[..., Outbox]) -> None:
        outbox = make(lease=timedelta(milliseconds=300))
        batch_id = accept(outbox, 1)
        settle(outbox, granted(outbox, batch_id), GREYLISTED)
        email_id = f"{batch_id}-0"

        def own() -> Claim | None:
            found = outbox.claim(email_id, "dead", "node")
            return found if isinstance(found, Claim) else None

        wait_until(own, what="the second attempt")
        wait_until(lambda: outbox.claim(email_id, "heir", "node") == State.HELD, what="the mail to be held")
        assert seen(outbox, batch_id).state is BatchState.FINISHED


class TestSteering:
    def test_pause_and_resume(self, outbox: Outbox) -> None:
        batches, batch_id = Batches(outbox), accept(outbox, 150)
        settle(outbox, granted(outbox, batch_id), SENT, GREYLISTED)
        for _ in range(2):
            assert batches.pause(batch_id).state is BatchState.PAUSED
        assert isinstance(claim(outbox, batch_id, 1, token="t2"), ChunkWaits)
        assert isinstance(outbox.claim(f"{batch_id}-1", "own", "node"), Waits)
        assert outbox.sweep(Lane.BULK, 100, "node").due == []
        assert batches.batch(batch_id).limited_by == "paused by hand"
        for _ in range(2):
            assert batches.resume(batch_id).state is BatchState.SENDING
        ids = {one.id for one in outbox.sweep(Lane.BULK, 100, "node").due}
        assert f"{batch_id}:1" in ids
        assert seen(outbox, batch_id).counts == {State.SENT: 1, State.RETRYING: 9, State.QUEUED: 140}

    def test_a_pause_lets_what_is_in_hand_end(self, outbox: Outbox) -> None:
        batches, batch_id = Batches(outbox), accept(outbox, 5)
        found = granted(outbox, batch_id)
        batches.pause(batch_id)
        settle(outbox, found, SENT)
        assert seen(outbox, batch_id).state is BatchState.FINISHED

    def test_cancel(self, outbox: Outbox) -> None:
        batches, batch_id = Batches(outbox), accept(outbox, 5_050)
        settle(outbox, granted(outbox, batch_id), SENT, GREYLISTED, REFUSED)
        in_hand = granted(outbox, batch_id, 3, token="t2")
        for _ in range(2):
            assert batches.cancel(batch_id).state is BatchState.CANCELLED
        batch = seen(outbox, batch_id)
        assert batch.counts == {State.SENT: 1, State.FAILED: 8, State.SENDING: 10, State.CANCELLED: 5_031}
        assert not batch.ended
        settle(outbox, in_hand, SENT, GREYLISTED, DOWN)
        batch = seen(outbox, batch_id)
        assert batch.counts == {State.SENT: 2, State.FAILED: 8, State.CANCELLED: 5_040}
        assert batch.ended
        assert batch.state is BatchState.CANCELLED
        assert isinstance(claim(outbox, batch_id, 7, token="t3"), ChunkDone)

    def test_a_walk_comes_to_the_end_of_a_long_batch(self, outbox: Outbox) -> None:
        batches, batch_id = Batches(outbox), accept(outbox, 120_500)
        settle(outbox, granted(outbox, batch_id, 1_204), REFUSED, LOST)
        assert batches.batch(batch_id).counts == {State.FAILED: 1, State.HELD: 9, State.QUEUED: 120_490}
        assert batches.drop_held(batch_id).counts == {State.FAILED: 10, State.QUEUED: 120_490}
        assert batches.retry_failed(batch_id).counts == {State.QUEUED: 120_500}
        assert batches.cancel(batch_id).counts == {State.CANCELLED: 120_500}
        assert batches.batch(batch_id).ended

    def test_a_cancel_that_broke_off_is_finished_by_the_sweep(self, outbox: Outbox) -> None:
        batches, batch_id = Batches(outbox), accept(outbox, 5_050)
        outbox.wire.run("batch_steer", batch_id, "cancel")
        batches.tend()
        assert seen(outbox, batch_id).counts == {State.CANCELLED: 5_050}
        assert batches.batch(batch_id).ended

    def test_a_chunk_of_a_cancel_that_broke_off(self, outbox: Outbox) -> None:
        batch_id = accept(outbox, 150)
        outbox.wire.run("batch_steer", batch_id, "cancel")
        assert isinstance(claim(outbox, batch_id, 1), ChunkDone)
        assert seen(outbox, batch_id).counts == {State.CANCELLED: 50, State.QUEUED: 100}

    def test_a_recipient_of_a_batch_that_is_none_yet(self, outbox: Outbox) -> None:
        half = intake(outbox)
        half.take([f"p{number}@example.com" for number in range(600)])
        with pytest.raises(UnknownEmail):
            outbox.cancel(f"{half.id}-3")
        assert half.finish().total == 600

    def test_an_old_batch_that_is_half_erased_is_not_revived(self, make: Callable[..., Outbox]) -> None:
        outbox = make(retention=timedelta(0))
        batches, batch_id = Batches(outbox), accept(outbox, 2_500)
        settle(outbox, granted(outbox, batch_id), REFUSED)
        batches.cancel(batch_id)
        wait_until(batches.clean, what="the batch to be old")
        for steer in (batches.retry_failed, batches.drop_held, batches.resume):
            with pytest.raises(UnknownBatch):
                steer(batch_id)
        wait_until(lambda: not batches.clean(), what="the rest of it to be removed")
        assert not [key for key in keys(outbox) if batch_id in key]
        assert not any(outbox.measure().emails().values())

    def test_retry_failed(self, outbox: Outbox) -> None:
        batches, batch_id = Batches(outbox), accept(outbox, 3)
        settle(outbox, granted(outbox, batch_id), SENT, REFUSED)
        assert seen(outbox, batch_id).state is BatchState.FINISHED
        batch = batches.retry_failed(batch_id)
        assert (batch.state, batch.counts) == (BatchState.SENDING, {State.SENT: 1, State.QUEUED: 2})
        assert batches.retry_failed(batch_id).counts == batch.counts
        assert isinstance(claim(outbox, batch_id, token="t2"), ChunkDone)
        for at in (1, 2):
            assert isinstance(outbox.claim(f"{batch_id}-{at}", "own", "node"), Claim)
            outbox.settle(f"{batch_id}-{at}", "own", "sent", code=250)
        assert seen(outbox, batch_id).counts == {State.SENT: 3}

    def test_what_is_held_is_released_or_dropped(self, outbox: Outbox) -> None:
        batches, batch_id = Batches(outbox), accept(outbox, 2)
        settle(outbox, granted(outbox, batch_id), LOST)
        assert seen(outbox, batch_id).counts == {State.HELD: 2}
        assert batches.release_held(batch_id).counts == {State.QUEUED: 2}
        record = outbox.record(f"{batch_id}-0")
        assert record.possible_duplicate
        assert record.timeline[-1].note == "possible duplicate: sent again by hand"
        assert isinstance(outbox.claim(f"{batch_id}-0", "own", "node"), Claim)
        outbox.settle(f"{batch_id}-0", "own", *LOST[:1], **LOST[1])
        assert batches.drop_held(batch_id).counts == {State.FAILED: 1, State.QUEUED: 1}
        assert "dropped by hand" in (outbox.record(f"{batch_id}-0").error or "")
        batches.retry_failed(batch_id)
        assert outbox.record(f"{batch_id}-0").timeline[-1].note == "possible duplicate: sent again by hand"

    @pytest.mark.parametrize("verb", ["pause", "resume", "cancel"])
    def test_not_when_it_has_finished(self, outbox: Outbox, verb: str) -> None:
        batches, batch_id = Batches(outbox), accept(outbox, 1)
        settle(outbox, granted(outbox, batch_id), SENT)
        with pytest.raises(WrongState, match="a batch that is finished cannot be"):
            getattr(batches, verb)(batch_id)

    @pytest.mark.parametrize("verb", ["pause", "resume", "retry_failed", "release_held"])
    def test_not_when_it_was_cancelled(self, outbox: Outbox, verb: str) -> None:
        batches, batch_id = Batches(outbox), accept(outbox, 1)
        batches.cancel(batch_id)
        with pytest.raises(WrongState, match="a batch that is cancelled"):
            getattr(batches, verb)(batch_id)

    @pytest.mark.parametrize("verb", ["pause", "resume", "cancel", "retry_failed", "release_held", "drop_held"])
    def test_not_what_is_not_there(self, outbox: Outbox, verb: str) -> None:
        half = intake(outbox)
        for batch_id in ("batch-0123", half.id):
            with pytest.raises(UnknownBatch):
                getattr(Batches(outbox), verb)(batch_id)

    def test_one_recipient_by_hand(self, outbox: Outbox) -> None:
        batch_id = accept(outbox, 2)
        assert outbox.cancel(f"{batch_id}-1").state is State.CANCELLED
        with pytest.raises(WrongState, match="queued"):
            outbox.retry(f"{batch_id}-0")
        assert granted(outbox, batch_id).positions == [0]
        with pytest.raises(WrongState, match="sending"):
            outbox.cancel(f"{batch_id}-0")


class TestLimits:
    def test_mails_per_second_over_all_workers(self, make: Callable[..., Outbox]) -> None:
        workers = [make(max_per_second=50) for _ in range(3)]
        batch_id = accept(workers[0], 1000)
        began = time.monotonic()
        found, starts = [], []
        for at, outbox in enumerate(workers * 3):
            one = claim(outbox, batch_id, at, token=f"t{at}")
            if isinstance(one, ChunkClaim):
                first = time.monotonic() - began + one.delay
                found.append(one)
                starts += [first + number * one.gap for number in range(len(one.positions))]
        # One second ahead is handed out, at 95 % of the limit: the rest is for the other lanes.
        most = 47.5 * (1 + time.monotonic() - began) + 2
        assert 46 <= len(starts) <= most
        assert max(starts) <= 1.2 + time.monotonic() - began
        assert found[0].gap == pytest.approx(1 / 47.5, abs=0.002)

    def test_a_critical_mail_does_not_wait_for_a_batch(self, make: Callable[..., Outbox]) -> None:
        outbox = make(max_per_second=2)
        batch_id = accept(outbox, 200)
        granted(outbox, batch_id)
        for lane in (PasswordResetEmail.sample(), WelcomeEmail.sample()):
            found = outbox.claim(outbox.accept(lane).id, "t", "node")
            assert isinstance(found, Claim)
            assert found.delay < 0.6
        waits = claim(outbox, batch_id, 1, token="t2")
        assert isinstance(waits, ChunkWaits)
        assert waits.slot

    def test_mails_per_day(self, make: Callable[..., Outbox]) -> None:
        outbox = make(max_per_day=20)
        batch_id = accept(outbox, 100)
        sent = 0
        for turn in range(4):
            found = claim(outbox, batch_id, token=f"t{turn}")
            if isinstance(found, ChunkClaim):
                sent += len(found.positions)
                settle(outbox, found, SENT)
        assert sent == 19
        assert Batches(outbox).batch(batch_id).limited_by == "SMTP_MAX_PER_DAY"
        assert outbox.sweep(Lane.BULK, 10, "node").held
        # The share that is kept for the others.
        assert isinstance(outbox.claim(outbox.accept(PasswordResetEmail.sample()).id, "t", "node"), Claim)
        assert isinstance(outbox.claim(outbox.accept(WelcomeEmail.sample()).id, "t", "node"), Waits)

    def test_a_mail_that_was_not_tried_does_not_count_for_the_day(self, make: Callable[..., Outbox]) -> None:
        outbox = make(max_per_day=10)
        batch_id = accept(outbox, 100)
        for turn in range(3):
            found = granted(outbox, batch_id, token=f"t{turn}")
            assert len(found.positions) == 9
            settle(outbox, found, ("release", {"error": "frozen"}))

    def test_connections_over_all_workers(self, make: Callable[..., Outbox]) -> None:
        outbox = make(max_connections=3)
        batch_id = accept(outbox, 500)
        chunks = Chunks(outbox)
        found = [chunks.claim(ChunkId(batch_id, at), f"t{at}", "node", permit=f"p{at}") for at in range(4)]
        # One is left for the other lanes.
        assert [type(one) for one in found] == [ChunkClaim, ChunkClaim, ChunkWaits, ChunkWaits]
        reset = outbox.accept(PasswordResetEmail.sample()).id
        assert isinstance(outbox.claim(reset, "t", "node", "p-reset"), Claim)
        welcome = outbox.accept(WelcomeEmail.sample()).id
        assert isinstance(outbox.claim(welcome, "t", "node", "p-welcome"), Waits)
        outbox.release(["p-reset"])
        assert isinstance(outbox.claim(welcome, "t", "node", "p-welcome"), Claim)

    def test_where_there_is_but_one_connection_a_batch_makes_way(self, make: Callable[..., Outbox]) -> None:
        outbox = make(max_connections=1)
        batch_id = accept(outbox, 100)
        chunks, chunk = Chunks(outbox), ChunkId(batch_id, 0)
        first = chunks.claim(chunk, "t1", "node", permit="p")
        assert isinstance(first, ChunkClaim)
        reset = outbox.accept(PasswordResetEmail.sample()).id
        assert isinstance(outbox.claim(reset, "t", "node", "p-reset"), Waits)
        settle(outbox, first, SENT)
        again = chunks.claim(chunk, "t2", "node", permit="p")
        assert isinstance(again, ChunkWaits)
        assert again.full
        assert isinstance(outbox.claim(reset, "t", "node", "p-reset"), Claim)


class TestFairness:
    def test_a_small_batch_does_not_wait_behind_a_large_one(self, outbox: Outbox) -> None:
        large, small = accept(outbox, 5_000), accept(outbox, 50)
        due = [one.id.partition(":")[0] for one in outbox.sweep(Lane.BULK, 10, "node").due]
        assert Counter(due) == {large: 9, small: 1}

    def test_what_nobody_took_up_comes_again(self, make: Callable[..., Outbox]) -> None:
        outbox = make(first_look=timedelta(milliseconds=200))
        accept(outbox, 250)
        assert len(outbox.sweep(Lane.BULK, 10, "node").due) == 3
        assert outbox.sweep(Lane.BULK, 10, "node").due == []
        wait_until(lambda: len(outbox.sweep(Lane.BULK, 10, "node").due) == 3, what="lost wake-ups to come again")


class TestSeeing:
    def test_pages_of_recipients(self, outbox: Outbox) -> None:
        batches, batch_id = Batches(outbox), accept(outbox, 250)
        settle(outbox, granted(outbox, batch_id, 1), REFUSED, SENT)
        found, cursor = [], None
        while True:
            page = batches.recipients(batch_id, state=State.QUEUED, cursor=cursor, limit=64)
            found += [one.position for one in page.items]
            if (cursor := page.next) is None:
                break
        assert found == [*range(100), *range(110, 250)]
        assert [one.position for one in batches.recipients(batch_id, state=State.FAILED).items] == [100]
        with pytest.raises(InvalidEmail, match="cursor"):
            batches.recipients(batch_id, cursor="nonsense!")

    def test_a_mark_is_no_news_before_it_is_settled(self, outbox: Outbox) -> None:
        batches, batch_id = Batches(outbox), accept(outbox, 10)
        found = granted(outbox, batch_id)
        Chunks(outbox).mark(found, 1, "node", Result(0, *SENT))
        first = batches.recipients(batch_id, state=State.SENDING).items[0]
        assert (first.state, first.sent_at, first.smtp_code) == (State.SENDING, None, None)

    def test_the_list_is_newest_first(self, outbox: Outbox) -> None:
        ids = [accept(outbox, 1) for _ in range(5)]
        batches = Batches(outbox)
        first = batches.list(limit=3)
        second = batches.list(limit=3, cursor=first.next)
        assert {batch.id for batch in (*first.items, *second.items)} == set(ids)
        assert second.next is None

    def test_pace_and_time_left(self, outbox: Outbox) -> None:
        batch_id = accept(outbox, 100)
        for turn in range(5):
            settle(outbox, granted(outbox, batch_id, token=f"t{turn}"), SENT)
        batch = seen(outbox, batch_id)
        assert batch.per_second > 10
        assert batch.seconds_left == pytest.approx(50 / batch.per_second, rel=0.1)
        assert "no worker node" in (batch.limited_by or "")

    def test_the_version_grows_with_every_change(self, outbox: Outbox) -> None:
        batches, batch_id = Batches(outbox), accept(outbox, 20)
        versions = [batches.batch(batch_id).version]
        found = granted(outbox, batch_id)
        versions.append(batches.batch(batch_id).version)
        settle(outbox, found, SENT, REFUSED)
        versions.append(batches.batch(batch_id).version)
        batches.pause(batch_id)
        versions.append(batches.batch(batch_id).version)
        assert versions == sorted(set(versions))

    def test_old_ones_are_removed_with_all_that_belongs_to_them(self, make: Callable[..., Outbox]) -> None:
        outbox = make(retention=timedelta(0))
        batches, batch_id = Batches(outbox), accept(outbox, 250)
        settle(outbox, granted(outbox, batch_id), SENT, REFUSED)
        assert not batches.clean()
        batches.cancel(batch_id)
        wait_until(lambda: not batches.clean(), what="the batch to be removed")
        left = {key.partition(":")[0] for key in keys(outbox)}
        assert left <= {"lane", "slots", "nodes", "meter", "verdicts", "counts"}
        assert not any(outbox.measure().emails().values())


def test_memory_per_waiting_recipient(outbox: Outbox) -> None:
    """TARGETS S11: at most 400 bytes, index included."""
    client: redis.Redis = outbox.wire.client
    accept(outbox, 10)
    before = client.info("memory")["used_memory_dataset"]
    taking = intake(outbox)
    taking.take([f"ada.lovelace.{number}@students.example.com" for number in range(20_000)])
    taking.finish()
    assert (client.info("memory")["used_memory_dataset"] - before) / 20_000 <= 400

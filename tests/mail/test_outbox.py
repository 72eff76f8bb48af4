"""The outbox's scripts on a real Valkey: each atomic, each safe to run twice."""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from cryptography.fernet import Fernet

from mail.answers import Claim, Idempotency, Numbers, Waits
from mail.errors import (
    IdempotencyConflict,
    InvalidEmail,
    OutboxUnavailable,
    RecipientLimited,
    UnknownEmail,
    WrongState,
)
from mail.findings import nearly_full, refuse_unfit
from mail.kinds import CertificateEmail, CustomEmail, Lane, PasswordResetEmail, WelcomeEmail
from mail.outbox import Outbox
from mail.records import State
from mail.vault import SecretLost, Vault
from support.processes import ShiftedValkey, Valkey, wait_until

LEASE = 0.4
TOKEN = "s3cr3t-t0ken-of-a-reset"

_count = iter(range(10**6))


@pytest.fixture
def client(valkey: Valkey) -> Iterator["redis.Redis"]:
    with valkey.client() as connection:
        yield connection


@pytest.fixture
def make(client: "redis.Redis") -> Callable[..., Outbox]:
    prefix = f"outbox-{next(_count)}:"
    keys = [Fernet.generate_key().decode()]

    def build(**numbers: Any) -> Outbox:
        chosen = {"lease": timedelta(seconds=LEASE), "death_pause": timedelta(seconds=0.2), **numbers}
        return Outbox(client, prefix=prefix, vault=Vault(keys), numbers=Numbers(**chosen))

    return build


@pytest.fixture
def outbox(make: Callable[..., Outbox]) -> Outbox:
    return make()


def reset(to: str = "ada@example.com") -> PasswordResetEmail:
    return PasswordResetEmail(to=to, name="Ada", reset_url=f"https://lms.example.com/reset?token={TOKEN}")


def claimed(outbox: Outbox, email_id: str, token: str = "t1") -> Claim:
    claim = outbox.claim(email_id, token, "node")
    assert isinstance(claim, Claim), claim
    return claim


def claim_when_free(outbox: Outbox, email_id: str, token: str) -> None:
    wait_until(lambda: isinstance(outbox.claim(email_id, token, "node"), Claim), timeout=10, what="the claim")


def stay_in_touch(outbox: Outbox, seconds: float) -> None:
    """A process that sees Redis all the time, as a worker node with its sweep does."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        outbox.renew({})
        time.sleep(LEASE / 20)


def let_lease_run_out(outbox: Outbox) -> None:
    stay_in_touch(outbox, LEASE * 1.2)

    def may() -> bool:
        outbox.renew({})
        return outbox.lapsed_until() > 0

    # On a busy machine this process stands still for longer than a worker may without losing touch.
    wait_until(may, timeout=20, what="a lease's length without a gap")


def states(outbox: Outbox, email_id: str) -> list[str]:
    return [change.state for change in outbox.record(email_id).timeline]


def in_(**period: float) -> datetime:
    return datetime.now(UTC) + timedelta(**period)


class TestAccept:
    def test_keeps_the_email_and_makes_it_due(self, outbox: Outbox) -> None:
        accepted = outbox.accept(WelcomeEmail.sample())
        record = outbox.record(accepted.id)
        assert (record.state, record.kind, record.to) == (State.QUEUED, "welcome", "ada@example.com")
        assert record.fields == {"name": "Ada Lovelace"}
        assert states(outbox, accepted.id) == ["queued"]
        assert claimed(outbox, accepted.id).kind == "welcome"

    def test_twice_with_one_id_is_once(self, outbox: Outbox) -> None:
        first = outbox.accept(WelcomeEmail.sample(), email_id="one")
        assert outbox.accept(WelcomeEmail.sample(), email_id="one") == first
        assert len(outbox.list().items) == 1
        assert states(outbox, "one") == ["queued"]

    def test_secret_is_nowhere_in_clear(self, outbox: Outbox, client: "redis.Redis") -> None:
        email_id = outbox.accept(reset()).id
        stored = client.hgetall(f"{outbox._wire.prefix}email:{email_id}")
        assert "secret" in stored
        assert TOKEN not in str(stored)
        assert TOKEN not in repr(outbox.record(email_id))
        assert outbox.open(claimed(outbox, email_id)) == reset()

    def test_a_lost_key_is_an_error_of_its_own(self, outbox: Outbox, client: "redis.Redis") -> None:
        email_id = outbox.accept(reset()).id
        other = Outbox(client, prefix=outbox._wire.prefix, vault=Vault([Fernet.generate_key().decode()]))
        with pytest.raises(SecretLost):
            other.open(claimed(other, email_id))

    def test_a_rotated_key_still_opens(self, client: "redis.Redis") -> None:
        old, new = Fernet.generate_key().decode(), Fernet.generate_key().decode()
        before = Outbox(client, prefix="rotated:", vault=Vault([old]))
        email_id = before.accept(reset("rotated@example.com")).id
        after = Outbox(client, prefix="rotated:", vault=Vault([new, old]))
        assert after.open(claimed(after, email_id)) == reset("rotated@example.com")

    def test_idempotency_key(self, outbox: Outbox) -> None:
        key = Idempotency("caller", "k1")
        first = outbox.accept(WelcomeEmail.sample(), idempotency=key)
        again = outbox.accept(WelcomeEmail.sample(), idempotency=key)
        assert (again.id, again.state, again.replayed) == (first.id, first.state, True)
        with pytest.raises(IdempotencyConflict):
            outbox.accept(CertificateEmail.sample(), idempotency=key)
        with pytest.raises(IdempotencyConflict):
            outbox.accept(WelcomeEmail.sample(), idempotency=key, send_at=in_(hours=1))
        assert outbox.accept(WelcomeEmail.sample(), idempotency=Idempotency("other", "k1")).id != first.id

    def test_idempotency_comes_before_the_limit(self, make: Callable[..., Outbox]) -> None:
        outbox = make(recipient_hourly_limit=1)
        key = Idempotency("caller", "k")
        first = outbox.accept(reset(), idempotency=key)
        assert outbox.accept(reset(), idempotency=key).id == first.id
        with pytest.raises(RecipientLimited) as caught:
            outbox.accept(reset())
        assert 3590 <= caught.value.retry_after <= 3600

    def test_limit_is_per_kind_and_person_whatever_the_case(self, make: Callable[..., Outbox]) -> None:
        outbox = make(recipient_hourly_limit=2)
        outbox.accept(reset("ada@example.com"))
        outbox.accept(reset("ADA@example.com"))
        with pytest.raises(RecipientLimited):
            outbox.accept(reset("Ada@Example.com"))
        with pytest.raises(RecipientLimited):
            outbox.admit(reset())
        outbox.accept(reset("bob@example.com"))
        for _ in range(5):
            outbox.accept(WelcomeEmail.sample())

    def test_no_mailbox_is_bombed_by_spelling_its_address_in_other_ways(self, make: Callable[..., Outbox]) -> None:
        outbox = make(recipient_hourly_limit=2)
        outbox.accept(reset("ada.lovelace@gmail.com"))
        outbox.admit(reset("adalovelace+1@gmail.com"))
        for again in (outbox.accept, outbox.admit):
            with pytest.raises(RecipientLimited):
                again(reset("Ada.Love.Lace+2@googlemail.com"))
        # A limit may be shared by mistake; a newer mail must not take the place of another person's.
        assert outbox.accept(reset("x+1@example.com")).id
        first = outbox.accept(reset("x+2@example.com"))
        assert {one.state for one in outbox.list(to="x+1@example.com").items} == {State.QUEUED}
        assert [one.id for one in outbox.list(to="x+2@example.com").items] == [first.id]

    def test_limit_of_mails_past_the_outbox(self, make: Callable[..., Outbox]) -> None:
        outbox = make(recipient_hourly_limit=2)
        outbox.admit(reset())
        outbox.accept(reset())
        with pytest.raises(RecipientLimited):
            outbox.admit(reset())
        for _ in range(5):
            outbox.admit(WelcomeEmail.sample())

    @pytest.mark.parametrize(
        ("times", "field"),
        [
            ({"send_at": in_(seconds=-5)}, "send_at"),
            ({"expires_at": in_(seconds=-5)}, "expires_at"),
            ({"send_at": in_(hours=3), "expires_at": in_(hours=2)}, "expires_at"),
            ({"send_at": in_(hours=2)}, "send_at"),  # the link of a reset ends after one hour
        ],
    )
    def test_times_out_of_order(self, outbox: Outbox, times: dict[str, datetime], field: str) -> None:
        with pytest.raises(InvalidEmail) as caught:
            outbox.accept(reset(), **times)
        assert [error.field for error in caught.value.errors] == [field]
        assert outbox.list().items == []

    def test_a_call_that_runs_late_does_nothing(self, make: Callable[..., Outbox]) -> None:
        outbox = make(answer_within=timedelta(milliseconds=-1))
        with pytest.raises(OutboxUnavailable):
            outbox.accept(WelcomeEmail.sample())
        assert outbox.list().items == []

    def test_stops_when_memory_is_nearly_full(self, tmp_path: Any) -> None:
        with Valkey(tmp_path, maxmemory="16mb") as small, small.client() as client:
            outbox = Outbox(client, prefix="m:", vault=Vault([Fernet.generate_key().decode()]))
            email_id = outbox.accept(WelcomeEmail.sample()).id
            while not nearly_full(client.info("memory")):
                client.append("ballast", "x" * 100_000)
            outbox._memory_checked = float("-inf")
            with pytest.raises(OutboxUnavailable, match="nearly full"):
                outbox.accept(WelcomeEmail.sample())
            with pytest.raises(redis.ResponseError):
                all(client.append("ballast", "x" * 100_000) for _ in range(1_000))
            # Delivering goes on, even over the limit and with no script loaded.
            client.script_flush()
            claimed(outbox, email_id)
            assert outbox.settle(email_id, "t1", "sent", code=250).state == State.SENT


class TestLostAnswer:
    """The wire is a fake here: no real Redis can be made to lose exactly one answer."""

    @pytest.fixture
    def lossy(self, outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
        """`lossy(True)`: the next script runs but its answer is lost; the repeat is refused if asked for."""
        real = outbox._wire._call

        def arm(refuse: bool) -> None:
            calls = iter(("lose", "refuse" if refuse else "answer"))

            def call(script: Any, values: Any) -> Any:
                match next(calls, "answer"):
                    case "lose":
                        real(script, values)
                        raise redis.ConnectionError("Connection reset by peer")
                    case "refuse":
                        raise redis.ConnectionError("Error 111") from ConnectionRefusedError()
                return real(script, values)

            monkeypatch.setattr(outbox._wire, "_call", call)

        return arm

    def test_the_repeat_gets_it(self, outbox: Outbox, lossy: Callable[[bool], None]) -> None:
        outbox.renew({})
        lossy(False)
        accepted = outbox.accept(WelcomeEmail.sample())
        assert [record.id for record in outbox.list().items] == [accepted.id]

    def test_a_refused_repeat_leaves_it_in_doubt(self, outbox: Outbox, lossy: Callable[[bool], None]) -> None:
        outbox.renew({})
        lossy(True)
        with pytest.raises(OutboxUnavailable) as caught:
            outbox.accept(WelcomeEmail.sample())
        assert caught.value.email_id is not None
        assert outbox.record(caught.value.email_id).state == State.QUEUED

    def test_a_late_repeat_knows_what_was_taken(self, make: Callable[..., Outbox]) -> None:
        first = make().accept(WelcomeEmail.sample(), email_id="one")
        late = make(answer_within=timedelta(milliseconds=-1))
        assert late.accept(WelcomeEmail.sample(), email_id="one") == first


class TestSupersede:
    def test_a_newer_reset_replaces_one_that_waits(self, outbox: Outbox, client: "redis.Redis") -> None:
        older, newer = outbox.accept(reset()).id, outbox.accept(reset()).id
        record = outbox.record(older)
        assert record.state == State.CANCELLED
        assert "superseded" in (record.error or "")
        assert not client.hexists(f"{outbox._wire.prefix}email:{older}", "secret")
        assert outbox.record(newer).state == State.QUEUED

    def test_not_for_another_person_nor_another_kind(self, outbox: Outbox) -> None:
        mine = outbox.accept(reset()).id
        outbox.accept(reset("bob@example.com"))
        outbox.accept(WelcomeEmail.sample())
        assert outbox.record(mine).state == State.QUEUED

    def test_a_future_one_replaces_nothing(self, outbox: Outbox) -> None:
        waiting = outbox.accept(reset()).id
        outbox.accept(reset(), send_at=in_(minutes=5))
        assert outbox.record(waiting).state == State.QUEUED

    def test_one_in_flight_is_not_retried(self, outbox: Outbox) -> None:
        older = outbox.accept(reset()).id
        claimed(outbox, older)
        outbox.accept(reset())
        assert outbox.record(older).state == State.SENDING
        outbox.settle(older, "t1", "retry", error="451", delay=10, attempts=5)
        assert outbox.record(older).state == State.CANCELLED


class TestClaim:
    def test_one_worker_at_a_time(self, outbox: Outbox) -> None:
        email_id = outbox.accept(WelcomeEmail.sample()).id
        first = claimed(outbox, email_id, "t1")
        assert isinstance(outbox.claim(email_id, "t2", "node"), Waits)
        assert outbox.claim(email_id, "t1", "node") == first
        assert states(outbox, email_id) == ["queued", "sending"]

    def test_unknown(self, outbox: Outbox) -> None:
        with pytest.raises(UnknownEmail):
            outbox.claim("nobody", "t", "node")

    def test_an_ended_email_is_left_alone(self, outbox: Outbox) -> None:
        email_id = outbox.accept(WelcomeEmail.sample()).id
        claimed(outbox, email_id)
        outbox.settle(email_id, "t1", "sent", code=250, reply="ok")
        assert outbox.claim(email_id, "t2", "node") == State.SENT

    def test_renewed_lease_is_not_taken_over(self, outbox: Outbox) -> None:
        email_id = outbox.accept(WelcomeEmail.sample()).id
        claimed(outbox, email_id)
        for rounds in range(60):
            assert outbox.renew({email_id: "t1", "nobody": "x"}) == {email_id}
            stay_in_touch(outbox, LEASE / 3)
            if rounds >= 5 and outbox.lapsed_until():  # a machine that stalls loses touch, and begins again
                break
        assert outbox.lapsed_until()
        assert isinstance(outbox.claim(email_id, "t2", "node"), Waits)

    def test_dead_worker_is_taken_over_and_reported(self, outbox: Outbox) -> None:
        email_id = outbox.accept(WelcomeEmail.sample()).id
        claimed(outbox, email_id)
        let_lease_run_out(outbox)
        claimed(outbox, email_id, "t2")
        record = outbox.record(email_id)
        assert record.possible_duplicate
        assert "possible duplicate" in (record.timeline[-1].note or "")
        assert outbox.renew({email_id: "t1"}) == set()

    def test_nobody_takes_over_right_after_losing_redis(self, make: Callable[..., Outbox]) -> None:
        outbox = make()
        email_id = outbox.accept(WelcomeEmail.sample()).id
        claimed(outbox, email_id)
        let_lease_run_out(outbox)
        fresh = make()  # a process that has just started
        assert isinstance(fresh.claim(email_id, "t2", "node"), Waits)
        assert outbox.record(email_id).state == State.SENDING

    @pytest.mark.parametrize("hours", [1, -1])
    def test_nobody_takes_over_when_the_clock_of_redis_was_moved(self, tmp_path: Path, hours: int) -> None:
        with ShiftedValkey(tmp_path) as valkey, valkey.client() as client, valkey.client() as other_client:
            keys = [Fernet.generate_key().decode()]
            numbers = Numbers(lease=timedelta(seconds=1.5))
            one, other = (
                Outbox(its, prefix="moved:", vault=Vault(keys), numbers=numbers) for its in (client, other_client)
            )
            email_id = one.accept(WelcomeEmail.sample()).id
            claimed(one, email_id)

            def renewed_meanwhile() -> bool:
                assert one.renew({email_id: "t1"}) == {email_id}
                other.renew({})
                time.sleep(0.05)
                return one.lapsed_until() > 0 and other.lapsed_until() > 0

            wait_until(renewed_meanwhile, timeout=30, what="both to be in contact")
            valkey.shift(3600 * hours)
            for _ in range(3):  # at first nothing has told the other of it
                assert isinstance(other.claim(email_id, "t2", "node"), Waits)
            until = time.monotonic() + 2
            while time.monotonic() < until:
                renewed_meanwhile()
                assert isinstance(other.claim(email_id, "t2", "node"), Waits)
            assert not one.record(email_id).possible_duplicate

            def taken_over() -> bool:
                return isinstance(other.claim(email_id, "t2", "node"), Claim)

            wait_until(taken_over, timeout=30, what="the lease of the dead worker to run out")

    def test_a_mail_that_kills_its_workers_is_set_aside(self, outbox: Outbox) -> None:
        email_id = outbox.accept(WelcomeEmail.sample()).id
        claimed(outbox, email_id, "t0")
        pauses = []
        for death in range(1, 5):
            let_lease_run_out(outbox)
            outcome = outbox.claim(email_id, f"t{death}", "node")
            if isinstance(outcome, Waits):
                pauses.append(outcome.seconds)
                record = outbox.record(email_id)
                assert record.state == State.RETRYING
                claim_when_free(outbox, email_id, f"t{death}")
        let_lease_run_out(outbox)
        assert outbox.claim(email_id, "t9", "node") == State.FAILED
        assert "died 5 times" in (outbox.record(email_id).error or "")
        assert pauses == sorted(pauses)

    def test_expired_while_waiting(self, outbox: Outbox, client: "redis.Redis") -> None:
        email_id = outbox.accept(reset(), expires_at=in_(seconds=0.2)).id
        time.sleep(0.25)
        assert outbox.claim(email_id, "t", "node") == State.EXPIRED
        assert not client.hexists(f"{outbox._wire.prefix}email:{email_id}", "secret")

    def test_scheduled_waits_for_its_time(self, outbox: Outbox) -> None:
        email_id = outbox.accept(WelcomeEmail.sample(), send_at=in_(seconds=0.5)).id
        assert outbox.record(email_id).state == State.SCHEDULED
        assert isinstance(outbox.claim(email_id, "t", "node"), Waits)
        assert outbox.sweep(Lane.STANDARD, 10, "node").due == []
        due = wait_until(lambda: outbox.sweep(Lane.STANDARD, 10, "node").due, timeout=5)
        assert [one.id for one in due] == [email_id]
        assert states(outbox, email_id) == ["scheduled", "queued"]
        claimed(outbox, email_id)


class TestSettle:
    def test_sent(self, outbox: Outbox, client: "redis.Redis") -> None:
        email_id = outbox.accept(reset()).id
        claimed(outbox, email_id)
        for _ in range(2):  # the second answer was lost, say
            assert outbox.settle(email_id, "t1", "sent", code=250, reply="queued").state == State.SENT
        record = outbox.record(email_id)
        assert (record.smtp_code, record.smtp_reply, record.attempts) == (250, "queued", 1)
        assert record.sent_at is not None
        assert not record.possible_duplicate
        assert [change.state for change in record.timeline] == ["queued", "sending", "sent"]
        assert not client.hexists(f"{outbox._wire.prefix}email:{email_id}", "secret")
        assert client.zcard(f"{outbox._wire.prefix}due:critical") == 0

    def test_sent_counts_under_a_stale_token(self, outbox: Outbox) -> None:
        email_id = outbox.accept(WelcomeEmail.sample()).id
        claimed(outbox, email_id, "t1")
        let_lease_run_out(outbox)
        claimed(outbox, email_id, "t2")
        assert outbox.settle(email_id, "t1", "sent", code=250).state == State.SENT
        assert outbox.settle(email_id, "t2", "sent", code=250).state == State.SENT
        record = outbox.record(email_id)
        assert record.possible_duplicate
        assert "more than once" in (record.timeline[-1].note or "")

    @pytest.mark.parametrize("outcome", ["failed", "retry", "release"])
    def test_other_stale_results_are_dropped(self, outbox: Outbox, outcome: Any) -> None:
        email_id = outbox.accept(WelcomeEmail.sample()).id
        claimed(outbox, email_id, "t1")
        let_lease_run_out(outbox)
        claimed(outbox, email_id, "t2")
        assert outbox.settle(email_id, "t1", outcome, error="x", delay=1, attempts=9, cap=1000).stale
        assert outbox.record(email_id).state == State.SENDING

    def test_failed_keeps_the_secret_until_it_expires(self, outbox: Outbox, client: "redis.Redis") -> None:
        email_id = outbox.accept(reset(), expires_at=in_(seconds=0.3)).id
        claimed(outbox, email_id)
        outbox.settle(email_id, "t1", "failed", code=550, reply="no", error="no", cap=1000)
        key = f"{outbox._wire.prefix}email:{email_id}"
        assert client.hexists(key, "secret")
        time.sleep(0.35)
        outbox.clean()
        assert not client.hexists(key, "secret")
        with pytest.raises(WrongState):
            outbox.retry(email_id)

    def test_retry_backs_off_and_ends(self, outbox: Outbox) -> None:
        email_id = outbox.accept(WelcomeEmail.sample()).id
        for attempt in range(1, 3):
            token = f"t{attempt}"
            claim_when_free(outbox, email_id, token)
            settled = outbox.settle(email_id, token, "retry", code=451, error="busy", delay=100, attempts=3)
            assert settled.state == State.RETRYING
            assert outbox.record(email_id).attempts == attempt
        claim_when_free(outbox, email_id, "t3")
        assert outbox.settle(email_id, "t3", "retry", code=451, error="busy", delay=100, attempts=3).state == "failed"
        assert outbox.record(email_id).error == "busy (attempts used up)"

    def test_a_wake_up_before_the_next_attempt_does_nothing(self, outbox: Outbox) -> None:
        email_id = outbox.accept(WelcomeEmail.sample()).id
        claimed(outbox, email_id)
        outbox.settle(email_id, "t1", "retry", error="busy", delay=60_000, attempts=3)
        waits = outbox.claim(email_id, "t2", "node")
        assert isinstance(waits, Waits)
        assert 55 <= waits.seconds <= 60


class TestGates:
    def test_an_outage_closes_the_gate(self, outbox: Outbox) -> None:
        ids = [outbox.accept(WelcomeEmail.sample()).id for _ in range(2)]
        claimed(outbox, ids[0], "t0")
        settled = outbox.settle(ids[0], "t0", "release", gate="smtp", error="refused", cap=60_000)
        assert settled.state == State.RETRYING
        assert outbox.record(ids[0]).attempts == 0
        assert isinstance(outbox.claim(ids[1], "t1", "node"), Waits)
        assert outbox.record(ids[1]).state == State.QUEUED
        assert outbox.sweep(Lane.STANDARD, 10, "node").held
        assert outbox.lanes()[Lane.CRITICAL]["closed"]["reason"] == "refused"

    def test_one_probe_at_a_time_of_any_lane_opens_the_gate(self, make: Callable[..., Outbox]) -> None:
        outbox = make(lease=timedelta(seconds=20))  # the probe keeps its lease, however slow this machine is
        ids = [outbox.accept(WelcomeEmail.sample()).id for _ in range(3)]
        claimed(outbox, ids[0], "t0")
        outbox.settle(ids[0], "t0", "release", gate="smtp", error="refused", cap=100)
        claim_when_free(outbox, ids[1], "t1")
        assert isinstance(outbox.claim(ids[2], "t2", "node"), Waits)
        outbox.settle(ids[1], "t1", "sent", code=250)
        claimed(outbox, ids[2], "t2")
        assert outbox.lanes()[Lane.STANDARD]["closed"] is None

    def test_a_mail_that_could_not_be_prepared_says_nothing_about_the_server(self, outbox: Outbox) -> None:
        ids = [outbox.accept(WelcomeEmail.sample()).id for _ in range(2)]
        claimed(outbox, ids[0], "t0")
        outbox.settle(ids[0], "t0", "release", gate="smtp", error="refused", cap=100)
        claim_when_free(outbox, ids[1], "t1")
        outbox.settle(ids[1], "t1", "retry", error="no template", delay=1000, attempts=5, unasked=True)
        assert outbox.lanes()[Lane.STANDARD]["closed"]["reason"] == "refused"

    def test_a_long_outage_is_two_lines_in_the_timeline(self, outbox: Outbox) -> None:
        email_id = outbox.accept(WelcomeEmail.sample()).id
        for probe in range(4):
            claim_when_free(outbox, email_id, f"t{probe}")
            outbox.settle(email_id, f"t{probe}", "release", gate="smtp", error="refused", cap=50)
        assert states(outbox, email_id) == ["queued", "sending", "retrying"]
        claim_when_free(outbox, email_id, "last")
        outbox.settle(email_id, "last", "sent", code=250)
        assert states(outbox, email_id) == ["queued", "sending", "retrying", "sending", "sent"]

    def test_expired_mail_ends_behind_a_closed_gate_too(self, outbox: Outbox, client: "redis.Redis") -> None:
        first = outbox.accept(WelcomeEmail.sample()).id
        waiting = outbox.accept(reset(), expires_at=in_(seconds=0.4)).id
        claimed(outbox, first, "t0")
        outbox.settle(first, "t0", "release", gate="smtp", error="refused", cap=60_000)
        assert outbox.record(waiting).state == State.QUEUED

        def ended() -> bool:
            assert outbox.sweep(Lane.STANDARD, 10, "node").held
            return outbox.record(waiting).state == State.EXPIRED

        wait_until(ended, timeout=5)
        assert not client.hexists(f"{outbox._wire.prefix}email:{waiting}", "secret")
        assert client.zcard(f"{outbox._wire.prefix}ends") == 0

    def test_twenty_threads_that_find_the_same_fault_count_once(self, outbox: Outbox, client: "redis.Redis") -> None:
        ids = [outbox.accept(WelcomeEmail.sample()).id for _ in range(20)]
        for email_id in ids:
            claimed(outbox, email_id, email_id)
        for email_id in ids:
            outbox.settle(email_id, email_id, "release", gate="smtp", error="refused", cap=60_000)
        assert client.hget(f"{outbox._wire.prefix}gate:smtp", "step") == "1"

    def test_a_probe_whose_worker_dies_does_not_keep_the_gate_shut(self, outbox: Outbox) -> None:
        ids = [outbox.accept(WelcomeEmail.sample()).id for _ in range(3)]
        claimed(outbox, ids[0], "t0")
        outbox.settle(ids[0], "t0", "release", gate="smtp", error="refused", cap=100)
        claim_when_free(outbox, ids[1], "t1")
        assert isinstance(outbox.claim(ids[2], "t2", "node"), Waits)
        claim_when_free(outbox, ids[2], "t2")

    def test_busy_halves_the_pace_of_the_lane(self, outbox: Outbox) -> None:
        ids = [outbox.accept(WelcomeEmail.sample()).id for _ in range(12)]
        claimed(outbox, ids[0], "t0")
        outbox.settle(ids[0], "t0", "release", slow=True, error="421 too many")
        assert outbox.lanes()[Lane.STANDARD]["slowed"]["reason"] == "421 too many"
        assert outbox.lanes()[Lane.CRITICAL]["slowed"] is None
        # A lane at rest counts as one of eight mails per second: now it is four, one every 250 ms.
        found = [outbox.claim(email_id, f"t-{email_id}", "node") for email_id in ids[1:]]
        granted = [claim.delay for claim in found if isinstance(claim, Claim)]
        assert 4 <= len(granted) <= 6
        assert granted[-1] == pytest.approx(1, abs=0.3)
        assert all(isinstance(claim, Waits) for claim in found[6:])

    def test_success_speeds_a_slowed_lane_up_again(self, outbox: Outbox, client: "redis.Redis") -> None:
        ids = [outbox.accept(WelcomeEmail.sample()).id for _ in range(20)]
        claimed(outbox, ids[0], "t0")
        outbox.settle(ids[0], "t0", "release", slow=True, error="421 too many")
        pace = f"{outbox.wire.prefix}pace:standard"
        for number, email_id in enumerate(ids[1:]):
            if not client.exists(pace):
                break
            # As if the last mail had been taken four seconds ago.
            client.hincrby(pace, "grown", -4000)
            client.hset(pace, "slot", 0)
            claimed(outbox, email_id, f"s{number}")
            before = float(client.hget(pace, "limit"))
            outbox.settle(email_id, f"s{number}", "sent", code=250)
            assert float(client.hget(pace, "limit") or "inf") > before
        assert outbox.lanes()[Lane.STANDARD]["slowed"] is None

    def test_a_refused_recipient_fails_at_once(self, outbox: Outbox) -> None:
        email_id = outbox.accept(WelcomeEmail.sample()).id
        claimed(outbox, email_id)
        assert outbox.settle(email_id, "t1", "failed", code=550, error="no", refused=True, cap=1000).state == "failed"

    def test_when_most_of_twenty_are_refused_the_lane_stops_burning_mail(self, outbox: Outbox) -> None:
        verdicts = []
        for number in range(20):
            email_id = outbox.accept(WelcomeEmail(to=f"p{number}@example.com", name="P")).id
            claimed(outbox, email_id, email_id)
            taken = number % 3 == 2
            arguments = {"code": 250} if taken else {"code": 550, "error": "blocked", "refused": True, "cap": 200}
            verdicts.append(outbox.settle(email_id, email_id, "sent" if taken else "failed", **arguments).state)
        assert verdicts[:19].count(State.FAILED) == 13
        assert verdicts[19] == State.RETRYING
        closed = outbox.lanes()[Lane.STANDARD]["closed"]
        assert "most of the last 20" in closed["reason"]
        assert outbox.lanes()[Lane.CRITICAL]["closed"] is None

    def test_one_recipient_refused_twenty_times_is_no_block(self, outbox: Outbox) -> None:
        for _ in range(25):
            email_id = outbox.accept(WelcomeEmail.sample()).id
            claimed(outbox, email_id, email_id)
            settled = outbox.settle(email_id, email_id, "failed", code=550, error="no", refused=True, cap=1000)
            assert settled.state == State.FAILED


class TestSweep:
    def test_picks_once_and_no_more_than_the_lane_takes(self, make: Callable[..., Outbox]) -> None:
        outbox = make(first_look=timedelta(0))
        ids = {outbox.accept(WelcomeEmail.sample()).id for _ in range(5)}
        slow = make(first_look=timedelta(seconds=30))
        first = slow.sweep(Lane.STANDARD, 3, "a")
        second = slow.sweep(Lane.STANDARD, 3, "b")
        assert (len(first.due), len(second.due)) == (3, 2)
        assert {due.id for due in (*first.due, *second.due)} == ids
        assert slow.sweep(Lane.STANDARD, 3, "a").due == []
        assert slow.sweep(Lane.CRITICAL, 3, "a").due == []
        assert slow.lanes()[Lane.STANDARD]["nodes"] == 2

    def test_a_claimed_email_is_due_when_its_lease_ends(self, outbox: Outbox) -> None:
        email_id = outbox.accept(WelcomeEmail.sample()).id
        claimed(outbox, email_id)
        assert outbox.sweep(Lane.STANDARD, 3, "a").due == []
        due = wait_until(lambda: outbox.sweep(Lane.STANDARD, 3, "a").due, timeout=3)
        assert due[0].id == email_id

    def test_a_due_entry_without_a_record_goes(self, outbox: Outbox, client: "redis.Redis") -> None:
        client.zadd(f"{outbox._wire.prefix}due:bulk", {"ghost": 1})
        assert outbox.sweep(Lane.BULK, 3, "a").due == []
        assert client.zcard(f"{outbox._wire.prefix}due:bulk") == 0


class TestByHand:
    def test_cancel(self, outbox: Outbox) -> None:
        email_id = outbox.accept(WelcomeEmail.sample(), send_at=in_(hours=1)).id
        for _ in range(2):
            assert outbox.cancel(email_id).state == State.CANCELLED
        assert outbox.claim(email_id, "t", "node") == State.CANCELLED
        with pytest.raises(WrongState):
            outbox.retry(email_id)
        with pytest.raises(UnknownEmail):
            outbox.cancel("nobody")

    def test_no_cancel_while_sending_or_after(self, outbox: Outbox) -> None:
        email_id = outbox.accept(WelcomeEmail.sample()).id
        claimed(outbox, email_id)
        with pytest.raises(WrongState, match="sending"):
            outbox.cancel(email_id)
        outbox.settle(email_id, "t1", "sent", code=250)
        with pytest.raises(WrongState, match="sent"):
            outbox.cancel(email_id)

    def test_drop_a_dead_letter(self, outbox: Outbox) -> None:
        email_id = outbox.accept(reset()).id
        claimed(outbox, email_id)
        with pytest.raises(WrongState, match="sending cannot be dropped"):
            outbox.drop(email_id, "why")
        outbox.settle(email_id, "t1", "failed", code=550, error="no", cap=1000)
        for _ in range(2):
            record = outbox.drop(email_id, "has left the school")
            assert (record.state, record.error) == (State.CANCELLED, "has left the school")
        assert outbox.list(state=State.FAILED).items == []
        with pytest.raises(WrongState):
            outbox.retry(email_id)
        with pytest.raises(UnknownEmail):
            outbox.drop("nobody", "why")

    def test_retry_a_dead_letter(self, outbox: Outbox) -> None:
        email_id = outbox.accept(reset()).id
        claimed(outbox, email_id)
        outbox.settle(email_id, "t1", "failed", code=550, error="no", cap=1000)
        record = outbox.retry(email_id)
        assert (record.state, record.attempts, record.error) == (State.QUEUED, 0, None)
        with pytest.raises(WrongState):
            outbox.retry(email_id)
        assert outbox.open(claimed(outbox, email_id, "t2")) == reset()


class TestList:
    def test_newest_first_with_filters_and_pages(self, outbox: Outbox) -> None:
        made = [outbox.accept(WelcomeEmail(to=f"p{number % 2}@example.com", name="P")).id for number in range(7)]
        reset_id = outbox.accept(reset("p0@example.com")).id
        outbox.cancel(made[0])

        def everything(**filters: Any) -> list[str]:
            found, cursor = [], None
            while True:
                page = outbox.list(cursor=cursor, limit=2, **filters)
                found += [record.id for record in page.items]
                if not (cursor := page.next):
                    return found

        by_time = sorted([*made, reset_id], key=lambda one: (outbox.record(one).created_at, one), reverse=True)
        assert everything() == by_time
        assert set(everything(kind="password_reset")) == {reset_id}
        assert set(everything(state=State.CANCELLED)) == {made[0]}
        assert set(everything(to="P0@EXAMPLE.com")) == {*made[::2], reset_id}
        assert set(everything(to="p0@example.com", state=State.QUEUED)) == {*made[2::2], reset_id}
        assert everything(state=State.SENT) == []

    def test_many_in_one_millisecond(self, outbox: Outbox, client: "redis.Redis") -> None:
        ids = [outbox.accept(WelcomeEmail.sample()).id for _ in range(30)]
        client.zadd(f"{outbox._wire.prefix}all", dict.fromkeys(ids, 1))
        found, cursor = [], None
        while True:
            page = outbox.list(cursor=cursor, limit=7)
            found += [record.id for record in page.items]
            if not (cursor := page.next):
                break
        assert sorted(found) == sorted(ids)
        assert len(found) == 30

    def test_a_foreign_cursor(self, outbox: Outbox) -> None:
        with pytest.raises(InvalidEmail):
            outbox.list(cursor="!!!")


class TestJanitor:
    def test_old_and_ended_goes_with_its_index_entries(
        self, make: Callable[..., Outbox], client: "redis.Redis"
    ) -> None:
        outbox = make(retention=timedelta(milliseconds=50))
        ended, alive = outbox.accept(WelcomeEmail.sample()).id, outbox.accept(CertificateEmail.sample()).id
        claimed(outbox, ended)
        outbox.settle(ended, "t1", "failed", code=550, error="no", cap=1000)
        time.sleep(0.1)
        assert outbox.clean() == (1, 1)
        assert outbox.clean() == (0, 1)
        assert +outbox.measure().emails() == {("certificate", Lane.STANDARD, State.QUEUED): 1}
        with pytest.raises(UnknownEmail):
            outbox.record(ended)
        assert outbox.record(alive).state == State.QUEUED
        left = {key: client.type(key) for key in client.scan_iter(f"{outbox._wire.prefix}*")}
        for key, kind in left.items():
            if kind == "zset":
                assert client.zscore(key, ended) is None, key


def test_a_cluster_is_refused(tmp_path: Any) -> None:
    from mail.errors import ConfigurationError

    options = {"cluster-enabled": "yes"}
    with Valkey(tmp_path, **options) as server, server.client() as client:
        info = client.info()
    with pytest.raises(ConfigurationError, match="Cluster"):
        refuse_unfit(info)


def test_an_old_redis_is_refused(store: "redis.Redis") -> None:
    from mail.errors import ConfigurationError

    refuse_unfit(store.info())
    refuse_unfit({})  # an ACL may forbid INFO
    with pytest.raises(ConfigurationError, match=r"this is Redis 6\.2\.14; .*7 or newer"):
        refuse_unfit({**store.info(), "redis_version": "6.2.14"})


def test_custom_bodies_come_back_as_they_went_in(outbox: Outbox) -> None:
    email = CustomEmail(
        to="a@example.com", subject="{{ 7*7 }} \u2028x".replace("\u2028", ""), text="Zeile\u2028eins\n{% x %}"
    )
    email_id = outbox.accept(email).id
    assert outbox.open(claimed(outbox, email_id)) == email
    assert outbox.record(email_id).fields["text"] == "Zeile\u2028eins\n{% x %}"

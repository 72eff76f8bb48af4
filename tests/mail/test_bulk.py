"""One wake-up of a chunk: claims, pace, faults of the server, stopping. Redis is real, the sending is played."""

import itertools
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.fernet import Fernet

import mail.bulk
from mail.answers import Numbers
from mail.batches import Batches
from mail.bulk import BulkCourier
from mail.chunks import Chunks
from mail.delivery import Delivery, NotDelivered, RetryPolicy
from mail.errors import PermanentError, ServerBusy, ServerUnavailable, UnknownBatch
from mail.intake import Intake, Terms
from mail.kinds import Lane
from mail.leases import LeaseKeeper
from mail.mailing import Mailing, Recipient
from mail.outbox import Outbox
from mail.permits import Permits
from mail.records import State
from mail.vault import Vault
from support.processes import Valkey, wait_until


class Anybody:
    def recipient(self, raw: object) -> Recipient:
        return Recipient(str(raw))


class Server:
    """Plays `EmailService.deliver_many`: takes every mail but those that `faults` names, after `seconds`."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.faults: dict[str, Exception] = {}
        self.killer: tuple[str, type[BaseException]] | None = None
        self.sent: list[tuple[float, str]] = []
        self.calls: list[int] = []

    def deliver_many(
        self, mailing: Mailing, recipients: Iterable[tuple[str, Recipient]], *, pace: Callable[[], None] | None
    ) -> Iterator[Delivery | NotDelivered]:
        mails = list(recipients)
        self.calls.append(len(mails))
        for email_id, recipient in mails:
            assert pace is not None
            pace()
            time.sleep(self.seconds)
            if self.killer and recipient.to == self.killer[0]:
                raise self.killer[1]
            if fault := self.faults.pop(recipient.to, None):
                yield NotDelivered(email_id, recipient.to, fault)
                continue
            self.sent.append((time.monotonic(), recipient.to))
            now = datetime.now(UTC)
            yield Delivery(email_id, recipient.to, mailing.kind, State.SENT, "<id>", 250, "OK", now)


class Bench:
    """An outbox with one batch, and a courier for it."""

    def __init__(self, valkey: Valkey, server: Server, **numbers: Any) -> None:
        self.outbox = Outbox(
            valkey.client(),
            prefix=f"k{uuid.uuid4().hex[:8]}:",
            vault=Vault([Fernet.generate_key().decode()]),
            numbers=Numbers(**numbers),
        )
        self.batches = Batches(self.outbox)
        permits = Permits(limited=False, trim=lambda _: None)
        self.leases = LeaseKeeper(self.outbox, permits)
        self.courier = BulkCourier(
            Chunks(self.outbox), server.deliver_many, self.leases, permits, RetryPolicy(base=1, maximum=1)
        )

    def accept(self, count: int) -> str:
        mailing = Mailing.parse({"subject": "News", "text": "Open."})
        intake = Intake(self.outbox, self.batches, mailing, Anybody(), Terms(), limit=count)
        intake.take([f"p{number}@example.com" for number in range(count)])
        return intake.finish().id


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def bench(valkey: Valkey, server: Server) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def build(**numbers: Any) -> Bench:
        made.append(Bench(valkey, server, **numbers))
        return made[-1]

    yield build
    for one in made:
        one.outbox.close()


def test_a_chunk_is_sent_to_its_end_in_claims_of_ten(bench: Callable[..., Bench], server: Server) -> None:
    here = bench()
    batch_id = here.accept(130)
    ended = here.courier.wake(f"{batch_id}:0", "node")
    assert (ended.state, ended.detail) == (State.SENT, "100 sent")
    assert server.calls == [10] * 10
    assert [to for _, to in server.sent] == [f"p{number}@example.com" for number in range(100)]
    assert here.batches.batch(batch_id).counts == {State.SENT: 100, State.QUEUED: 30}


def test_a_slow_server_gets_small_claims(bench: Callable[..., Bench], server: Server) -> None:
    server.seconds = 0.12
    here = bench()
    here.courier.wake(f"{here.accept(25)}:0", "node")
    assert server.calls[0] == 10
    assert server.calls[-1] <= 5


def test_one_refusal_stops_nobody(bench: Callable[..., Bench], server: Server) -> None:
    server.faults["p3@example.com"] = PermanentError("550 no", code=550, reply="no")
    server.faults["p5@example.com"] = ValueError("a broken template")
    here = bench()
    batch_id = here.accept(20)
    here.courier.wake(f"{batch_id}:0", "node")
    assert here.batches.batch(batch_id).counts == {State.SENT: 18, State.FAILED: 1, State.RETRYING: 1}
    assert here.outbox.record(f"{batch_id}-5").error == "could not be prepared: ValueError"


@pytest.mark.parametrize("fault", [ServerUnavailable("refused"), ServerBusy("421 later", code=421)])
def test_a_fault_of_the_server_uses_up_nothing(bench: Callable[..., Bench], server: Server, fault: Exception) -> None:
    server.faults["p4@example.com"] = fault
    here = bench()
    batch_id = here.accept(20)
    wait_until(
        lambda: here.courier.wake(f"{batch_id}:0", "node") and here.batches.batch(batch_id).ended,
        what="the chunk to be sent",
    )
    assert here.batches.batch(batch_id).counts == {State.SENT: 20}
    assert Counter(to for _, to in server.sent) == {f"p{number}@example.com": 1 for number in range(20)}


def test_a_crash_leaves_in_doubt_only_what_was_in_smtp(bench: Callable[..., Bench], server: Server) -> None:
    here = bench(lease=timedelta(seconds=1))
    batch_id = here.accept(30)

    class Killed(BaseException):
        """Ends the courier wherever it is, as kill -9 does."""

    server.killer = ("p13@example.com", Killed)
    with pytest.raises(Killed):
        here.courier.wake(f"{batch_id}:0", "node")
    server.killer = None
    wait_until(
        lambda: here.courier.wake(f"{batch_id}:0", "node") and here.batches.batch(batch_id).ended,
        what="another worker to end the chunk",
    )
    assert here.batches.batch(batch_id).counts == {State.SENT: 29, State.HELD: 1}
    assert here.outbox.record(f"{batch_id}-13").state is State.HELD
    assert Counter(to for _, to in server.sent).most_common(1)[0][1] == 1


def test_mails_leave_evenly_under_a_limit(bench: Callable[..., Bench], server: Server) -> None:
    here = bench(max_per_second=20)
    here.courier.wake(f"{here.accept(40)}:0", "node")
    times = [at for at, _ in server.sent]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert times[-1] - times[0] >= 39 / 20
    assert sorted(gaps)[len(gaps) // 2] == pytest.approx(1 / 19, abs=0.02)


def test_a_frozen_process_does_not_go_on(
    bench: Callable[..., Bench], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = bench()
    batch_id = here.accept(20)

    def may_begin(_: object) -> bool:
        if len(server.sent) == 3:
            here.courier.stop()  # it would claim again, and so on
        return len(server.sent) < 3

    monkeypatch.setattr(here.leases, "may_begin", may_begin)
    here.courier.wake(f"{batch_id}:0", "node")
    assert len(server.sent) == 3
    counts = here.batches.batch(batch_id).counts
    assert counts[State.SENT] == 3
    assert State.SENDING not in counts


def test_a_node_that_stops_leaves_the_rest_to_others_at_once(bench: Callable[..., Bench], server: Server) -> None:
    here = bench()
    batch_id = here.accept(50)
    here.outbox.sweep(Lane.BULK, 10, "node")
    server.seconds = 0.1
    stop = threading.Timer(0.25, here.courier.stop)
    stop.start()
    ended = here.courier.wake(f"{batch_id}:0", "node")
    assert ended.state is State.QUEUED
    # Not even the ten of its claim: with a slow server they take longer than a stop may.
    assert len(server.sent) < 10
    counts = here.batches.batch(batch_id).counts
    assert counts == {State.SENT: len(server.sent), State.QUEUED: 50 - len(server.sent)}
    assert [due.id for due in here.outbox.sweep(Lane.BULK, 10, "other").due] == [f"{batch_id}:0"]


def test_a_chunk_goes_back_after_its_turn(
    bench: Callable[..., Bench], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = bench()
    batch_id = here.accept(50)
    here.outbox.sweep(Lane.BULK, 10, "node")
    server.seconds = 0.1
    monkeypatch.setattr(mail.bulk, "TURN", 0.25)
    ended = here.courier.wake(f"{batch_id}:0", "node")
    assert ended.state is State.QUEUED
    assert 0 < len(server.sent) < 10
    assert [due.id for due in here.outbox.sweep(Lane.BULK, 10, "node").due] == [f"{batch_id}:0"]
    monkeypatch.undo()
    server.seconds = 0
    here.courier.wake(f"{batch_id}:0", "node")
    assert here.batches.batch(batch_id).counts == {State.SENT: 50}
    assert len(server.sent) == 50


def test_a_chunk_that_waits_longer_than_patience_goes_back(bench: Callable[..., Bench], server: Server) -> None:
    here = bench(lease=timedelta(seconds=60))
    batch_id = here.accept(5)
    here.batches.pause(batch_id)
    began = time.monotonic()
    ended = here.courier.wake(f"{batch_id}:0", "node")
    assert time.monotonic() - began < 5
    assert (ended.state, server.sent) == (State.QUEUED, [])


def test_a_chunk_of_no_batch(bench: Callable[..., Bench]) -> None:
    for chunk in ("batch-00:0", "nonsense", "batch-00"):
        with pytest.raises(UnknownBatch):
            bench().courier.wake(chunk, "node")

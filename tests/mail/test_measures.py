"""What is measured equals what there is: counts under scripts that all run twice, and lanes that stand still or only
seem to. Counts of batches are checked at every step of test_batches_model.py."""

import random
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
import redis
from cryptography.fernet import Fernet

from mail.answers import Claim, Numbers
from mail.batches import Batches
from mail.chunks import ChunkClaim, ChunkId, Chunks, Result
from mail.errors import EmailError, PermanentError, ServerUnavailable, UnknownEmail
from mail.intake import Intake, Terms
from mail.kinds import AnyEmail, CertificateEmail, Lane, PasswordResetEmail, WelcomeEmail
from mail.mailing import Mailing, Recipient
from mail.measures import Reporter
from mail.outbox import Outbox
from mail.records import State
from mail.timings import BOUNDS, Answer, Timings
from mail.vault import Vault
from support.processes import Valkey

RETRY = {"error": "451 later", "code": 451, "delay": 0, "attempts": 3}
ENDINGS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("sent", {"code": 250, "reply": "OK"}),
    ("sent", {"code": 250, "reply": "OK"}),
    ("failed", {"code": 550, "error": "550 no such user"}),
    ("failed", {"error": "too large"}),
    ("retry", RETRY),
    ("retry", {**RETRY, "unknown": True, "note": "possible duplicate: cut"}),
    ("release", {"error": "421", "slow": True}),
)


class Trusting(Outbox):
    """Takes an expired lease over at once."""

    def lapsed_until(self) -> int:
        return 2**53


@pytest.fixture
def make(valkey: Valkey) -> Iterator[Callable[..., Outbox]]:
    outboxes: list[Outbox] = []
    prefix = f"me{uuid.uuid4().hex[:8]}:"

    def build(**numbers: Any) -> Outbox:
        vault = Vault([Fernet.generate_key().decode()])
        outbox = Trusting(valkey.client(), prefix=prefix, vault=vault, numbers=Numbers(**numbers))
        outboxes.append(outbox)
        return outbox

    yield build
    for outbox in outboxes:
        outbox.close()


@pytest.fixture
def outbox(make: Callable[..., Outbox]) -> Outbox:
    return make()


def twice(outbox: Outbox) -> Outbox:
    """Every script runs twice, as when the answer to the first run is lost."""
    call = outbox.wire._call

    def repeated(*arguments: Any) -> Any:
        call(*arguments)
        return call(*arguments)

    outbox.wire._call = repeated
    return outbox


def records(outbox: Outbox) -> dict[str, dict[str, str]]:
    client, prefix = outbox.wire.client, outbox.wire.key("email", "")
    return {key.removeprefix(prefix): client.hgetall(key) for key in client.scan_iter(f"{prefix}*", count=1000)}


def check(outbox: Outbox) -> None:
    """The counts against the records, and among themselves."""
    found, there = outbox.measure(), records(outbox)
    emails = {key: count for key, count in found.emails().items() if count}
    assert emails == Counter((one["kind"], one["lane"], one["state"]) for one in there.values())
    moved = Counter[str]()
    for move in found.moves:
        moved["accepted"] += move.number if move.before is None else 0
        moved["removed"] += move.number if move.after is None else 0
    assert moved["accepted"] == sum(emails.values()) + moved["removed"]


class History:
    """Single emails under anything that can happen to them, in a random order."""

    def __init__(self, outbox: Outbox, seed: int) -> None:
        self.outbox = outbox
        self.random = random.Random(seed)
        self.ids: list[str] = []
        self.claims: list[Claim] = []

    def accept(self) -> None:
        person = f"p{self.random.randrange(4)}@example.com"
        email: AnyEmail = self.random.choice(
            [
                WelcomeEmail(to=person, name="Ada"),
                CertificateEmail(to=person, **CertificateEmail.sample().model_dump(exclude={"kind", "to"})),
                PasswordResetEmail(to=person, name="Ada", reset_url="https://lms.example.com/r"),
            ]
        )
        later = datetime.now(UTC) + timedelta(minutes=30) if self.random.random() < 0.2 else None
        self.ids.append(self.outbox.accept(email, send_at=later).id)

    def claim(self) -> None:
        with suppress(UnknownEmail):  # removed
            claim = self.outbox.claim(self.any(), uuid.uuid4().hex, "node")
            if isinstance(claim, Claim):
                self.claims.append(claim)

    def settle(self) -> None:
        if self.claims:
            claim = self.random.choice(self.claims)
            if self.random.random() < 0.8:  # else it is reported a second time, later
                self.claims.remove(claim)
            outcome, arguments = self.random.choice(ENDINGS)
            self.outbox.settle(claim.id, claim.token, outcome, **arguments)

    def time_passes(self) -> None:
        """Leases run out, and what waits for a time has it now."""
        client, now = self.outbox.wire.client, int(time.time() * 1000) - 1
        for email_id, one in records(self.outbox).items():
            key = self.outbox.wire.key("email", email_id)
            for name in {"lease", "next"} & set(one):
                client.hset(key, name, now)
        client.delete(self.outbox.wire.key("pace", "standard"), self.outbox.wire.key("pace", "critical"))

    def expire(self) -> None:
        one = self.any()
        if "expires" in records(self.outbox).get(one, {}):
            self.outbox.wire.client.hset(self.outbox.wire.key("email", one), "expires", 1)
            self.outbox.wire.client.zadd(self.outbox.wire.key("ends"), {one: 1}, xx=True)
            self.outbox.sweep(Lane.CRITICAL, 0, "node")

    def by_hand(self) -> None:
        with suppress(EmailError):
            self.random.choice([self.outbox.cancel, self.outbox.retry])(self.any())

    def clean(self) -> None:
        self.outbox.clean(count=self.random.randint(1, 3))

    def any(self) -> str:
        return self.random.choice(self.ids)

    def step(self) -> None:
        actions = {
            self.accept: 5,
            self.claim: 10,
            self.settle: 8,
            self.time_passes: 2,
            self.expire: 1,
            self.by_hand: 3,
            self.clean: 1 if self.outbox.numbers.retention < timedelta(days=1) else 0,
        }
        self.random.choices(list(actions), list(actions.values()))[0]()


@pytest.mark.parametrize("seed", range(6))
def test_a_history_whose_scripts_all_run_twice(make: Callable[..., Outbox], seed: int) -> None:
    retention = timedelta(days=30) if seed % 2 else timedelta(0)
    history = History(twice(make(retention=retention, recipient_hourly_limit=1000, death_pause=timedelta(0))), seed)
    history.accept()
    for _ in range(100):
        history.step()
        check(history.outbox)
    if seed % 2:  # nothing was removed
        copies = Counter((one["kind"], one["lane"]) for one in records(history.outbox).values() if "duplicate" in one)
        assert history.outbox.measure().copies == copies


def causes(outbox: Outbox) -> Counter[tuple[State | None, str | None]]:
    found: Counter[tuple[State | None, str | None]] = Counter()
    for move in outbox.measure().moves:
        if move.after in (State.FAILED, State.HELD):
            found[move.after, move.cause] += move.number
    return found


def accepted(outbox: Outbox, count: int = 3, **terms: Any) -> str:
    """The id of a new batch."""

    class Anybody:
        def recipient(self, raw: object) -> Recipient:
            return Recipient(str(raw))

    mailing = Mailing.parse({"subject": "News", "text": "Open."})
    taking = Intake(outbox, Batches(outbox), mailing, Anybody(), Terms(**terms), limit=count)
    taking.take([f"p{number}@example.com" for number in range(count)])
    return taking.finish().id


class TestCauses:
    def attempt(self, outbox: Outbox, outcome: Any, **arguments: Any) -> str:
        email_id = outbox.accept(WelcomeEmail.sample()).id
        outbox.claim(email_id, "t", "node")
        outbox.settle(email_id, "t", outcome, **arguments)
        return email_id

    def test_of_single_emails(self, make: Callable[..., Outbox]) -> None:
        outbox = make(lease=timedelta(milliseconds=1), death_limit=1)
        self.attempt(outbox, "failed", code=550, error="no")
        self.attempt(outbox, "failed", error="too large")
        self.attempt(outbox, "retry", **{**RETRY, "attempts": 1})
        dead = outbox.accept(WelcomeEmail.sample()).id
        outbox.claim(dead, "t", "node")
        time.sleep(0.01)
        assert outbox.claim(dead, "u", "other") is State.FAILED
        failed = State.FAILED
        assert causes(outbox) == {
            (failed, "refused"): 1,
            (failed, "unfit"): 1,
            (failed, "attempts_used_up"): 1,
            (failed, "worker_died"): 1,
        }
        assert "cause" not in str(records(outbox))

    def test_of_a_batch(self, make: Callable[..., Outbox]) -> None:
        outbox = make(lease=timedelta(milliseconds=1))
        batch_id, chunks, batches = accepted(outbox), Chunks(outbox), Batches(outbox)
        chunk = ChunkId(batch_id, 0)
        lost = chunks.claim(chunk, "t", "node", size=1)
        assert isinstance(lost, ChunkClaim)
        unknown = Result(0, "retry", {**RETRY, "unknown": True})
        chunks.settle(lost, "node", [unknown], leave=False)
        died = chunks.claim(chunk, "u", "node", size=1)
        assert isinstance(died, ChunkClaim)
        assert chunks.mark(died, 1, "node", None)
        time.sleep(0.01)
        chunks.claim(chunk, "v", "other", size=1)
        held = State.HELD
        assert causes(outbox) == {(held, "reply_lost"): 1, (held, "worker_died"): 1}
        batches.drop_held(batch_id)
        assert causes(outbox)[State.FAILED, "dropped"] == 2


class TestStill:
    """`still`: for how long a lane has owed mail that nobody takes."""

    def still(self, outbox: Outbox, lane: Lane = Lane.STANDARD) -> float:
        return outbox.measure().lanes[lane].still

    def age(self, outbox: Outbox, lane: str, seconds: float, *fields: str) -> None:
        """Moves times of the lane into the past."""
        client, now = outbox.wire.client, int(time.time() * 1000)
        for field in fields:
            client.hset(outbox.wire.key("lane", lane), field, now - int(seconds * 1000))
        for source in (lane, *client.zrange(outbox.wire.key("due", "bulk"), 0, -1)):
            for entry in client.zrange(outbox.wire.key("due", source), 0, -1):
                client.zadd(outbox.wire.key("due", source), {entry: now - int(seconds * 1000)})

    def test_idle(self, outbox: Outbox) -> None:
        assert self.still(outbox) == 0
        email_id = outbox.accept(WelcomeEmail.sample()).id
        outbox.claim(email_id, "t", "node")
        outbox.settle(email_id, "t", "sent", code=250)
        self.age(outbox, "standard", 600, "woken")
        assert self.still(outbox) == 0

    def test_no_worker(self, outbox: Outbox) -> None:
        outbox.accept(WelcomeEmail.sample())
        self.age(outbox, "standard", 600)
        assert self.still(outbox) == pytest.approx(600, abs=2)
        assert outbox.measure().lanes[Lane.STANDARD].nodes == 0

    def test_wake_ups_that_nobody_takes(self, outbox: Outbox) -> None:
        """The sweep goes on and moves what is due ahead; that does not hide that nobody comes."""
        outbox.accept(WelcomeEmail.sample())
        self.age(outbox, "standard", 600)
        assert outbox.sweep(Lane.STANDARD, 10, "node").due
        assert outbox.measure().lanes[Lane.STANDARD].due == 0
        lane, client = outbox.wire.key("lane", "standard"), outbox.wire.client
        assert int(client.hget(lane, "owed")) == pytest.approx(time.time() * 1000, abs=2000)
        client.hset(lane, "owed", int(time.time() * 1000) - 400_000)
        assert outbox.sweep(Lane.STANDARD, 10, "node").due == []
        assert self.still(outbox) == pytest.approx(400, abs=2)

    def test_a_claim_sets_it_going(self, outbox: Outbox) -> None:
        email_id = outbox.accept(WelcomeEmail.sample()).id
        self.age(outbox, "standard", 600, "owed")
        assert self.still(outbox) > 500
        outbox.claim(email_id, "t", "node")
        assert self.still(outbox) == 0
        outbox.accept(CertificateEmail.sample())
        self.age(outbox, "standard", 600)
        assert self.still(outbox) < 10, "the lane took a mail a moment ago"

    def test_a_paused_batch(self, outbox: Outbox) -> None:
        batch_id = accepted(outbox)
        self.age(outbox, "bulk", 600)
        outbox.wire.client.zadd(outbox.wire.key("due", "bulk"), {batch_id: 1})
        assert self.still(outbox, Lane.BULK) > 500
        Batches(outbox).pause(batch_id)
        found = outbox.measure().lanes[Lane.BULK]
        assert (found.still, found.due) == (0, 0)

    def test_a_throttled_lane(self, make: Callable[..., Outbox]) -> None:
        outbox = make(max_per_day=1)
        for _ in range(2):
            outbox.accept(WelcomeEmail.sample())
        first, second = records(outbox)
        assert isinstance(outbox.claim(first, "t", "node"), Claim)
        outbox.settle(first, "t", "sent", code=250)
        self.age(outbox, "standard", 600, "woken")
        found = outbox.measure().lanes[Lane.STANDARD]
        assert found.limits["day"]
        assert (found.still, found.due) == (0, 1)
        slow = make(max_per_second=0.001)
        slow.wire.client.hset(slow.wire.key("slots"), "standard", int(time.time() * 1000) + 500_000)
        self.age(slow, "standard", 600, "woken", "owed")
        assert self.still(slow) == 0
        assert second

    def test_a_closed_gate_is_no_fault_of_the_workers(self, outbox: Outbox) -> None:
        email_id = outbox.accept(WelcomeEmail.sample()).id
        outbox.claim(email_id, "t", "node")
        outbox.settle(email_id, "t", "release", gate="smtp", error="down", cap=60_000)
        self.age(outbox, "standard", 600, "woken")
        assert self.still(outbox) > 500, "nobody is there to probe"
        outbox.sweep(Lane.STANDARD, 0, "node")
        found = outbox.measure()
        assert found.lanes[Lane.STANDARD].still == 0
        assert found.account_closed
        assert found.closed(Lane.BULK) == found.account_closed


class TestNodes:
    def test_one_that_falls_silent_is_forgotten(self, outbox: Outbox, client: "redis.Redis") -> None:
        def look() -> dict[str, Any]:
            return {"in_use": 1, "open": 2, "histograms": Timings().histograms()}

        for node in ("a@one", "b@two"):
            Reporter(outbox.wire, node, look, threads=4).report()
        assert set(outbox.measure().nodes) == {"a@one", "b@two"}
        client.zadd(outbox.wire.key("reported"), {"a@one": 1})
        twice(outbox)
        Reporter(outbox.wire, "b@two", look, threads=4).report()
        (left,) = outbox.measure().nodes.values()
        assert (left.fresh, left.threads, left.in_use, left.open) == (True, 4, 1, 2)
        assert client.zcard(outbox.wire.key("reported")) == 1

    @pytest.fixture
    def client(self, valkey: Valkey) -> Iterator["redis.Redis"]:
        with valkey.client() as connection:
            yield connection


class TestTimings:
    def test_each_answer_has_its_histogram(self) -> None:
        timings = Timings()
        with timings.mail():
            assert timings.running == 1
        for error in (PermanentError("too large"), ServerUnavailable("cut"), ServerUnavailable("no", code=554)):
            with pytest.raises(type(error)), timings.mail():
                raise error
        found = timings.histograms()
        assert timings.running == 0
        assert {answer: sum(one.buckets) for answer, one in found.items()} == {
            Answer.TAKEN: 1,
            Answer.REFUSED: 2,
            Answer.NONE: 1,
        }
        assert all(len(one.buckets) == len(BOUNDS) + 1 for one in found.values())

    def test_a_slow_one_is_where_it_belongs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        timings, clock = Timings(), iter([100.0, 100.05, 200.0, 1000.0])
        monkeypatch.setattr("mail.timings.time.monotonic", lambda: next(clock))
        for _ in range(2):
            with timings.mail():
                pass
        taken = timings.histograms()[Answer.TAKEN]
        assert [at for at, count in enumerate(taken.buckets) if count] == [BOUNDS.index(0.05), len(BOUNDS)]
        assert taken.total == pytest.approx(800.05)


def test_the_last_hour_minute_by_minute(outbox: Outbox, valkey: Valkey) -> None:
    twice(outbox)
    reporter = Reporter(outbox.wire, "node", lambda: {"in_use": 0, "open": 0, "histograms": {}}, 1)
    history = outbox.wire.key("history")

    def a_minute_passes() -> None:
        with valkey.client() as client:
            for at, mark in enumerate(client.lrange(history, 0, -1)):
                minute, _, counts = mark.partition(" ")
                client.lset(history, at, f"{int(minute) - 1} {counts}")

    def send(number: int) -> None:
        for _ in range(number):
            email_id = outbox.accept(WelcomeEmail.sample()).id
            outbox.claim(email_id, email_id, "node")
            outbox.settle(email_id, email_id, "sent", code=250, reply="OK")

    reporter.report()
    assert [minute.reached for minute in outbox.last_hour()] == [{}]
    for number in (3, 0, 2):
        send(number)
        a_minute_passes()
        reporter.report()
    hour = outbox.last_hour()
    assert [minute.reached.get(State.SENT, 0) for minute in hour] == [3, 0, 2, 0]
    assert [(b.ends - a.ends).total_seconds() for a, b in pairwise(hour)] == [60, 60, 60]
    for _ in range(70):
        a_minute_passes()
        reporter.report()
    send(4)
    hour = outbox.last_hour()
    assert len(hour) == 61
    assert hour[-1].reached[State.SENT] == 4

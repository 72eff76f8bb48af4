"""A batch under anything that can happen to it, in a random order: workers that send, crash, freeze and come back
late, calls that run twice, steering by hand, the sweep, a closed gate, its time running out.

What must hold after every step is in `Driver.check`, and what must have come of it in `check_truth`. A seed is one
history, which `pytest -k seed-7` plays again.
"""

import random
import re
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, cast

import pytest
from cryptography.fernet import Fernet

from mail.answers import Claim, Numbers, Outcome
from mail.batch_records import CHUNK, LETTERS
from mail.batches import Batches
from mail.chunks import ChunkClaim, ChunkId, Chunks, Result
from mail.errors import WrongState
from mail.intake import Intake, Terms
from mail.kinds import Lane
from mail.mailing import Mailing, Recipient
from mail.outbox import Outbox
from mail.records import State
from mail.vault import Vault
from support.processes import Valkey

SEEDS = 12
STEPS = 250

FINAL = frozenset("sfhceu")
EXCUSE = re.compile(r'possible duplicate|(?<!duplicate: )sent again by hand|its worker died \d+ times"|"copy":1')
Ending = tuple[Outcome, dict[str, Any]]
SENT: Ending = ("sent", {"code": 250, "reply": "OK"})
RETRY = {"delay": 0, "attempts": 5}
LOST: Ending = ("retry", {"error": "cut after the dot", **RETRY, "unknown": True, "note": "possible duplicate: cut"})
NOT_TAKEN: tuple[Ending, ...] = (
    ("failed", {"code": 550, "reply": "no such user", "error": "550 no such user"}),
    ("failed", {"code": 550, "reply": "blocked", "error": "550 blocked", "refused": True, "cap": 0}),
    ("retry", {"code": 451, "error": "451 later", **RETRY}),
    ("retry", {"code": 451, "error": "451 later", **RETRY, "delay": 5_000}),
    ("retry", {"error": "could not be prepared", **RETRY, "unasked": True}),
    ("release", {"error": "421 too many", "slow": True}),
    ("release", {"error": "connection refused", "gate": "smtp", "cap": 0}),
    ("release", {"error": "connection refused", "gate": "smtp", "cap": 10_000}),
)
BACK: Ending = ("release", {"error": "this worker was frozen"})


class Anybody:
    def recipient(self, raw: object) -> Recipient:
        return Recipient(str(raw))


class Trusting(Outbox):
    """Takes over at once: the driver ends leases by hand, so that a seed does not depend on the clock."""

    trusts = True

    def lapsed_until(self) -> int:
        return 2**53 if self.trusts else 0


@dataclass
class Hand:
    """A worker with something in hand: some recipients of a chunk, or one that has a record of its own."""

    claim: ChunkClaim | Claim
    positions: list[int]
    results: list[Result] = field(default_factory=list)
    in_smtp: bool = False
    over: bool = False
    leaves: bool = False

    @property
    def position(self) -> int:
        return self.positions[len(self.results)]

    @property
    def given(self) -> list[Result]:
        return [*self.results, *(Result(at, *BACK) for at in self.positions[len(self.results) :])]


@dataclass
class Walk:
    """A walk through the batch by somebody who may die between two slices."""

    verb: str
    token: str
    position: int = 0


class Driver:
    """Plays one history."""

    def __init__(self, outbox: Trusting, seed: int) -> None:
        self.outbox = outbox
        self.redis = outbox.wire.client
        self.batches = Batches(outbox)
        self.chunks = Chunks(outbox)
        self.random = random.Random(seed)
        self.total = self.random.choice([3, 8, 20, 104])
        on_unknown: Literal["hold", "resend"] = self.random.choice(["hold", "resend"])
        far = datetime.now(UTC) + timedelta(hours=1) if self.random.random() < 0.5 else None
        terms = Terms(on_unknown=on_unknown, expires_at=far)
        mailing = Mailing.parse({"subject": "News", "text": "Open."})
        intake = Intake(outbox, self.batches, mailing, Anybody(), terms, limit=self.total)
        intake.take([f"p{number}@example.com" for number in range(self.total)])
        self.id = intake.finish().id
        self.hands: list[Hand] = []
        self.late: list[Hand] = []
        self.asked: list[tuple[ChunkId | str, str]] = []
        self.walks: list[Walk] = []
        self.taken: Counter[int] = Counter()
        self.doubts: Counter[int] = Counter()
        self.deaths: Counter[str] = Counter()
        self.letters = "q" * self.total
        self.version = 0
        self.tokens = 0
        self.history: list[str] = []

    # Redis, read and turned

    def key(self, *parts: str) -> str:
        return self.outbox.wire.key(*parts)

    def email(self, position: int) -> str:
        return f"{self.id}-{position}"

    def now(self) -> int:
        seconds, micros = self.redis.time()
        return seconds * 1000 + micros // 1000

    def note(self, *words: object) -> None:
        self.history.append(" ".join(str(word) for word in words))

    def place(self, what: ChunkId | str) -> tuple[str, str]:
        """The key of what is leased, and its entry among what is due."""
        if isinstance(what, ChunkId):
            return self.key("chunk", self.id, str(what.number)), str(what.number)
        return self.key("email", what), what

    def run_out(self, key: str, entry: str) -> None:
        now = self.now()
        if int(cast("str | None", self.redis.hget(key, "lease")) or 0) > now:
            self.deaths[entry] += 1
        self.redis.hset(key, "lease", now - 1)
        self.redis.zadd(self.key("due", self.id), {entry: now - 1}, xx=True)
        self.redis.zadd(self.key("due", "bulk"), {self.id: now - 1}, xx=True, lt=True)

    def is_ours(self, claim: ChunkClaim | Claim) -> bool:
        key, _ = self.place(ChunkId.parse(claim.id) if isinstance(claim, ChunkClaim) else claim.id)
        return self.redis.hget(key, "token") == claim.token

    def lapse(self, hand: Hand) -> None:
        """The lease of a hand runs out."""
        if self.is_ours(hand.claim):
            self.lapse_all(ChunkId.parse(hand.claim.id) if isinstance(hand.claim, ChunkClaim) else hand.claim.id)

    def lapse_all(self, what: ChunkId | str) -> None:
        """Whoever holds this, its lease runs out: a claim whose answer was lost."""
        key, entry = self.place(what)
        if self.redis.hexists(key, "lease"):
            self.run_out(key, entry)

    def time_passes(self) -> None:
        """What waits for a time, but for leases, has it now."""
        now = self.now()
        for entry, _ in self.due():
            key, _ = self.place(ChunkId(self.id, int(entry)) if entry.isdecimal() else entry)
            held = int(cast("str | None", self.redis.hget(key, "lease")) or 0) > now
            if self.redis.hexists(key, "next"):
                self.redis.hset(key, "next", now - 1)
            if not held:
                self.redis.zadd(self.key("due", self.id), {entry: now - 1}, xx=True)
        self.redis.zadd(self.key("due", "bulk"), {self.id: now - 1}, xx=True, lt=True)
        self.open_gates()

    def open_gates(self) -> None:
        for gate in ("gate:smtp", "gate:bulk"):
            if self.redis.exists(self.key(gate)):
                self.redis.hset(self.key(gate), "next", self.now() - 1)
        self.redis.delete(self.key("pace", "bulk"))

    def due(self) -> list[tuple[str, float]]:
        return cast("list[tuple[str, float]]", self.redis.zrange(self.key("due", self.id), 0, -1, withscores=True))

    # Workers

    def token(self) -> str:
        self.tokens += 1
        return f"token-{self.tokens}"

    def ask(self, what: ChunkId | str, token: str) -> None:
        """A claim whose answer may be lost, and which is then repeated, at once or a little later."""
        self.outbox.trusts = self.random.random() < 0.9
        lost = self.random.random()
        size = self.random.randint(1, 4)
        answer: Any
        if isinstance(what, ChunkId):
            answer = self.chunks.claim(what, token, "node", size=size)
            if lost < 0.15:
                again = self.chunks.claim(what, token, "node", size=size)
                if isinstance(answer, ChunkClaim):
                    assert isinstance(again, ChunkClaim)
                    assert again.positions == answer.positions
                answer = again
        else:
            answer = self.outbox.claim(what, token, "node")
            if lost < 0.15:
                repeated = self.outbox.claim(what, token, "node")
                assert isinstance(repeated, Claim) == isinstance(answer, Claim)
                answer = repeated
        self.note("ask", what, token, type(answer).__name__, getattr(answer, "positions", ""))
        if lost > 0.93:
            self.asked.append((what, token))
        elif isinstance(answer, ChunkClaim):
            self.hands.append(Hand(answer, list(answer.positions), leaves=self.random.random() < 0.3))
        elif isinstance(answer, Claim):
            position = int(answer.id.rpartition("-")[2])
            self.begin(hand := Hand(answer, [position]))
            self.hands.append(hand)

    def claim(self) -> None:
        entries = [entry for entry, _ in self.due()]
        if entries and self.random.random() < 0.8:
            entry = self.random.choice(entries)
            self.ask(ChunkId(self.id, int(entry)) if entry.isdecimal() else entry, self.token())
        else:
            self.ask(ChunkId(self.id, self.random.randint(0, (self.total - 1) // CHUNK)), self.token())

    def ask_again(self) -> None:
        if self.asked:
            self.ask(*self.asked.pop(self.random.randrange(len(self.asked))))

    def sweep(self) -> None:
        for due in self.outbox.sweep(Lane.BULK, self.random.randint(0, 4), "node").due:
            if self.random.random() < 0.7:
                self.ask(ChunkId.parse(due.id) if ":" in due.id else due.id, self.token())

    def begin(self, hand: Hand) -> None:
        """A mail enters SMTP. Whoever tried it before must have ended in a way that is written down."""
        position = hand.position
        assert self.letters[position] not in "sS", f"{position} was sent, and is sent to again"
        assert self.excuses(position) >= self.doubts[position], f"{position} is sent to again without a word"
        self.doubts[position] += 1
        hand.in_smtp = True

    def excuses(self, position: int) -> int:
        """How often it was written down that a second copy is possible, or somebody asked for it."""
        log = cast("str | None", self.redis.hget(self.key("email", self.email(position)), "log")) or ""
        return len(EXCUSE.findall(log))

    def work(self, hand: Hand) -> None:
        """The next thing that a worker does with what it has in hand."""
        claim = hand.claim
        if hand.in_smtp:
            hand.in_smtp = False
            position, lot = hand.position, self.random.random()
            if lot < 0.6:
                self.taken[position] += 1
                outcome = SENT
            elif lot < 0.7:
                self.taken[position] += self.random.randint(0, 1)
                outcome = LOST
            else:
                outcome = self.random.choice(NOT_TAKEN)
            hand.results.append(Result(position, *outcome))
            self.note(claim.token, position, outcome[0], outcome[1])
            hand.over = outcome is not SENT or len(hand.results) == len(hand.positions)
        elif hand.over or isinstance(claim, Claim) or not hand.positions or self.random.random() < 0.1:
            self.end(hand)
        else:
            before = hand.results[-1] if hand.results else None
            marked = self.chunks.mark(claim, hand.position, "node", before)
            if self.random.random() < 0.2:
                assert self.chunks.mark(claim, hand.position, "node", before) == marked
            self.note(claim.token, "marks", hand.position, marked)
            if marked:
                self.begin(hand)
            else:
                hand.over = True

    def end(self, hand: Hand) -> None:
        self.hands.remove(hand)
        self.settle(hand)
        if self.random.random() < 0.3:
            self.late.append(hand)

    def settle(self, hand: Hand) -> None:
        claim = hand.claim
        ours = self.is_ours(claim)
        self.write(hand)
        self.note("settled", claim.token, "ours" if ours else "late", [result[:2] for result in hand.given])
        for result in hand.results if ours else ():
            # Written down as not taken, or with its doubt: the next attempt needs no excuse of its own.
            if result.outcome != "sent" and "unknown" not in result.arguments:
                self.doubts[result.position] -= 1

    def write(self, hand: Hand) -> None:
        claim = hand.claim
        if isinstance(claim, ChunkClaim):
            self.chunks.settle(claim, "node", hand.given, leave=hand.leaves)
        else:
            result = hand.given[0]
            self.outbox.settle(claim.id, claim.token, result.outcome, **result.arguments)
        # Slots lie in the future of the real clock, which no seed knows.
        self.redis.delete(self.key("pace", "bulk"))

    def step_hand(self) -> None:
        if self.hands:
            self.work(self.random.choice(self.hands))

    def crash(self) -> None:
        """A worker dies with what it has in hand; the server may have taken the mail that was in SMTP."""
        if self.hands:
            hand = self.hands.pop(self.random.randrange(len(self.hands)))
            self.note("crash", hand.claim.token)
            if hand.in_smtp:
                self.taken[hand.position] += self.random.randint(0, 1)
            self.lapse(hand)
        elif self.asked:
            what, token = self.asked.pop()
            self.note("crash", token)
            self.lapse_all(what)

    def freeze(self) -> None:
        """A lease runs out, and its worker lives on without knowing."""
        if self.hands:
            hand = self.random.choice(self.hands)
            self.note("freeze", hand.claim.token)
            self.lapse(hand)

    def settle_again(self) -> None:
        """The answer to a settlement was lost: the same comes again, late."""
        if self.late:
            hand = self.late.pop(self.random.randrange(len(self.late)))
            self.note("again", hand.claim.token)
            self.write(hand)

    def renew(self) -> None:
        self.outbox.renew({hand.claim.id: hand.claim.token for hand in self.hands})

    # By hand

    def steer(self) -> None:
        verb = self.random.choice(["pause", "resume", "resume", "retry_failed", "release_held", "drop_held"])
        self.note(verb)
        with suppress(WrongState):
            for _ in range(self.random.randint(1, 2)):
                getattr(self.batches, verb)(self.id)

    def cancel(self) -> None:
        if self.random.random() < 0.08:
            self.note("cancel")
            with suppress(WrongState):
                if self.random.random() < 0.5:
                    self.batches.cancel(self.id)
                else:
                    self.outbox.wire.run("batch_steer", self.id, "cancel")

    def walk(self) -> None:
        if not self.walks or self.random.random() < 0.3:
            self.walks.append(Walk(self.random.choice(self.walkable()), self.token()))
        walk = self.random.choice(self.walks)
        self.note("walk", walk)
        for _ in range(self.random.randint(1, 2)):
            _, following = self.outbox.wire.run("batch_walk", self.id, walk.verb, walk.position, walk.token, 1)
        walk.position = following
        if walk.position < 0 or self.random.random() < 0.1:
            self.walks.remove(walk)

    def walkable(self) -> list[str]:
        state, expires = self.redis.hmget(self.key("batch", self.id), "state", "expires")
        verbs = ["retry", "release", "drop"]
        if state == "cancelled":
            verbs.append("cancel")
        if expires and int(expires) <= self.now():
            verbs.append("expire")
        return verbs

    def one_by_hand(self) -> None:
        verb, position = self.random.choice(["cancel", "retry"]), self.random.randrange(self.total)
        self.note(verb, position)
        with suppress(WrongState):
            for _ in range(self.random.randint(1, 2)):
                getattr(self.outbox, verb)(self.email(position))

    def tend(self) -> None:
        self.batches.tend()

    def expire(self) -> None:
        key, now = self.key("batch", self.id), self.now()
        if self.random.random() > 0.05 or not self.redis.hexists(key, "expires"):
            return
        self.note("its time runs out")
        self.redis.hset(key, "expires", now - 1)
        for position in range(self.total):
            if self.redis.exists(email := self.key("email", self.email(position))):
                self.redis.hset(email, "expires", now - 1)
                self.redis.zadd(self.key("ends"), {self.email(position): now - 1}, xx=True)

    def step(self) -> None:
        actions = {
            self.step_hand: 40,
            self.claim: 14,
            self.sweep: 4,
            self.ask_again: 2,
            self.crash: 3,
            self.freeze: 3,
            self.settle_again: 3,
            self.renew: 1,
            self.steer: 3,
            self.cancel: 1,
            self.walk: 3,
            self.one_by_hand: 2,
            self.tend: 2,
            self.expire: 1,
            self.time_passes: 6,
        }
        self.random.choices(list(actions), list(actions.values()))[0]()

    # What must hold

    def check(self) -> None:
        batch = cast("dict[str, str]", self.redis.hgetall(self.key("batch", self.id)))
        letters = cast("str", self.redis.get(self.key("states", self.id)))
        assert len(letters) == self.total
        self.check_counts(batch, letters)
        self.check_records(letters)
        self.check_measured(letters)
        self.check_reachable(batch, letters)
        self.check_hands(letters)
        for position, (before, after) in enumerate(zip(self.letters, letters, strict=True)):
            assert before not in "sS" or after == before, f"{position} was sent, and is {after}"
        assert int(batch["version"]) >= self.version
        self.letters, self.version = letters, int(batch["version"])

    def check_counts(self, batch: dict[str, str], letters: str) -> None:
        counts = {name[2:]: int(value) for name, value in batch.items() if name.startswith("n:") and value != "0"}
        assert counts == Counter(LETTERS[letter].value for letter in letters.lower())
        left = sum(letter not in FINAL for letter in letters.lower())
        assert int(batch["open"]) == left
        live = self.redis.zscore(self.key("batches", "live"), self.id) is not None
        if left:
            assert batch["state"] in {"queued", "sending", "paused", "cancelled"}
            assert "finished" not in batch
            assert live
        else:
            assert batch["state"] in {"finished", "cancelled"}
            assert "finished" in batch
            assert not live

    def check_records(self, letters: str) -> None:
        pipe = self.redis.pipeline(transaction=False)
        for position in range(self.total):
            pipe.hmget(self.key("email", self.email(position)), "state", "deaths")
        for state in State:
            pipe.zrange(self.key("state", state), 0, -1)
        answers = pipe.execute()
        states = [state for state, _ in answers[: self.total]]
        for position, (_, deaths) in enumerate(answers[: self.total]):
            assert int(deaths or 0) <= self.deaths[self.email(position)]
        assert states == [LETTERS[one.lower()].value if one.isupper() else None for one in letters]
        for state, found in zip(State, answers[self.total :], strict=True):
            wanted = {self.email(at) for at, one in enumerate(states) if one == state.value}
            assert set(found) == (set() if state is State.SENT else wanted)

    def check_measured(self, letters: str) -> None:
        """What is counted for the outside is what there is."""
        found = self.outbox.measure()
        emails = {key: count for key, count in found.emails().items() if count}
        assert emails == Counter(("custom", Lane.BULK, LETTERS[letter]) for letter in letters.lower())
        pipe = self.redis.pipeline(transaction=False)
        for position in range(self.total):
            pipe.hexists(self.key("email", self.email(position)), "duplicate")
        assert found.copies.get(("custom", Lane.BULK), 0) == sum(pipe.execute())

    def check_reachable(self, batch: dict[str, str], letters: str) -> None:
        """Whoever has not ended is looked at by somebody, some time soon."""
        due, latest = dict(self.due()), self.now() + 120_000
        for position, letter in enumerate(letters):
            chunk = str(position // CHUNK)
            # Waiting mail of a cancelled batch is for the next look of `tend`.
            if letter.lower() not in FINAL and (batch["state"] != "cancelled" or letter not in "qQR"):
                entry = self.email(position) if letter.isupper() else chunk
                assert due.get(entry, latest) < latest, f"nobody looks at {position}, which is {letter}"
            if letter == "i":
                assert self.redis.hexists(self.key("chunk", self.id, chunk), "token"), f"nobody sends to {position}"
        if int(batch["open"]) and batch["state"] != "paused":
            first = self.redis.zscore(self.key("due", "bulk"), self.id)
            assert first is not None or not due, "nobody looks at the batch"
            assert not due or first is None or first <= max(self.now(), min(due.values()))

    def check_hands(self, letters: str) -> None:
        """What a worker has in hand nobody takes out of it."""
        for hand in self.hands:
            claim = hand.claim
            if self.is_ours(claim):
                found = {at: letters[at] for at in hand.positions}
                right = {"i", "s"} if isinstance(claim, ChunkClaim) else {"I"}
                assert set(found.values()) <= right, f"{claim.token} holds {found}"

    # The end

    def finish(self) -> None:
        """Every worker dies; others, woken by nothing but the sweep, bring the batch to its end."""
        self.outbox.trusts = True
        for hand in self.hands:
            if hand.in_smtp:
                self.taken[hand.position] += self.random.randint(0, 1)
            self.lapse(hand)
        for what, _ in self.asked:
            self.lapse_all(what)
        with suppress(WrongState):
            self.batches.resume(self.id)
        for turn in range(400):
            if self.batches.batch(self.id).ended:
                break
            self.note("round", turn)
            self.tend()
            self.time_passes()
            for due in self.outbox.sweep(Lane.BULK, 5, "node").due:
                self.deliver(due.id)
                self.check()
        assert self.batches.batch(self.id).ended
        while self.late:
            self.settle_again()
            self.check()
        self.check_truth()

    def deliver(self, entry: str) -> None:
        token = self.token()
        claim: Any
        if ":" in entry:
            claim = self.chunks.claim(ChunkId.parse(entry), token, "node")
        else:
            claim = self.outbox.claim(entry, token, "node")
        self.note("deliver", entry, claim)
        if isinstance(claim, ChunkClaim | Claim):
            positions = claim.positions if isinstance(claim, ChunkClaim) else [int(claim.id.rpartition("-")[2])]
            hand = Hand(claim, list(positions))
            while len(hand.results) < len(hand.positions):
                if isinstance(claim, ChunkClaim):
                    before = hand.results[-1] if hand.results else None
                    assert self.chunks.mark(claim, hand.position, "node", before)
                self.begin(hand)
                self.taken[hand.position] += 1
                hand.results.append(Result(hand.position, *SENT))
            self.settle(hand)

    def check_truth(self) -> None:
        for record in self.batches.records(self.id, limit=self.total).items:
            position = int(record.id.rpartition("-")[2])
            taken, excuses = self.taken[position], self.excuses(position)
            assert taken <= 1 + excuses, f"{position} has {taken} copies"
            if record.state is State.SENT:
                assert taken, f"{position} was not sent to"
            elif taken:
                log = cast("str | None", self.redis.hget(self.key("email", record.id), "log")) or ""
                assert record.possible_duplicate or "nobody can tell" in log, f"{position} is {record.state}"


@pytest.fixture
def outbox(valkey: Valkey) -> Iterator[Trusting]:
    outbox = Trusting(
        valkey.client(),
        prefix=f"m{uuid.uuid4().hex[:8]}:",
        vault=Vault([Fernet.generate_key().decode()]),
        numbers=Numbers(lease=timedelta(seconds=60), death_pause=timedelta(seconds=1)),
    )
    yield outbox
    outbox.close()


@pytest.mark.parametrize("seed", range(SEEDS), ids=lambda seed: f"seed-{seed}")
def test_a_history(outbox: Trusting, seed: int) -> None:
    driver = Driver(outbox, seed)
    try:
        for _ in range(STEPS):
            driver.step()
            driver.check()
        driver.finish()
    except BaseException:
        print("\n".join(driver.history[-60:]))
        raise

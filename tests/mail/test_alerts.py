"""Alerts: which change is worth one; one per change, over all processes; none lost on the way to a real receiver."""

import itertools
import json
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

import pytest
from cryptography.fernet import Fernet

from mail import alerts
from mail.alerts import Alerter, NotPosted, Thresholds
from mail.answers import Numbers
from mail.kinds import CertificateEmail, Lane, WelcomeEmail
from mail.outbox import Outbox
from mail.vault import Vault
from support.processes import Valkey, wait_until
from support.receiver import SECRET, Receiver, verify
from utils import webhook
from utils.webhook import Webhook

NOW = Thresholds(interval=timedelta(0), lane_still=timedelta(minutes=5))

_count = itertools.count()


@pytest.fixture
def make(valkey: Valkey) -> Iterator[Callable[[], Outbox]]:
    """Outboxes of several processes on one Redis."""
    prefix = f"al{uuid.uuid4().hex[:8]}:"
    vault = Vault([Fernet.generate_key().decode()])
    with ExitStack() as stack:

        def build() -> Outbox:
            outbox = Outbox(valkey.client(), prefix=prefix, vault=vault, numbers=Numbers())
            stack.callback(outbox.close)
            return outbox

        yield build


@pytest.fixture
def outbox(make: Callable[[], Outbox]) -> Outbox:
    return make()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as one:
        yield one


@pytest.fixture
def alerter(outbox: Outbox, receiver: Receiver) -> Alerter:
    return Alerter(outbox, Webhook(receiver.url, SECRET), NOW)


def fail(outbox: Outbox, email: Any = None, **arguments: Any) -> str:
    one = email or WelcomeEmail(to=f"planted{next(_count)}@example.com", name="Planted")
    email_id = outbox.accept(one).id
    outbox.claim(email_id, "t", "node")
    given = {"code": 550, "error": "550 planted", "reply": "planted", "cap": 1000, **arguments}
    assert outbox.settle(email_id, "t", "failed", **given).state == "failed"
    return email_id


def still(outbox: Outbox, seconds: float, lane: Lane = Lane.STANDARD) -> None:
    """The lane owes mail since then."""
    now = int(time.time() * 1000)
    outbox.wire.client.hset(outbox.wire.key("lane", lane), mapping={"owed": now - int(seconds * 1000), "woken": 1})


def run(alerter: Alerter) -> None:
    """What its thread does in one round."""
    while alerter.look() or alerter.deliver():
        pass


def events(receiver: Receiver) -> list[tuple[str, dict[str, Any]]]:
    return [(call.content["type"], call.content["data"]) for call in receiver.taken]


class TestNews:
    def test_nothing(self, alerter: Alerter, outbox: Outbox, receiver: Receiver) -> None:
        email_id = outbox.accept(WelcomeEmail.sample()).id
        outbox.claim(email_id, "t", "node")
        outbox.settle(email_id, "t", "retry", error="451", delay=1, attempts=5)
        outbox.cancel(email_id)
        run(alerter)
        assert receiver.calls == []

    def test_dead_letters_by_kind_lane_and_cause(self, alerter: Alerter, outbox: Outbox, receiver: Receiver) -> None:
        for _ in range(3):
            fail(outbox)
        fail(outbox, CertificateEmail.sample(), code=None)
        run(alerter)
        run(alerter)
        ((kind, data),) = events(receiver)
        assert kind == "dead_letters.grown"
        assert data == {
            "count": 4,
            "since": None,
            "groups": [
                {"state": "failed", "kind": "certificate", "lane": "standard", "cause": "unfit", "count": 1},
                {"state": "failed", "kind": "welcome", "lane": "standard", "cause": "refused", "count": 3},
            ],
            "look": ["/api/emails?state=failed"],
        }
        fail(outbox)
        run(alerter)
        _, data = events(receiver)[1]
        assert (data["count"], data["groups"][0]["count"]) == (1, 1)
        assert data["since"]
        for call in receiver.calls:
            verify(call)
            assert "planted" not in call.body.lower()
            assert "@" not in call.body
        assert len({call.id for call in receiver.calls}) == 2

    def test_not_more_often_than_told(self, outbox: Outbox, receiver: Receiver) -> None:
        alerter = Alerter(outbox, Webhook(receiver.url, SECRET), Thresholds(interval=timedelta(seconds=1)))
        begun = time.monotonic()
        for _ in range(100):
            fail(outbox)
            run(alerter)
        wait_until(lambda: run(alerter) or self.told(receiver) == 100, what="all to be told")
        assert len(receiver.calls) <= 2 + (time.monotonic() - begun)

    def told(self, receiver: Receiver) -> int:
        return sum(data["count"] for _, data in events(receiver))

    def test_a_threshold(self, outbox: Outbox, receiver: Receiver) -> None:
        thresholds = Thresholds(dead_letters=3, interval=timedelta(0))
        alerter = Alerter(outbox, Webhook(receiver.url, SECRET), thresholds)
        for wanted in ([], [], [3]):
            fail(outbox)
            run(alerter)
            assert [data["count"] for _, data in events(receiver)] == wanted

    def test_one_that_fails_again_after_a_retry_is_told_again(
        self, alerter: Alerter, outbox: Outbox, receiver: Receiver
    ) -> None:
        email_id = fail(outbox)
        run(alerter)
        outbox.retry(email_id)
        run(alerter)
        outbox.claim(email_id, "u", "node")
        outbox.settle(email_id, "u", "failed", code=550, error="again", cap=1000)
        run(alerter)
        assert [data["count"] for _, data in events(receiver)] == [1, 1]

    def test_a_lane_that_stands_still_and_moves_again(
        self, alerter: Alerter, outbox: Outbox, receiver: Receiver
    ) -> None:
        still(outbox, 290)
        run(alerter)
        assert receiver.calls == []
        still(outbox, 310)
        run(alerter)
        run(alerter)
        ((kind, data),) = events(receiver)
        assert (kind, data["lane"], data["reason"]) == ("lane.stopped", "standard", "no_worker")
        assert "start_celery.sh" in data["advice"]
        outbox.wire.client.hset(outbox.wire.key("lane", "standard"), "woken", int(time.time() * 1000))
        run(alerter)
        run(alerter)
        assert events(receiver)[1:] == [("lane.moving", {"lane": "standard"})]

    def test_one_whose_workers_live(self, alerter: Alerter, outbox: Outbox, receiver: Receiver) -> None:
        outbox.sweep(Lane.STANDARD, 0, "node")
        still(outbox, 310)
        run(alerter)
        ((_, data),) = events(receiver)
        assert data["reason"] == "no_progress"

    def test_one_behind_a_closed_gate(self, alerter: Alerter, outbox: Outbox, receiver: Receiver) -> None:
        email_id = outbox.accept(WelcomeEmail.sample()).id
        outbox.sweep(Lane.STANDARD, 0, "node")
        outbox.claim(email_id, "t", "node")
        words = "535 planted@example.com wrong password"
        outbox.settle(email_id, "t", "release", gate="smtp", error=words, cap=60_000)
        run(alerter)
        assert receiver.calls == []
        gate, now = outbox.wire.key("gate", "smtp"), int(time.time() * 1000)
        outbox.wire.client.hset(gate, "since", now - 301_000)
        run(alerter)
        ((_, data),) = events(receiver)
        assert (data["lane"], data["reason"], data["due"]) == ("standard", "smtp", 1)
        assert "planted" not in receiver.calls[0].body, "the words of the server are for /health/ready"
        outbox.wire.client.delete(gate)
        run(alerter)
        assert events(receiver)[1] == ("lane.moving", {"lane": "standard"})


class TestOnce:
    def test_over_many_processes(self, make: Callable[[], Outbox], receiver: Receiver) -> None:
        outboxes = [make() for _ in range(6)]
        alerters = [Alerter(one, Webhook(receiver.url, SECRET), NOW) for one in outboxes]
        for turn in range(5):
            fail(outboxes[0])
            still(outboxes[0], 310 if turn % 2 == 0 else -1)
            with ThreadPoolExecutor(6) as pool:
                list(pool.map(run, alerters))
            # Whoever lost the race for sending has left it to another.
            run(alerters[0])
        kinds = Counter(kind for kind, _ in events(receiver))
        assert kinds == {"dead_letters.grown": 5, "lane.stopped": 3, "lane.moving": 2}
        assert sum(data.get("count", 0) for _, data in events(receiver)) == 5
        assert len({call.id for call in receiver.calls}) == len(receiver.calls)

    def test_when_every_answer_of_redis_is_lost_once(self, outbox: Outbox, receiver: Receiver) -> None:
        call = outbox.wire._call

        def repeated(*arguments: Any) -> Any:
            call(*arguments)
            return call(*arguments)

        outbox.wire._call = repeated
        alerter = Alerter(outbox, Webhook(receiver.url, SECRET), NOW)
        for _ in range(3):
            fail(outbox)
            run(alerter)
        assert [data["count"] for _, data in events(receiver)] == [1, 1, 1]

    def test_a_process_that_dies_while_it_sends(
        self, make: Callable[[], Outbox], receiver: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Another sends the same alert under the same id, once the lease has run out."""
        monkeypatch.setattr(alerts, "LEASE", timedelta(milliseconds=300))

        class Died(BaseException):
            pass

        def die(message_id: str, body: str) -> None:
            Webhook(receiver.url, SECRET)(message_id, body)
            raise Died

        outbox = make()
        fail(outbox)
        with pytest.raises(Died):
            run(Alerter(outbox, die, NOW))
        survivor = Alerter(make(), Webhook(receiver.url, SECRET), NOW)
        run(survivor)
        assert len(receiver.calls) == 1, "the lease of the dead one holds"
        wait_until(lambda: run(survivor) or len(receiver.calls) == 2, what="the second call")
        first, second = receiver.calls
        assert (first.id, first.body) == (second.id, second.body)
        run(survivor)
        assert len(receiver.calls) == 2

    def test_one_that_was_frozen_while_it_sent(
        self, make: Callable[[], Outbox], receiver: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its success counts, and takes nothing else away, however late it comes."""
        monkeypatch.setattr(alerts, "LEASE", timedelta(milliseconds=1))
        other = Alerter(make(), Webhook(receiver.url, SECRET), NOW)

        def slow(message_id: str, body: str) -> None:
            time.sleep(0.01)
            run(other)
            fail(outbox)
            other.look()

        outbox = make()
        fail(outbox)
        alerter = Alerter(outbox, slow, NOW)
        alerter.look()
        assert alerter.deliver()
        run(other)
        assert [data["count"] for _, data in events(receiver)] == [1, 1]

    def test_one_that_another_has_just_taken_over_from(
        self, outbox: Outbox, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The receiver has it, so nobody need send it again."""
        monkeypatch.setattr(alerts, "LEASE", timedelta(milliseconds=1))

        def slow(message_id: str, body: str) -> None:
            time.sleep(0.01)
            assert outbox.wire.run("alert_take", "another", 60_000)[1] == message_id

        fail(outbox)
        alerter = Alerter(outbox, slow, NOW)
        alerter.look()
        assert alerter.deliver()
        assert outbox.measure().alerts_pending == 0
        outbox.wire.run("alert_settle", "another", "msg_it_had", 60_000)
        fail(outbox)
        run(Alerter(outbox, Webhook(receiver.url, SECRET), NOW))
        assert len(receiver.taken) == 1


class TestRetries:
    def test_until_a_2xx_with_the_same_id_and_body(
        self, alerter: Alerter, outbox: Outbox, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(alerts, "FIRST_PAUSE", 0.1)
        receiver.answers[:] = [500, "cut", 404]
        fail(outbox)
        run(alerter)
        assert len(receiver.calls) == 1
        fail(outbox)  # while the first is on its way: gathers for the next
        assert outbox.measure().alerts_pending == 1
        wait_until(lambda: run(alerter) or len(receiver.taken) == 2, what="both to be taken")
        *tries, last = receiver.calls
        assert len({(call.id, call.body) for call in tries}) == 1
        assert len(tries) == 4
        assert last.id != tries[0].id
        pauses = [after.at - before.at for before, after in itertools.pairwise(tries)]
        for pause, wanted in zip(pauses, (0.1, 0.2, 0.4), strict=True):
            assert pause >= 0.8 * wanted
        for call in receiver.calls:
            verify(call)
        assert outbox.measure().alerts_pending == 0

    def test_the_pause_grows_to_ten_minutes(self, outbox: Outbox) -> None:
        def refuse(message_id: str, body: str) -> None:
            raise NotPosted("the receiver answered 500")

        alerter, key = Alerter(outbox, refuse, NOW), outbox.wire.key("alerts")
        fail(outbox)
        alerter.look()
        pauses = []
        for _ in range(12):
            outbox.wire.client.hset(key, "next", 0)
            assert not alerter.deliver()
            pauses.append(int(outbox.wire.client.hget(key, "next")) / 1000 - time.time())
        assert 3 < pauses[0] < 7
        assert 470 < pauses[-1] < 730
        assert not alerter.deliver(), "it is not yet time"

    def test_a_dead_receiver_does_not_fill_redis(self, outbox: Outbox) -> None:
        def refuse(message_id: str, body: str) -> None:
            raise NotPosted("nobody there")

        alerter = Alerter(outbox, refuse, NOW)
        for turn in range(150):
            fail(outbox)
            still(outbox, 310 if turn % 2 == 0 else -1)
            run(alerter)
        assert outbox.measure().alerts_pending <= alerts.MAX_PENDING

    def test_what_waits_survives_everybody(self, make: Callable[[], Outbox], receiver: Receiver) -> None:
        outbox = make()
        fail(outbox)
        Alerter(outbox, Webhook(receiver.url, SECRET), NOW).look()
        outbox.close()
        run(Alerter(make(), Webhook(receiver.url, SECRET), NOW))
        assert len(receiver.taken) == 1

    def test_what_was_told_is_kept_as_json_without_names(self, alerter: Alerter, outbox: Outbox) -> None:
        fail(outbox)
        run(alerter)
        told = json.loads(outbox.wire.client.hget(outbox.wire.key("alerts"), "told"))
        assert told["dead"] == [[["failed", "welcome", "standard", "refused"], 1]]


class TestThread:
    def test_it_tells_and_stops(self, outbox: Outbox, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(alerts, "LOOK_EVERY", 0.05)
        alerter = Alerter(outbox, Webhook(receiver.url, SECRET), NOW)
        alerter.start()
        fail(outbox)
        wait_until(lambda: len(receiver.taken) == 1, what="the alert")
        alerter.stop()
        assert not alerter._thread.is_alive()

    def test_one_that_hangs_in_a_call_stops_nobody(
        self, outbox: Outbox, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(alerts, "LOOK_EVERY", 0.05)
        monkeypatch.setattr(webhook, "PATIENCE", 4.0)
        receiver.answers[:] = ["hang"]
        alerter = Alerter(outbox, Webhook(receiver.url, SECRET), NOW)
        alerter.start()
        fail(outbox)
        wait_until(lambda: bool(receiver.calls), what="the call")
        begun = time.monotonic()
        alerter.stop()
        assert time.monotonic() - begun < 3

    def test_it_outlives_a_bug(self, outbox: Outbox, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(alerts, "LOOK_EVERY", 0.05)
        tries = iter([ZeroDivisionError(), None])
        post = Webhook(receiver.url, SECRET)

        def flawed(message_id: str, body: str) -> None:
            if fault := next(tries, None):
                raise fault
            post(message_id, body)

        monkeypatch.setattr(alerts, "LEASE", timedelta(milliseconds=10))
        alerter = Alerter(outbox, flawed, NOW)
        alerter.start()
        fail(outbox)
        wait_until(lambda: len(receiver.taken) == 1, what="the alert")
        alerter.stop()

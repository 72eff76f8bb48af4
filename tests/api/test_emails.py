"""`/api/emails` and `/api/tasks`: accept, look up, list, cancel, retry, repeat."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from api.schemas import ChangeView, EmailAccepted, EmailRecord, EmailSummary
from mail.answers import Claim
from mail.kinds import KINDS
from mail.outbox import Outbox
from mail.records import State
from support.api import TestClient, bearer, faults, problem
from support.service import WELCOME

TOKEN = "s3cr3t-t0ken-of-a-link"
SECRETS = {
    "password_reset": {"reset_url": f"https://lms.example.com/reset?token={TOKEN}"},
    "email_verification": {"verification_url": f"https://lms.example.com/verify/{TOKEN}"},
}

every_kind = pytest.mark.parametrize("kind", KINDS)


def body_of(kind: str, **more: Any) -> dict[str, Any]:
    return {**KINDS[kind].sample().model_dump(mode="json", exclude_none=True), **SECRETS.get(kind, {}), **more}


def in_(**period: float) -> str:
    return (datetime.now(UTC) + timedelta(**period)).isoformat()


def accepted(client: TestClient, body: dict[str, Any] | None = None, **headers: str) -> str:
    answer = client.post("/api/emails", json=body or WELCOME, headers=headers)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def failed(outbox: Outbox, email_id: str) -> None:
    """A worker was told 550."""
    assert isinstance(outbox.claim(email_id, "t1", "node"), Claim)
    outbox.settle(email_id, "t1", "failed", code=550, reply="no such user", error="550 no such user", cap=1000)


@every_kind
class TestEveryKind:
    def test_accepted_and_looked_up(self, client: TestClient, kind: str) -> None:
        body = body_of(kind, reply_to="desk@example.com", from_name="Registry")
        answer = client.post("/api/emails", json=body)
        assert answer.status_code == 202, answer.text
        assert set(answer.json()) == set(EmailAccepted.model_fields)
        email_id = answer.json()["id"]
        assert answer.json() == {
            "id": email_id,
            "state": "queued",
            "kind": kind,
            "to": body["to"],
            "status_url": f"/api/emails/{email_id}",
        }
        assert "Idempotent-Replayed" not in answer.headers

        record = client.get(answer.json()["status_url"]).json()
        assert set(record) == set(EmailRecord.model_fields)
        shown = {**body, **dict.fromkeys(SECRETS.get(kind, {}), "***")}
        assert record["fields"] == {name: shown[name] for name in shown if name not in ("kind", "to")}
        assert (record["id"], record["kind"], record["to"]) == (email_id, kind, body["to"])
        assert (record["state"], record["attempts"], record["lane"]) == ("queued", 0, KINDS[kind].lane)
        assert record["error"] is record["sent_at"] is record["smtp_code"] is record["send_at"] is None
        assert record["possible_duplicate"] is False
        [change] = record["timeline"]
        assert set(change) == set(ChangeView.model_fields)
        assert (change["state"], change["at"]) == ("queued", record["created_at"])
        assert abs(datetime.fromisoformat(record["created_at"]) - datetime.now(UTC)) < timedelta(seconds=60)
        valid_for = KINDS[kind].valid_for
        if valid_for is None:
            assert record["expires_at"] is None
        else:
            lives = datetime.fromisoformat(record["expires_at"]) - datetime.fromisoformat(record["created_at"])
            assert lives == valid_for

    def test_no_answer_shows_a_secret(self, client: TestClient, outbox: Outbox, kind: str) -> None:
        body = body_of(kind)
        shown = []

        def ask(method: str, path: str, status: int = 200, **more: Any) -> None:
            answer = client.request(method, path, **more)
            assert answer.status_code == status, answer.text
            shown.append(f"{answer.headers} {answer.text}")

        email_id = accepted(client, body, **{"Idempotency-Key": "k"})
        ask("POST", "/api/emails", 202, json=body, headers={"Idempotency-Key": "k"})
        ask("POST", "/api/emails", 409, json={**body, "from_name": "X"}, headers={"Idempotency-Key": "k"})
        failed(outbox, email_id)
        ask("GET", f"/api/emails/{email_id}")
        ask("POST", f"/api/emails/{email_id}/retry")
        ask("POST", f"/api/emails/{email_id}/retry", 409)
        ask("GET", "/api/emails")
        ask("GET", f"/api/tasks/{email_id}")
        ask("POST", f"/api/emails/{email_id}/cancel")
        ask("GET", f"/api/emails/{email_id}")
        ask("GET", "/health/ready")
        assert not [text for text in shown if TOKEN in text]


class TestTimes:
    def test_send_at(self, client: TestClient) -> None:
        send_at = in_(hours=1)
        answer = client.post("/api/emails", json={**WELCOME, "send_at": send_at})
        assert answer.json()["state"] == "scheduled"
        record = client.get(answer.json()["status_url"]).json()
        due = datetime.fromisoformat(send_at).replace(microsecond=0)
        for name in ("send_at", "next_attempt_at"):
            assert datetime.fromisoformat(record[name]).replace(microsecond=0) == due

    def test_any_zone_is_one_moment(self, client: TestClient) -> None:
        email_id = accepted(client, {**WELCOME, "send_at": "2040-01-01T00:30:00+05:30"})
        assert client.get(f"/api/emails/{email_id}").json()["send_at"] == "2039-12-31T19:00:00Z"

    @pytest.mark.parametrize(
        ("times", "field"),
        [
            ({"send_at": "2040-01-01T00:00:00"}, "send_at"),
            ({"expires_at": "2040-01-01T00:00:00"}, "expires_at"),
            ({"send_at": "2020-01-01T00:00:00Z"}, "send_at"),
            ({"send_at": "1969-12-31T23:00:00Z"}, "send_at"),
            ({"send_at": "1970-01-01T00:00:00Z"}, "send_at"),
            ({"send_at": "0001-01-01T00:00:00+23:59"}, "send_at"),
            ({"send_at": "9999-12-31T23:59:59-23:59"}, "send_at"),
            ({"send_at": 0}, "send_at"),
            ({"send_at": 1e300}, "send_at"),
            ({"send_at": 10**400}, "send_at"),
            ({"send_at": "tomorrow"}, "send_at"),
            ({"send_at": True}, "send_at"),
            ({"expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
            ({"expires_at": "0001-01-01T00:00:00Z"}, "expires_at"),
            ({"send_at": "2040-01-02T00:00:00Z", "expires_at": "2040-01-01T00:00:00Z"}, "expires_at"),
        ],
    )
    def test_impossible(
        self, client: TestClient, untouched: Callable[[], None], times: dict[str, Any], field: str
    ) -> None:
        assert set(faults(client.post("/api/emails", json={**WELCOME, **times}))) == {field}
        untouched()

    def test_a_reset_after_the_end_of_its_link(self, client: TestClient, untouched: Callable[[], None]) -> None:
        body = body_of("password_reset", send_at=in_(hours=2))
        assert "expires_at" in faults(client.post("/api/emails", json=body))["send_at"]
        untouched()
        accepted(client, {**body, "expires_at": in_(hours=3)})


class TestList:
    @pytest.fixture
    def ids(self, client: TestClient) -> list[str]:
        """Seven emails, oldest first: welcomes and certificates to two people in turn; the first is cancelled."""
        made = [
            accepted(client, body_of(kind, to=f"p{number % 2}@example.com"))
            for number, kind in enumerate(["welcome", "welcome", "certificate"] * 2 + ["welcome"])
        ]
        client.post(f"/api/emails/{made[0]}/cancel")
        return made

    def pages(self, client: TestClient, **query: Any) -> list[list[str]]:
        found, cursor = [], None
        while True:
            answer = client.get("/api/emails", params={**query, **({"cursor": cursor} if cursor else {})})
            assert answer.status_code == 200, answer.text
            page = answer.json()
            assert set(page) == {"items", "next"}
            assert all(set(item) == set(EmailSummary.model_fields) for item in page["items"])
            found.append([item["id"] for item in page["items"]])
            if (cursor := page["next"]) is None:
                return found

    def test_newest_first(self, client: TestClient, ids: list[str]) -> None:
        [page] = self.pages(client)
        records = [client.get(f"/api/emails/{one}").json() for one in page]
        assert set(page) == set(ids)
        assert [one["created_at"] for one in records] == sorted((one["created_at"] for one in records), reverse=True)

    def test_cursor(self, client: TestClient, ids: list[str]) -> None:
        [whole] = self.pages(client)
        pages = self.pages(client, limit=3)
        assert [one for page in pages for one in page] == whole
        assert [len(page) for page in pages if page] == [3, 3, 1]

    @pytest.mark.parametrize(
        ("query", "numbers"),
        [
            ({"to": "p1@example.com"}, {1, 3, 5}),
            ({"to": "P1@Example.COM"}, {1, 3, 5}),
            ({"kind": "certificate"}, {2, 5}),
            ({"state": "cancelled"}, {0}),
            ({"state": "queued"}, {1, 2, 3, 4, 5, 6}),
            ({"state": "sent"}, set()),
            ({"to": "p0@example.com", "kind": "welcome", "state": "queued"}, {4, 6}),
            ({"to": "nobody@example.com"}, set()),
        ],
    )
    def test_filters(self, client: TestClient, ids: list[str], query: dict[str, str], numbers: set[int]) -> None:
        for limit in (1, 200):
            found = [one for page in self.pages(client, **query, limit=limit) for one in page]
            assert sorted(found) == sorted(ids[number] for number in numbers)

    @pytest.mark.parametrize(
        "query",
        [
            {"limit": "0"},
            {"limit": "201"},
            {"limit": "many"},
            {"cursor": "not-ours"},
            {"cursor": "€"},
            {"cursor": "x" * 201},
            {"state": "lost"},
            {"kind": "spam"},
            {"to": "x" * 255},
        ],
    )
    def test_wrong_query(self, client: TestClient, query: dict[str, str]) -> None:
        assert set(faults(client.get("/api/emails", params=query))) == set(query)


class TestByHand:
    def test_cancel(self, client: TestClient, outbox: Outbox) -> None:
        email_id = accepted(client)
        for _ in range(2):  # the answer was lost, say
            answer = client.post(f"/api/emails/{email_id}/cancel")
            assert answer.status_code == 200
            assert answer.json() == client.get(f"/api/emails/{email_id}").json()
            assert [one["state"] for one in answer.json()["timeline"]] == ["queued", "cancelled"]
        assert outbox.claim(email_id, "t", "node") == State.CANCELLED

    @pytest.mark.parametrize("state", ["sending", "sent"])
    def test_too_late_to_cancel(self, client: TestClient, outbox: Outbox, state: str) -> None:
        email_id = accepted(client)
        outbox.claim(email_id, "t1", "node")
        if state == "sent":
            outbox.settle(email_id, "t1", "sent", code=250, reply="ok")
        assert state in problem(client.post(f"/api/emails/{email_id}/cancel"), 409)["detail"]
        assert client.get(f"/api/emails/{email_id}").json()["state"] == state

    def test_retry(self, client: TestClient, outbox: Outbox) -> None:
        email_id = accepted(client, body_of("password_reset"))
        failed(outbox, email_id)
        record = client.get(f"/api/emails/{email_id}").json()
        assert (record["state"], record["smtp_code"], record["smtp_reply"]) == ("failed", 550, "no such user")
        answer = client.post(f"/api/emails/{email_id}/retry")
        assert answer.status_code == 200
        record = answer.json()
        assert (record["state"], record["attempts"], record["error"]) == ("queued", 0, None)
        assert record["fields"]["reset_url"] == "***"
        assert [one["state"] for one in record["timeline"]] == ["queued", "sending", "failed", "queued"]

    def test_nothing_to_retry(self, client: TestClient) -> None:
        email_id = accepted(client)
        assert "queued" in problem(client.post(f"/api/emails/{email_id}/retry"), 409)["detail"]
        client.post(f"/api/emails/{email_id}/cancel")
        assert "cancelled" in problem(client.post(f"/api/emails/{email_id}/retry"), 409)["detail"]

    def test_a_newer_reset_replaces_the_older(self, client: TestClient) -> None:
        older, newer = (accepted(client, body_of("password_reset")) for _ in range(2))
        assert client.get(f"/api/emails/{older}").json()["state"] == "cancelled"
        assert client.get(f"/api/emails/{newer}").json()["state"] == "queued"

    @pytest.mark.parametrize("email_id", ["nobody", "%00", "a%0d%0ab", "%ff", "x" * 5000])
    def test_unknown_id(self, client: TestClient, email_id: str) -> None:
        for method, path in [
            ("GET", f"/api/emails/{email_id}"),
            ("POST", f"/api/emails/{email_id}/cancel"),
            ("POST", f"/api/emails/{email_id}/retry"),
            ("GET", f"/api/tasks/{email_id}"),
        ]:
            assert problem(client.request(method, path), 404)["detail"] == "There is no email with this id."


def test_task_status(client: TestClient, outbox: Outbox) -> None:
    email_id = accepted(client)
    status = {"task_id": email_id, "status": "PENDING", "state": "queued", "attempts": 0, "error": None}
    assert client.get(f"/api/tasks/{email_id}").json() == status
    failed(outbox, email_id)
    status |= {"status": "FAILURE", "state": "failed", "attempts": 1, "error": "550 no such user"}
    assert client.get(f"/api/tasks/{email_id}").json() == status


class TestIdempotency:
    def test_the_first_answer_again(self, client: TestClient, outbox: Outbox) -> None:
        first, again = (
            client.post("/api/emails", json=WELCOME, headers={"Idempotency-Key": "order-1"}) for _ in range(2)
        )
        assert first.status_code == again.status_code == 202
        assert first.json() == again.json()
        assert "Idempotent-Replayed" not in first.headers
        assert again.headers["Idempotent-Replayed"] == "true"
        assert len(outbox.list().items) == 1

    @pytest.mark.parametrize("change", [{"name": "Bob"}, {"from_name": "X"}, {"send_at": "2040-01-01T00:00:00Z"}])
    def test_another_body(self, client: TestClient, outbox: Outbox, change: dict[str, str]) -> None:
        headers = {"Idempotency-Key": "order-1"}
        accepted(client, None, **headers)
        answer = client.post("/api/emails", json={**WELCOME, **change}, headers=headers)
        assert "Idempotency-Key" in problem(answer, 409)["detail"]
        assert len(outbox.list().items) == 1

    def test_callers_do_not_share_keys(self, client: TestClient) -> None:
        mine = accepted(client, None, **{"Idempotency-Key": "order-1"})
        theirs = accepted(client, None, **{"Idempotency-Key": "order-1"}, **bearer("other-key"))
        assert mine != theirs

    def test_a_replay_is_no_mail_against_the_limit(self, client: TestClient) -> None:
        reset = body_of("password_reset")
        ids = {accepted(client, reset, **{"Idempotency-Key": "order-1"}) for _ in range(8)}
        assert len(ids) == 1

    @pytest.mark.parametrize("key", ["", "k" * 256])
    def test_length(self, client: TestClient, untouched: Callable[[], None], key: str) -> None:
        answer = client.post("/api/emails", json=WELCOME, headers={"Idempotency-Key": key})
        assert set(faults(answer)) == {"Idempotency-Key"}
        untouched()


def test_nobody_can_bomb_a_mailbox(client: TestClient) -> None:
    for kind in ("password_reset", "email_verification"):
        for _ in range(5):
            accepted(client, body_of(kind))
        answer = client.post("/api/emails", json=body_of(kind, to="ADA@example.com"))
        problem(answer, 429)
        assert 3500 < int(answer.headers["Retry-After"]) <= 3600
        accepted(client, body_of(kind, to="bob@example.com"))
    for _ in range(6):
        accepted(client, body_of("welcome"))


def test_of_a_name_given_twice_the_last_counts(client: TestClient) -> None:
    content = '{"kind":"welcome","to":"bob@example.com","to":"ada@example.com","name":"Ada"}'
    answer = client.post("/api/emails", content=content, headers={"Content-Type": "application/json"})
    assert answer.json()["to"] == "ada@example.com"
    assert client.get(answer.json()["status_url"]).json()["to"] == "ada@example.com"

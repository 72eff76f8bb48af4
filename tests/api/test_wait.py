"""`?wait=true`: sent within the request, past the outbox."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

from api.schemas import EmailDelivered
from mail.kinds import KINDS
from mail.outbox import Outbox
from support.api import TestClient, bearer, faults, problem
from support.service import WELCOME
from support.smtp_server import SmtpServer

TOKEN = "s3cr3t-t0ken-of-a-link"
RESET = {
    "kind": "password_reset",
    "to": "ada@example.com",
    "name": "Ada",
    "reset_url": f"https://lms.example.com/reset?token={TOKEN}",
}


def wait(client: TestClient, body: dict[str, Any] | None = None, **headers: str) -> Any:
    return client.post("/api/emails?wait=true", json=body or WELCOME, headers=headers)


@pytest.mark.parametrize("kind", KINDS)
def test_arrives_before_the_answer(client: TestClient, smtp: SmtpServer, outbox: Outbox, kind: str) -> None:
    body = KINDS[kind].sample().model_dump(mode="json", exclude_none=True)
    answer = wait(client, body)
    assert answer.status_code == 200, answer.text
    delivery = answer.json()
    assert set(delivery) == set(EmailDelivered.model_fields)
    assert (delivery["kind"], delivery["to"], delivery["state"]) == (kind, body["to"], "sent")
    assert (delivery["smtp_code"], delivery["smtp_reply"]) == (250, "2.0.0 taken")
    assert datetime.fromisoformat(delivery["sent_at"]).utcoffset() is not None
    [received] = smtp.messages
    assert received.recipients == (body["to"],)
    assert received.message["Message-ID"] == delivery["message_id"] == f"<{delivery['id']}@lms.example.com>"
    problem(client.get(f"/api/emails/{delivery['id']}"), 404)
    assert outbox.list().items == []


def test_refused(client: TestClient, smtp: SmtpServer) -> None:
    smtp.reply("rcpt", "550 5.1.1 no such user")
    detail = problem(wait(client), 502)["detail"]
    assert "was not sent" in detail
    assert "550" in detail
    assert "no such user" in detail
    assert smtp.verbs().count("RCPT") == 1


@pytest.mark.parametrize("reply", ["451 4.3.0 later", "421 4.7.0 too busy"])
def test_not_now_is_not_tried_again(client: TestClient, smtp: SmtpServer, reply: str) -> None:
    smtp.reply("rcpt", reply)
    assert reply[:3] in problem(wait(client), 502)["detail"]
    assert smtp.verbs().count("MAIL") == 1


def test_nobody_answers(client: TestClient, smtp: SmtpServer) -> None:
    smtp.stop()
    assert "cannot be reached" in problem(wait(client), 502)["detail"]
    smtp.start()
    assert wait(client).status_code == 200


def test_outcome_unknown_is_not_called_unsent(client: TestClient, smtp: SmtpServer) -> None:
    smtp.cut("dot-after-store")
    assert "not known whether" in problem(wait(client), 502)["detail"]
    assert len(smtp.messages) == 1


def test_a_reply_that_quotes_the_mail_shows_no_secret(client: TestClient, smtp: SmtpServer) -> None:
    smtp.reply("dot", f"554 5.7.1 spam: {RESET['reset_url']} and {TOKEN}")
    answer = wait(client, RESET)
    assert "spam" in problem(answer, 502)["detail"]
    assert TOKEN not in answer.text
    smtp.reply("dot", f"250 2.0.0 taken, {RESET['reset_url']} too")
    answer = wait(client, RESET)
    assert answer.status_code == 200
    assert TOKEN not in answer.text


@pytest.mark.parametrize(
    ("more", "headers", "fields"),
    [
        ({"send_at": "2040-01-01T00:00:00Z"}, {}, {"send_at"}),
        ({"expires_at": "2040-01-01T00:00:00Z"}, {}, {"expires_at"}),
        ({}, {"Idempotency-Key": "k"}, {"Idempotency-Key"}),
        ({"send_at": "2040-01-01T00:00:00Z"}, {"Idempotency-Key": "k"}, {"send_at", "Idempotency-Key"}),
    ],
)
def test_what_needs_the_outbox_is_refused(
    client: TestClient,
    untouched: Callable[[], None],
    more: dict[str, str],
    headers: dict[str, str],
    fields: set[str],
) -> None:
    assert set(faults(wait(client, {**WELCOME, **more}, **headers))) == fields
    untouched()


def test_the_recipient_limit_counts_both_ways(client: TestClient, smtp: SmtpServer) -> None:
    for _ in range(3):
        assert wait(client, RESET).status_code == 200
    for _ in range(2):
        assert client.post("/api/emails", json=RESET).status_code == 202
    answer = wait(client, RESET)
    problem(answer, 429)
    assert 3500 < int(answer.headers["Retry-After"]) <= 3600
    problem(client.post("/api/emails", json=RESET), 429)
    assert len(smtp.messages) == 3
    assert wait(client, {**RESET, "to": "bob@example.com"}).status_code == 200


def test_scopes(client: TestClient, untouched: Callable[[], None]) -> None:
    custom = KINDS["custom"].sample().model_dump(mode="json", exclude_none=True)
    assert "custom" in problem(wait(client, custom, **bearer("send-key")), 403)["detail"]
    problem(wait(client, WELCOME, **bearer("read-key")), 403)
    untouched()


def test_policy_applies(open_api: Callable[..., TestClient], untouched: Callable[[], None]) -> None:
    client = open_api(ALLOWED_LINK_HOSTS="other.example.com")
    assert set(faults(wait(client, RESET))) == {"reset_url"}
    untouched()

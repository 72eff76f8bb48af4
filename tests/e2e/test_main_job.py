"""The main job through real processes: accepted over HTTP, kept, sent by a Celery worker, seen in the API."""

import asyncio
import inspect
import json
import re
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from typing import Any

import httpx
import pytest

import utils.email
import utils.email_async
from mail.answers import Due
from mail.kinds import KINDS, Email, Lane
from support.processes import celery, free_port, wait_until
from support.service import Service
from utils.composition import get_wake_ups

DIRECT = pytest.mark.usefixtures("as_client")


def arrived(service: Service, email_id: str) -> EmailMessage:
    """The one message of this email."""

    def found() -> list[EmailMessage]:
        return [one.message for one in service.smtp.messages if one.message["Message-ID"] == message_id]

    message_id = f"<{email_id}@lms.example.com>"
    messages = wait_until(found, what=f"{email_id} to arrive")
    assert len(messages) == 1
    return messages[0]


def check(message: EmailMessage, email: Email) -> None:
    """From, To, Subject and links as they should be, and no defect."""
    assert not message.defects
    assert message["From"] == "Example Academy <no-reply@lms.example.com>"
    assert message["To"] == email.to
    assert message["Subject"]
    assert message["Auto-Submitted"] == "auto-generated"
    assert message.get_content_type() == "multipart/alternative"
    text, html = (part.get_content() for part in message.iter_parts())
    for name in type(email).template_fields():
        value = getattr(email, name)
        if name.endswith("_url"):
            assert value in text
            assert value.replace("&", "&amp;") in html


def unlike_any_other(email: Email) -> Email:
    """The sample with a recipient of its own."""
    fields = email.model_dump(exclude={"kind", "to"}, exclude_none=True)
    return type(email)(to=f"{email.name_of_kind()}-{free_port()}@example.com", **fields)


def arguments(email: Email) -> dict[str, Any]:
    return email.model_dump(exclude={"kind"}, exclude_none=True)


@pytest.mark.parametrize("kind", KINDS)
class TestEveryKind:
    def test_over_http(self, service: Service, kind: str) -> None:
        email = unlike_any_other(KINDS[kind].sample())
        email_id = service.send({"kind": kind, **arguments(email)})
        check(arrived(service, email_id), email)
        record = service.wait_for_state(email_id, "sent")
        assert [change["state"] for change in record["timeline"]] == ["queued", "sending", "sent"]
        assert record["smtp_code"] == 250
        assert record["timeline"][1]["worker"].startswith("node-")
        task = service.http.get(f"/api/tasks/{email_id}").json()
        assert task == {"task_id": email_id, "status": "SUCCESS", "state": "sent", "attempts": 1, "error": None}

    @DIRECT
    def test_queued(self, service: Service, kind: str) -> None:
        email = unlike_any_other(KINDS[kind].sample())
        send = getattr(utils.email_async, f"send_{email.noun()}_async")
        email_id = send(**arguments(email))
        check(arrived(service, email_id), email)
        service.wait_for_state(email_id, "sent")
        assert utils.email_async.get_task_status(email_id)["status"] == "SUCCESS"

    @DIRECT
    def test_sync(self, service: Service, kind: str) -> None:
        email = unlike_any_other(KINDS[kind].sample())
        delivery = getattr(utils.email, f"send_{email.noun()}_sync")(**arguments(email))
        assert (delivery.to, delivery.kind, delivery.smtp_code) == (email.to, kind, 250)
        check(arrived(service, delivery.id), email)

    @DIRECT
    def test_awaited(self, service: Service, kind: str) -> None:
        email = unlike_any_other(KINDS[kind].sample())
        send = getattr(utils.email, f"send_{email.noun()}")
        assert inspect.iscoroutinefunction(send)
        check(arrived(service, asyncio.run(send(**arguments(email))).id), email)


@pytest.mark.parametrize("name", ["Zoë O'Brien", "李雷", "مريم", 'Ada "Countess" <Lovelace> & Söhne'])
def test_names_arrive_intact(service: Service, name: str) -> None:
    message = arrived(service, service.send({"kind": "welcome", "to": "ada@example.com", "name": name}))
    assert name in message["Subject"]
    assert name in message.get_body(("plain",)).get_content()
    assert not message["Subject"].defects


def test_addresses_arrive_intact(service: Service) -> None:
    long = "x" * 64 + "@example.com"
    for given, envelope in (
        ("ada@bücher.example", "ada@xn--bcher-kva.example"),
        (long, long),
        ("李雷@example.com", "李雷@example.com"),
    ):
        email_id = service.send({"kind": "welcome", "to": given, "name": "Ada"})
        assert arrived(service, email_id)["To"] == envelope
        service.wait_for_state(email_id, "sent")
        assert service.record(email_id)["to"] == given
        assert any(envelope in one.recipients for one in service.smtp.messages)


def test_template_syntax_in_a_custom_mail_is_text(service: Service) -> None:
    hostile = "{{ 7*7 }} {% for x in y %} {{ brand.name.__class__ }} ${7*7}"
    message = arrived(
        service,
        service.send({"kind": "custom", "to": "ada@example.com", "subject": hostile, "html": f"<p>{hostile}</p>"}),
    )
    assert message["Subject"] == hostile
    for part in message.iter_parts():
        assert hostile in part.get_content()


def test_reply_to_and_from_name(service: Service) -> None:
    options = {"reply_to": "teacher@example.com", "from_name": "Kurs Ä, Gruppe 1"}
    message = arrived(service, service.send({"kind": "welcome", "to": "ada@example.com", "name": "Ada", **options}))
    assert message["Reply-To"] == "teacher@example.com"
    sender = message["From"].addresses[0]
    assert (sender.display_name, sender.addr_spec) == ("Kurs Ä, Gruppe 1", "no-reply@lms.example.com")


def test_forty_requests_with_one_idempotency_key_are_one_mail(service: Service) -> None:
    to = f"once-{free_port()}@example.com"
    body = {"kind": "welcome", "to": to, "name": "Ada"}

    def post(_: int) -> httpx.Response:
        return service.http.post("/api/emails", json=body, headers={"Idempotency-Key": to})

    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(post, range(40)))
    assert {answer.status_code for answer in answers} == {202}
    (email_id,) = {answer.json()["id"] for answer in answers}
    assert [answer.headers.get("Idempotent-Replayed") for answer in answers].count("true") == 39
    service.wait_for_state(email_id, "sent")
    arrived(service, email_id)
    assert [one for one in service.smtp.messages if to in one.recipients][1:] == []


def test_scheduled_is_sent_when_its_time_comes(service: Service) -> None:
    at = datetime.now(UTC) + timedelta(seconds=2)
    email_id = service.send({"kind": "welcome", "to": "ada@example.com", "name": "Ada", "send_at": at.isoformat()})
    assert service.record(email_id)["state"] == "scheduled"
    record = service.wait_for_state(email_id, "sent")
    assert [change["state"] for change in record["timeline"]] == ["scheduled", "queued", "sending", "sent"]
    assert datetime.fromisoformat(record["sent_at"]) >= at


def test_the_mail_says_how_long_this_link_lives(service: Service) -> None:
    link = {"name": "Ada", "reset_url": "https://lms.example.com/reset?token=b81WfJx5Kc9Ry4Dd"}
    at = datetime.now(UTC) + timedelta(minutes=20)
    for times, words in (({}, "works for 1 hour"), ({"expires_at": at.isoformat()}, "works for 20 minutes")):
        to = f"life-{free_port()}@example.com"
        message = arrived(service, service.send({"kind": "password_reset", "to": to, **link, **times}))
        for part in message.iter_parts():
            assert words in re.sub("<[^>]+>", "", part.get_content())


def test_a_refused_recipient_fails_at_once(service: Service) -> None:
    service.smtp.reply("rcpt", "550 5.1.1 no such user here", when=lambda to: to == "gone@example.com")
    email_id = service.send({"kind": "welcome", "to": "gone@example.com", "name": "Ada"})
    record = service.wait_for_state(email_id, "failed")
    assert (record["attempts"], record["smtp_code"], record["smtp_reply"]) == (1, 550, "5.1.1 no such user here")
    assert [change["state"] for change in record["timeline"]] == ["queued", "sending", "failed"]
    assert service.http.get(f"/api/tasks/{email_id}").json()["status"] == "FAILURE"
    service.smtp.clear()
    assert service.http.post(f"/api/emails/{email_id}/retry").status_code == 200
    service.wait_for_state(email_id, "sent")


def test_greylisting_is_retried_and_sent(service: Service) -> None:
    service.smtp.reply("rcpt", "451 4.7.1 try again later", when=lambda to: to == "grey@example.com", times=1)
    email_id = service.send({"kind": "welcome", "to": "grey@example.com", "name": "Ada"})
    record = service.wait_for_state(email_id, "sent")
    states = [change["state"] for change in record["timeline"]]
    assert states == ["queued", "sending", "retrying", "sending", "sent"]
    assert record["timeline"][2]["smtp_code"] == 451
    assert record["attempts"] == 2


def test_revoke_cancels_the_email(service: Service) -> None:
    at = datetime.now(UTC) + timedelta(hours=1)
    email_id = service.send({"kind": "welcome", "to": "ada@example.com", "name": "Ada", "send_at": at.isoformat()})
    printed = celery(service.env, "control", "revoke", email_id)
    assert "cancelled" in printed
    assert service.record(email_id)["state"] == "cancelled"


def test_inspect_answers_from_the_backend_folder(service: Service) -> None:
    assert "pong" in celery(service.env, "inspect", "ping")
    assert "empty" in celery(service.env, "inspect", "active")
    registered = celery(service.env, "inspect", "registered")
    for kind in KINDS.values():
        assert f"tasks.email_tasks.send_{kind.noun()}_task" in registered
    stats = json.loads(celery(service.env, "inspect", "stats", "--json").splitlines()[0])
    (node,) = stats.values()
    assert node["pool"]["max-concurrency"] == 20


class TestFlower:
    def test_shows_states_ids_and_redacted_recipients(self, service: Service, flower: httpx.Client) -> None:
        service.smtp.reply("rcpt", "550 5.1.1 <gone2@example.com> unknown", when=lambda to: to == "gone2@example.com")
        sent = service.send({"kind": "welcome", "to": "flower@example.com", "name": "Ada"})
        failed = service.send({"kind": "welcome", "to": "gone2@example.com", "name": "Ada"})

        def seen() -> Any:
            tasks = flower.get("/api/tasks").json()
            states = {one: tasks.get(one, {}).get("state") for one in (sent, failed)}
            return tasks if states == {sent: "SUCCESS", failed: "FAILURE"} else None

        tasks = wait_until(seen, what="Flower to show both")
        assert tasks[sent]["args"] == f"('{sent}', 'f***@example.com')"
        assert "550" in tasks[failed]["exception"]
        assert "gone2@example.com" not in json.dumps(tasks)
        assert "flower@example.com" not in json.dumps(tasks)

    @DIRECT
    def test_shows_a_cancelled_mail_as_revoked(self, service: Service, flower: httpx.Client) -> None:
        at = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
        email_id = service.send({"kind": "welcome", "to": "ada@example.com", "name": "Ada", "send_at": at})
        service.http.post(f"/api/emails/{email_id}/cancel")
        get_wake_ups().publish(Lane.STANDARD, Due(email_id, "welcome", "ada@example.com"))  # one that was on its way

        def state() -> str | None:
            return flower.get("/api/tasks").json().get(email_id, {}).get("state")

        wait_until(lambda: state() == "REVOKED", what="Flower to show it as revoked")
        assert service.http.get(f"/api/tasks/{email_id}").json()["status"] == "REVOKED"

    def test_is_read_only(self, flower: httpx.Client) -> None:
        answer = flower.post("/api/worker/shutdown/node@test")
        assert answer.status_code == 403


def test_the_prefix_is_on_every_key(service: Service) -> None:
    service.wait_for_state(service.send(), "sent")
    with service.valkey.client() as client:
        foreign = [key for key in client.scan_iter("*") if not key.startswith(service.env["KEY_PREFIX"])]
    # Tests of other modules have a Valkey of their own; nothing else writes here.
    assert [key for key in foreign if not re.match(r"t\d+-\d+:", key)] == []


def test_the_access_log_shows_no_address(service: Service) -> None:
    service.http.get("/api/emails", params={"to": "private@example.com"})
    (log,) = service.directory.glob("api-*.log")
    # Written after the answer.
    wait_until(lambda: "method=GET path=/api/emails status=200" in log.read_text(), what="the line")
    assert "private" not in log.read_text()

"""The direct forms for several recipients, and `EmailService.deliver_many` below them."""

import asyncio
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mail.brand import Brand
from mail.delivery import Delivery, NotDelivered
from mail.errors import (
    InvalidEmail,
    PermanentError,
    ServerBusy,
    ServerRefuses,
    ServerUnavailable,
    TransientError,
)
from mail.mailing import Mailing, Recipient
from mail.message import Sender
from mail.rendering import Renderer
from mail.smtp import Security, SmtpConfig, SmtpTransport
from support.processes import BACKEND, free_port
from support.smtp_server import SmtpServer
from utils.composition import get_service
from utils.email import send_bulk_email, send_bulk_email_sync, send_welcome_email_sync
from utils.service import EmailService

Configure = Callable[..., None]
BRAND = Brand("Example Academy", "https://lms.example.com", "support@lms.example.com", "", "#1f5eff")
TEMPLATES = BACKEND / "templates" / "emails"

PEOPLE: list[Any] = [
    {"to": "ada@example.com", "name": "Ada", "data": {"grade": "A"}},
    {"to": "bob@example.com", "name": "Bob", "data": {"grade": 2}},
    {"to": "eve@example.com", "name": "<Eve>", "data": {"grade": ""}},
]


def refused(recipients: Any, subject: str = "News", **content: Any) -> dict[str, str]:
    with pytest.raises(InvalidEmail) as caught:
        send_bulk_email_sync(recipients, subject, **(content or {"text": "x"}))
    return {error.field: error.message for error in caught.value.errors}


# The forms


@pytest.mark.parametrize("form", [send_bulk_email_sync, send_bulk_email], ids=["sync", "await"])
def test_everybody_gets_their_own(settings: Configure, smtp: SmtpServer, dead: str, form: Any) -> None:
    settings(REDIS_URL=dead)  # which a direct form does not need
    made = form(
        iter(PEOPLE),
        "For {{ name }}",
        "<p>{{ name }}: {{ grade }}</p>",
        reply_to="desk@example.com",
        from_name="Registry",
    )
    found = asyncio.run(made) if form is send_bulk_email else made
    assert smtp.connections == 1
    assert [one.recipients for one in smtp.messages] == [(person["to"],) for person in PEOPLE]
    for person, received, delivery in zip(PEOPLE, smtp.messages, found, strict=True):
        message = received.message
        assert message["Subject"] == f"For {person['name']}"
        assert (message["From"], message["Reply-To"]) == ("Registry <no-reply@lms.example.com>", "desk@example.com")
        text, html = (part.get_content() for part in message.iter_parts())
        line = f"{person['name']}: {person['data']['grade']}"
        assert line in text
        assert f"<p>{line.replace('<', '&lt;').replace('>', '&gt;')}</p>" in html
        assert isinstance(delivery, Delivery)
        assert (delivery.to, delivery.kind, delivery.smtp_code) == (person["to"], "custom", 250)
        assert delivery.message_id == message["Message-ID"] == f"<{delivery.id}@lms.example.com>"


def test_the_same_address_twice_gets_one_mail(smtp: SmtpServer) -> None:
    found = send_bulk_email_sync(["ada@example.com", "Ada@EXAMPLE.com", "bob@example.com"], "News", text="x")
    assert [one.to for one in found] == ["ada@example.com", "bob@example.com"]
    assert len(smtp.messages) == 2


def test_nothing_leaves_when_anything_is_wrong(smtp: SmtpServer) -> None:
    people = [*PEOPLE, {"to": "x"}, {"to": "dan@example.com", "name": "Dan", "data": {"grade": None}}, 7]
    found = refused(people, "{{ name }}", text="Grade: {{ grade }}")
    assert set(found) == {"recipients.3.to", "recipients.4.data.grade", "recipients.5"}
    assert refused(["ada@example.com"], text="{{ grade }}") == {
        "recipients.0.data.grade": "required: {{ grade }} is in text"
    }
    assert set(refused([])) == {"recipients"}
    assert set(refused(["ada@example.com"], html="{{ a.b }}")) == {"html"}
    assert len(refused(["x"] * 1_000)) == 20
    assert not smtp.messages


def test_the_rules_of_the_installation_hold(settings: Configure, smtp: SmtpServer) -> None:
    settings(ALLOWED_LINK_HOSTS="lms.example.com")
    assert set(refused(["ada@example.com"], text="https://evil.example")) == {"text"}
    person = {"to": "ada@example.com", "data": {"url": "javascript:alert(1)"}}
    assert set(refused([person], html='<a href="{{ url }}">x</a>')) == {"recipients.0.data.url"}
    assert not smtp.messages


def test_one_who_is_refused_stops_nobody(smtp: SmtpServer) -> None:
    smtp.reply("rcpt", "550 5.1.1 no such user", when=lambda address: address.startswith("bob"))
    smtp.reply("dot", "451 4.7.1 greylisted", when=lambda address: address.startswith("eve"))
    found = send_bulk_email_sync([*PEOPLE, "dan@example.com"], "News", text="x")
    assert [type(one) for one in found] == [Delivery, NotDelivered, NotDelivered, Delivery]
    _, bob, eve, _ = found
    assert isinstance(bob, NotDelivered)
    assert isinstance(bob.error, PermanentError)
    assert (bob.to, bob.error.code) == ("bob@example.com", 550)
    assert isinstance(eve, NotDelivered)
    assert isinstance(eve.error, TransientError)
    assert [one.recipients for one in smtp.messages] == [("ada@example.com",), ("dan@example.com",)]


@pytest.mark.parametrize(
    ("stage", "reply", "error"),
    [("mail", "530 5.7.0 no", ServerRefuses), ("mail", "450 4.7.0 slow down", ServerBusy), ("mail", None, None)],
)
def test_the_rest_is_not_tried_on_a_server_that_takes_nothing(
    settings: Configure, smtp: SmtpServer, stage: Any, reply: str | None, error: Any
) -> None:
    if reply is None:
        settings(SMTP_PORT=str(free_port()))
        error = ServerUnavailable
    else:
        smtp.reply(stage, reply, when=None)
    found = send_bulk_email_sync(PEOPLE, "News", text="x")
    assert [one.to for one in found] == [person["to"] for person in PEOPLE]
    assert all(isinstance(one, NotDelivered) and isinstance(one.error, error) for one in found)
    assert len({one.id for one in found}) == 3
    assert smtp.verbs().count("MAIL") <= 1
    assert not smtp.messages


# Below them


@pytest.fixture
def renderer() -> Renderer:
    return Renderer(TEMPLATES, BRAND)


def service_of(renderer: Renderer, smtp: SmtpServer) -> EmailService:
    config = SmtpConfig(host="127.0.0.1", port=smtp.port, security=Security.NONE)
    return EmailService(renderer=renderer, transport=SmtpTransport(config), sender=Sender("no-reply@lms.example.com"))


@pytest.fixture
def service(renderer: Renderer, smtp: SmtpServer) -> Iterator[EmailService]:
    service = service_of(renderer, smtp)
    yield service
    service.close()


WELCOME = Mailing.parse({"kind": "welcome"})


def pairs(*names: str) -> list[tuple[str, Recipient]]:
    return [(f"batch-1-{at}", Recipient(f"{name.lower()}@example.com", name)) for at, name in enumerate(names)]


def test_a_batch_mail_is_the_single_mail(smtp: SmtpServer) -> None:
    [_, delivery] = get_service().deliver_many(WELCOME, pairs("Bob", "Ada"))
    send_welcome_email_sync("ada@example.com", "Ada")
    _, many, one = [received.message for received in smtp.messages]
    assert many["Subject"] == one["Subject"]
    assert [part.get_content() for part in many.iter_parts()] == [part.get_content() for part in one.iter_parts()]
    assert (delivery.id, many["Message-ID"]) == ("batch-1-1", "<batch-1-1@lms.example.com>")


def test_each_is_told_as_soon_as_it_is_known_and_paced_before(service: EmailService, smtp: SmtpServer) -> None:
    seen: list[int] = []
    for number, _ in enumerate(
        service.deliver_many(WELCOME, iter(pairs("Ada", "Bob", "Eve")), pace=lambda: seen.append(len(smtp.messages)))
    ):
        assert len(smtp.messages) == number + 1
        if number == 1:
            break
    assert seen == [0, 1]


def test_what_pace_raises_ends_the_sending(service: EmailService, smtp: SmtpServer) -> None:
    def pace() -> None:
        if smtp.messages:
            raise TimeoutError

    sending = service.deliver_many(WELCOME, pairs("Ada", "Bob"), pace=pace)
    assert isinstance(next(sending), Delivery)
    with pytest.raises(TimeoutError):
        next(sending)
    assert len(smtp.messages) == 1


def test_a_lost_connection_costs_one_reconnect(service: EmailService, smtp: SmtpServer) -> None:
    for number, done in enumerate(service.deliver_many(WELCOME, pairs("Ada", "Bob", "Eve", "Dan"))):
        assert isinstance(done, Delivery)
        if number == 1:
            smtp.close_sessions()
            smtp.wait_until(lambda: smtp.open_connections == 0, 10, "the session to end")
    assert smtp.connections == 2
    assert len(smtp.messages) == 4


def test_a_mail_that_cannot_be_made_stops_nobody(service: EmailService, smtp: SmtpServer) -> None:
    course = Mailing.parse({"kind": "course_enrollment", "course_name": "Maths"})
    whole = Recipient("ada@example.com", "Ada", {"course_url": "https://lms.example.com"})
    found = list(service.deliver_many(course, [("a", Recipient("bob@example.com", "Bob")), ("b", whole)]))
    assert [type(one) for one in found] == [NotDelivered, Delivery]
    assert [one.recipients for one in smtp.messages] == [("ada@example.com",)]


def test_a_broken_template_is_told_for_each(tmp_path: Path, smtp: SmtpServer) -> None:
    (tmp_path / "welcome.html").write_text("{{ nobody }}")
    found = list(service_of(Renderer(tmp_path, BRAND), smtp).deliver_many(WELCOME, pairs("Ada", "Bob")))
    assert [(type(one), one.to) for one in found] == [
        (NotDelivered, "ada@example.com"),
        (NotDelivered, "bob@example.com"),
    ]
    assert not smtp.messages


def test_what_is_shared_is_prepared_once(service: EmailService) -> None:
    first = service.prepare(WELCOME)
    assert service.prepare(Mailing.restored(WELCOME.stored())) is first
    for number in range(4):
        service.prepare(Mailing.parse({"subject": f"No. {number}", "text": "x"}))
    assert service.prepare(WELCOME) is not first


def test_a_template_that_changes_is_seen_while_they_are_written(tmp_path: Path, smtp: SmtpServer) -> None:
    shutil.copytree(TEMPLATES, tmp_path, dirs_exist_ok=True)
    service = service_of(Renderer(tmp_path, BRAND, auto_reload=True), smtp)
    list(service.deliver_many(WELCOME, pairs("Ada")))
    changed = tmp_path / "welcome.txt"
    changed.write_text("Good morning, {{ name }}")
    os.utime(changed, (0, 0))
    list(service.deliver_many(WELCOME, pairs("Ada", "Bob")))
    service.close()
    texts = [next(received.message.iter_parts()).get_content() for received in smtp.messages]
    assert [text.strip() for text in texts[1:]] == ["Good morning, Ada", "Good morning, Bob"]
    assert "Welcome, Ada" in texts[0]

"""What people import: the direct forms of `utils.email`, the queued forms of `utils.email_async`."""

import asyncio
import inspect
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import utils.email
import utils.email_async
from mail.answers import Claim
from mail.delivery import Delivery
from mail.errors import (
    EmailError,
    IdempotencyConflict,
    InvalidEmail,
    PermanentError,
    RecipientLimited,
    ServerUnavailable,
    TransientError,
)
from mail.kinds import KINDS, Email
from mail.records import State
from support.processes import BACKEND
from support.smtp_server import SmtpServer
from utils.composition import get_outbox
from utils.email import (
    send_custom_email_sync,
    send_password_reset_email_sync,
    send_welcome_email,
    send_welcome_email_sync,
)
from utils.email_async import (
    get_task_status,
    send_custom_email_async,
    send_password_reset_email_async,
    send_welcome_email_async,
)

GOLDEN = Path(__file__).parents[1] / "golden"
LINK = "https://lms.example.com/reset?token=s3cr3t-t0ken&next=/home"

Configure = Callable[..., None]

every_kind = pytest.mark.parametrize("kind", KINDS)
every_form = pytest.mark.parametrize("suffix", ["", "_sync", "_async"], ids=["await", "sync", "queued"])


def call(kind: str, suffix: str, **arguments: Any) -> Any:
    """Call one form of a kind, whichever way it is called."""
    module = utils.email_async if suffix == "_async" else utils.email
    made = getattr(module, f"send_{KINDS[kind].noun()}{suffix}")(**arguments)
    return asyncio.run(made) if inspect.isawaitable(made) else made


def arguments(email: Email, **more: Any) -> dict[str, Any]:
    return {**email.model_dump(exclude={"kind"}, exclude_none=True), **more}


def faults(send: Callable[[], Any]) -> set[str]:
    with pytest.raises(InvalidEmail) as caught:
        send()
    return {error.field for error in caught.value.errors}


# The direct forms


@every_kind
@pytest.mark.parametrize("suffix", ["", "_sync"], ids=["await", "sync"])
def test_arrives_once_as_it_should(settings: Configure, smtp: SmtpServer, dead: str, kind: str, suffix: str) -> None:
    settings(REDIS_URL=dead)  # which a direct form does not need
    sample = KINDS[kind].sample()
    delivery = call(kind, suffix, **arguments(sample, reply_to="desk@example.com", from_name="Registry"))

    [received] = smtp.messages
    assert (received.sender, received.recipients) == ("no-reply@lms.example.com", (sample.to,))
    message = received.message
    assert not message.defects
    assert message["From"] == "Registry <no-reply@lms.example.com>"
    assert message["To"] == sample.to
    assert message["Reply-To"] == "desk@example.com"
    golden = (GOLDEN / f"{kind}.txt").read_text().splitlines()[0]
    assert f"Subject: {message['Subject']}" == golden
    text, html = (part.get_content() for part in message.iter_parts())
    for name in sample.template_fields():
        if name.endswith("_url"):
            assert getattr(sample, name) in text.splitlines()
            assert f'href="{getattr(sample, name)}"' in html

    assert isinstance(delivery, Delivery)
    assert (delivery.to, delivery.kind, delivery.state) == (sample.to, kind, State.SENT)
    assert (delivery.smtp_code, delivery.smtp_reply) == (250, "2.0.0 taken")
    assert delivery.message_id == message["Message-ID"] == f"<{delivery.id}@lms.example.com>"
    assert abs(datetime.now(UTC) - delivery.sent_at) < timedelta(seconds=60)


@pytest.mark.parametrize("name", ["Zoë O'Brien", "李雷", "مريم", "Ada 👩‍🎓", "{{ 7*7 }}", "<b>&amp;"])
def test_names_arrive_as_written(smtp: SmtpServer, name: str) -> None:
    send_welcome_email_sync("ada@example.com", name, from_name=name)
    [received] = smtp.messages
    message = received.message
    assert message["Subject"] == f"Welcome to Example Academy, {name}"
    assert message["From"].addresses[0].display_name == name
    text, _ = message.iter_parts()
    assert f"Welcome, {name}" in text.get_content()


@pytest.mark.parametrize(
    ("to", "recipient"),
    [
        ("x" * 64 + "@example.com", "x" * 64 + "@example.com"),
        ("Ada@EXÄMPLE.com", "Ada@xn--exmple-cua.com"),
        ("zoë@example.com", "zoë@example.com"),
    ],
)
def test_addresses_arrive_whole(smtp: SmtpServer, to: str, recipient: str) -> None:
    send_welcome_email_sync(to, "Ada")
    [received] = smtp.messages
    assert received.recipients == (recipient,)
    assert f"\r\nTo: {recipient}\r\n" in received.data.decode()
    assert ("SMTPUTF8" in received.mail_options) == (not recipient.isascii())


def test_a_server_without_smtputf8_is_told_apart(smtp: SmtpServer) -> None:
    smtp.smtputf8 = False
    with pytest.raises(PermanentError, match="SMTPUTF8"):
        send_welcome_email_sync("zoë@example.com", "Ada")
    send_welcome_email_sync("ada@exämple.com", "Zoë")
    assert len(smtp.messages) == 1


def test_custom_text_is_never_run(smtp: SmtpServer) -> None:
    send_custom_email_sync("ada@example.com", "{{ 7*7 }}", text="{{ brand }} {% raw %} ${x}")
    [received] = smtp.messages
    assert received.message["Subject"] == "{{ 7*7 }}"
    for part in received.message.iter_parts():
        assert "{{ brand }} {% raw %} ${x}" in part.get_content()


def test_errors_of_delivering(smtp: SmtpServer) -> None:
    smtp.reply("rcpt", "550 5.1.1 no such user", times=1)
    with pytest.raises(PermanentError) as refused:
        send_welcome_email_sync("ada@example.com", "Ada")
    assert (refused.value.code, "no such user" in refused.value.reply) == (550, True)
    smtp.reply("rcpt", "451 4.3.0 later", times=1)
    with pytest.raises(TransientError) as later:
        asyncio.run(send_welcome_email("ada@example.com", "Ada"))
    assert later.value.code == 451
    smtp.stop()
    with pytest.raises(ServerUnavailable):
        send_welcome_email_sync("ada@example.com", "Ada")
    assert smtp.messages == []


def test_an_error_shows_no_secret(smtp: SmtpServer) -> None:
    smtp.reply("dot", f"554 5.7.1 spam: {LINK}")
    with pytest.raises(EmailError) as caught:
        send_password_reset_email_sync("ada@example.com", "Ada", LINK)
    assert "s3cr3t-t0ken" not in f"{caught.value!r} {caught.value} {vars(caught.value)}"
    assert caught.value.__cause__ is None


def test_await_does_not_block_the_loop(smtp: SmtpServer) -> None:
    smtp.delay("data", 0.5)

    async def main() -> int:
        ticks = 0
        sending = asyncio.create_task(send_welcome_email("ada@example.com", "Ada"))
        while not sending.done():
            await asyncio.sleep(0.01)
            ticks += 1
        await sending
        return ticks

    assert asyncio.run(main()) > 10


def test_many_at_once(smtp: SmtpServer) -> None:
    async def main() -> None:
        await asyncio.gather(*(send_welcome_email(f"p{number}@example.com", f"P{number}") for number in range(40)))

    asyncio.run(main())
    assert sorted(one.recipients[0] for one in smtp.messages) == sorted(
        f"p{number}@example.com" for number in range(40)
    )
    for one in smtp.messages:
        number = one.recipients[0].partition("@")[0].upper()
        assert one.message["Subject"].endswith(f", {number}")


def test_staging_redirects(settings: Configure, smtp: SmtpServer) -> None:
    settings(MAIL_REDIRECT_TO="staging@example.com", SMTP_IDEMPOTENCY_HEADER="Resend-Idempotency-Key")
    delivery = send_welcome_email_sync("ada@example.com", "Ada")
    [received] = smtp.messages
    assert received.recipients == ("staging@example.com",)
    assert received.message["X-Original-To"] == "ada@example.com"
    assert received.message["Resend-Idempotency-Key"] == delivery.id


def test_direct_forms_load_no_celery_and_open_no_redis(env: dict[str, str], smtp: SmtpServer, dead: str) -> None:
    program = (
        "import sys, asyncio, socket\n"
        "import utils.email\n"
        "utils.email.send_welcome_email_sync('ada@example.com', 'Ada')\n"
        "asyncio.run(utils.email.send_welcome_email('bob@example.com', 'Bob'))\n"
        "print([name for name in ('celery', 'kombu', 'celery_app', 'fastapi', 'utils.email_async')"
        " if name in sys.modules])\n"
    )
    env = {**env, "REDIS_URL": dead}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=BACKEND, env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
    assert len(smtp.messages) == 2


# Bad input, whichever form


@every_form
@every_kind
def test_invalid(store: Any, smtp: SmtpServer, env: dict[str, str], kind: str, suffix: str) -> None:
    sample = KINDS[kind].sample()
    for field in sample.model_dump(exclude={"kind"}, exclude_none=True):
        assert faults(lambda field=field: call(kind, suffix, **arguments(sample, **{field: "x\r\0y"}))) == {field}
    assert faults(lambda: call(kind, suffix, **arguments(sample, reply_to="x", from_name="\n"))) == {
        "reply_to",
        "from_name",
    }
    assert list(store.scan_iter(f"{env['KEY_PREFIX']}*")) == []
    assert smtp.connections == 0


@every_form
def test_policy(settings: Configure, smtp: SmtpServer, suffix: str) -> None:
    settings(ALLOWED_LINK_HOSTS="other.example.com")
    for kind in ("password_reset", "email_verification", "course_enrollment", "certificate"):
        [field] = faults(lambda kind=kind: call(kind, suffix, **arguments(KINDS[kind].sample())))
        assert field.endswith("_url")
    assert smtp.connections == 0


@pytest.mark.parametrize(
    "times",
    [
        {"send_at": datetime(2040, 1, 1, tzinfo=UTC).replace(tzinfo=None)},
        {"expires_at": datetime(2040, 1, 1, tzinfo=UTC).replace(tzinfo=None)},
        {"send_at": datetime(2020, 1, 1, tzinfo=UTC)},
        {"expires_at": datetime(2020, 1, 1, tzinfo=UTC)},
        {"send_at": datetime(1960, 1, 1, tzinfo=UTC)},
        {"send_at": datetime.min.replace(tzinfo=UTC)},
        {"send_at": datetime.max.replace(tzinfo=UTC)},
        {"idempotency_key": ""},
        {"idempotency_key": "k" * 256},
    ],
    ids=str,
)
def test_invalid_options_of_the_queue(store: Any, env: dict[str, str], times: dict[str, Any]) -> None:
    assert faults(lambda: send_welcome_email_async("ada@example.com", "Ada", **times)) == set(times)
    assert list(store.scan_iter(f"{env['KEY_PREFIX']}*")) == []


# The queued forms


@every_kind
def test_queued(kind: str) -> None:
    sample = KINDS[kind].sample()
    email_id = call(kind, "_async", **arguments(sample, reply_to="desk@example.com", from_name="Registry"))
    assert get_task_status(email_id) == {
        "task_id": email_id,
        "status": "PENDING",
        "state": "queued",
        "attempts": 0,
        "error": None,
    }
    outbox = get_outbox()
    claim = outbox.claim(email_id, "t", "node")
    assert isinstance(claim, Claim)
    kept = outbox.open(claim)
    assert kept == type(sample)(**arguments(sample, reply_to="desk@example.com", from_name="Registry"))
    assert get_task_status(email_id)["status"] == "STARTED"
    outbox.settle(email_id, "t", "failed", code=550, reply="no", error="550 no", cap=1000)
    assert get_task_status(email_id) == {
        "task_id": email_id,
        "status": "FAILURE",
        "state": "failed",
        "attempts": 1,
        "error": "550 no",
    }


def test_options_of_the_queue() -> None:
    later = datetime.now(UTC) + timedelta(hours=1)
    email_id = send_welcome_email_async(
        "ada@example.com", "Ada", send_at=later, expires_at=later + timedelta(hours=1), idempotency_key="order-1"
    )
    assert get_task_status(email_id)["state"] == "scheduled"
    record = get_outbox().record(email_id)
    assert record.send_at is not None
    assert abs(record.send_at - later) < timedelta(milliseconds=2)
    assert record.expires_at is not None
    again = send_welcome_email_async(
        "ada@example.com", "Ada", send_at=later, expires_at=later + timedelta(hours=1), idempotency_key="order-1"
    )
    assert again == email_id
    with pytest.raises(IdempotencyConflict):
        send_welcome_email_async("ada@example.com", "Bob", idempotency_key="order-1")


@pytest.mark.parametrize("task_id", ["nobody", "", "x" * 9999, "a\r\nb", "*"])
def test_an_unknown_id(task_id: str) -> None:
    assert get_task_status(task_id) == {
        "task_id": task_id,
        "status": "UNKNOWN",
        "state": None,
        "attempts": 0,
        "error": None,
    }


def test_limited() -> None:
    for _ in range(5):
        send_password_reset_email_async("ada@example.com", "Ada", LINK)
    with pytest.raises(RecipientLimited) as caught:
        send_password_reset_email_async("ada@example.com", "Ada", LINK)
    assert 3500 < caught.value.retry_after <= 3600


def test_a_wake_up_carries_the_id_and_nothing_else(store: Any, env: dict[str, str]) -> None:
    email_id = send_password_reset_email_async("ada@example.com", "Ada", LINK)
    [message] = store.lrange(f"{env['KEY_PREFIX']}critical", 0, -1)
    assert email_id in message
    assert "send_password_reset_email_task" in message
    assert "ada@example.com" not in message
    assert "s3cr3t" not in message
    assert "a***@example.com" in message


def test_scheduled_mail_wakes_nobody(store: Any, env: dict[str, str]) -> None:
    send_welcome_email_async("ada@example.com", "Ada", send_at=datetime.now(UTC) + timedelta(hours=1))
    assert store.llen(f"{env['KEY_PREFIX']}standard") == 0


def test_from_many_threads(store: Any, env: dict[str, str]) -> None:
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda n: send_welcome_email_async(f"p{n}@example.com", "Ada"), range(80)))
    assert len(set(ids)) == 80
    assert store.llen(f"{env['KEY_PREFIX']}standard") == 80


def test_a_custom_mail_without_a_body() -> None:
    assert faults(lambda: send_custom_email_async("ada@example.com", "News")) == {"html"}
    assert faults(lambda: send_custom_email_sync("ada@example.com", "News", html="<script>x</script>")) == {"html"}

"""The log of a whole service: a mail can be followed through it, each line is one event, and no secret is in it."""

import json
import re
import shutil
import socket
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from cryptography.fernet import Fernet
from structlog.contextvars import bound_contextvars

from support.processes import BACKEND, Api, Process, Valkey, Worker, free_port, wait_until
from support.service import WELCOME, Service, forget_settings, service_env
from support.smtp_server import SmtpServer
from utils.email_async import send_welcome_email_async

Build = Callable[..., Service]
Line = dict[str, Any]
Running = tuple[Service, Worker, Api]

# The only lines in the output of our programs that no logger writes: Celery's, from within a signal handler.
NOT_LOGGED = ("", "worker: Warm shutdown (MainProcess)")


def lines_of(process: Process) -> list[Line]:
    """The events a process has logged as JSON; whatever else it wrote fails."""
    return [json.loads(line) for line in process.text().splitlines() if line not in NOT_LOGGED]


def about(process: Process, **facts: object) -> list[Line]:
    return [line for line in lines_of(process) if all(line.get(name) == value for name, value in facts.items())]


def only(process: Process, **facts: object) -> Line:
    wait_until(lambda: about(process, **facts), what=f"a line with {facts}")
    (line,) = about(process, **facts)
    return line


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A service that logs JSON, shared by the tests that do not hurt it."""
    directory = tmp_path_factory.mktemp("logs")
    with SmtpServer() as smtp, Valkey(directory) as valkey:
        env = service_env(valkey.url, smtp, LOG_FORMAT="json", RETRY_BASE_SECONDS="1", RETRY_MAX_SECONDS="1")
        service = Service(valkey, smtp, env, directory)
        try:
            yield service, service.worker(lanes="critical,standard,bulk"), service.api()
        finally:
            service.close()


def test_one_mail_is_followed_from_the_request_to_the_reply(running: Running) -> None:
    service, worker, api = running
    service.smtp.reply("rcpt", "451 4.7.1 greylisted, come back", times=1)
    answer = service.http.post("/api/emails?x=1", json=WELCOME, headers={"X-Request-ID": "lms.req-42"})
    assert answer.headers["X-Request-ID"] == "lms.req-42"
    email_id = answer.json()["id"]
    record = service.wait_for_state(email_id, "sent")
    assert record["request_id"] == "lms.req-42"

    request, accepted = (
        only(api, request_id="lms.req-42", event=name) for name in ("http.request", "email.accepted")
    )
    assert accepted["email_id"] == email_id
    assert (accepted["to"], accepted["kind"], accepted["lane"]) == ("a***@example.com", "welcome", "standard")
    told = (request["method"], request["path"], request["status"], request["key"], request["client"])
    assert told == ("POST", "/api/emails", 202, "all", "127.0.0.1")
    assert 0 < request["ms"] < 10_000

    retrying = only(worker, request_id="lms.req-42", event="email.retrying")
    sent = only(worker, request_id="lms.req-42", event="email.sent")
    assert (retrying["level"], retrying["code"], retrying["attempt"]) == ("warning", 451, 1)
    assert "greylisted, come back" in retrying["error"]
    assert (sent["level"], sent["code"], sent["reply"], sent["attempt"]) == ("info", 250, "2.0.0 taken", 2)
    for line in (retrying, sent):
        assert (line["email_id"], line["to"], line["kind"]) == (email_id, "a***@example.com", "welcome")
        assert (line["lane"], line["program"]) == ("standard", f"{worker.name}@test")
    assert not about(worker, email_id=email_id, logger="celery.app.trace")


def test_a_batch_keeps_the_id_of_its_request(running: Running) -> None:
    service, worker, api = running
    service.smtp.reply("rcpt", "550 5.1.1 no such user", when=lambda address: address.startswith("bob"))
    people = [*(f"p{number}@example.com" for number in range(119)), "bob@example.com"]
    body = {"subject": "Hi", "text": "Hello", "recipients": people}
    answer = service.http.post("/api/batches", json=body)
    batch, request_id = answer.json()["id"], answer.headers["X-Request-ID"]
    ended = only(worker, event="batch.finished", batch=batch)
    assert (ended["total"], ended["sent"], ended["failed"], ended["state"]) == (120, 119, 1, "finished")
    assert only(api, event="batch.accepted", batch=batch)["total"] == 120
    assert service.http.get(f"/api/batches/{batch}").json()["request_id"] == request_id
    assert {service.record(f"{batch}-{position}")["request_id"] for position in (0, 119)} == {request_id}

    failed = only(worker, event="email.failed", batch=batch)
    assert (failed["email_id"], failed["code"], failed["to"]) == (f"{batch}-119", 550, "b***@example.com")
    chunks = {"event": "chunk.sent", "batch": batch}
    wait_until(lambda: sum(line["sent"] for line in about(worker, **chunks)) == 119, what="the chunks")
    assert not about(worker, event="email.sent", batch=batch)
    of_batch = [line for line in lines_of(worker) if line.get("batch") == batch]
    assert {line["request_id"] for line in of_batch} == {request_id}


def test_what_holds_mail_back_is_told_once_and_so_is_its_end(running: Running) -> None:
    service, worker, _ = running
    service.smtp.reply("mail", "554 5.7.1 blocked", times=2)
    email_id = service.send()
    service.wait_for_state(email_id, "sent")
    closed, opened = only(worker, event="gate.closed"), only(worker, event="gate.opened")
    assert (closed["gate"], opened["gate"], closed["level"]) == ("smtp", "smtp", "warning")
    assert "554 5.7.1 blocked" in closed["reason"]
    # Another test's mail that waits for its retry may be the one that finds the server so.
    released = [line["error"] for line in about(worker, event="email.released")]
    assert len([error for error in released if "554 5.7.1 blocked" in error]) == 2


def test_what_ends_without_an_attempt_is_told(build: Build) -> None:
    service = build(LOG_FORMAT="json")
    api = service.api()
    reset = {
        "kind": "password_reset",
        "to": "ada@example.com",
        "name": "Ada",
        "reset_url": "https://lms.example.com/r",
    }
    older, newer = service.send(reset), service.send(reset)
    line = only(api, event="email.cancelled", email_id=older)
    assert line["by"] == newer
    assert service.http.post(f"/api/emails/{newer}/cancel").is_success
    assert only(api, event="email.cancelled", email_id=newer)["request_id"]


def test_a_crash_is_found_by_the_id_in_its_answer(running: Running) -> None:
    service, _, api = running
    email_id = service.send()
    service.wait_for_state(email_id, "sent")
    with service.valkey.client() as client:
        client.hset(f"{service.env['KEY_PREFIX']}email:{email_id}", "payload", "{broken")
    # uvicorn closes the connection after a crash.
    answer = service.http.get(f"/api/emails/{email_id}", headers={"Connection": "close"})
    assert answer.status_code == 500
    request_id = answer.json()["request_id"]
    assert request_id == answer.headers["X-Request-ID"]
    crash = only(api, request_id=request_id, event="Exception in ASGI application")
    assert "JSONDecodeError" in crash["exception"]
    request = only(api, request_id=request_id, event="http.request")
    assert (request["status"], request["level"]) == (500, "warning")


def test_health_checks_are_quiet(running: Running) -> None:
    _, _, api = running
    assert httpx.get(f"{api.url}/health/ready").is_success
    assert httpx.get(f"{api.url}/nothing").status_code == 404
    assert only(api, event="http.request", path="/nothing")["status"] == 404
    assert not about(api, path="/health/ready")


@pytest.fixture
def from_python(running: Running, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """The running service; this process is an LMS that uses it."""
    for name, value in running[0].env.items():
        monkeypatch.setenv(name, value)
    forget_settings()
    yield running[0]
    forget_settings()


def test_an_email_from_python_has_an_id_too(from_python: Service) -> None:
    service = from_python
    with bound_contextvars(request_id="lms-7"):
        email_id = send_welcome_email_async("ada@example.com", "Ada")
    assert service.record(email_id)["request_id"] == "lms-7"
    with bound_contextvars(request_id="not fit\nfor a log"):
        other = service.record(send_welcome_email_async("ada@example.com", "Ada"))["request_id"]
    another = service.record(send_welcome_email_async("ada@example.com", "Ada"))["request_id"]
    assert re.fullmatch(r"[0-9a-f]{32}", other)
    assert another != other


# What must be nowhere.

PASSWORD = "plantedSmtpPassw0rd"
USER = "planted.login@lms.example.com"
KEY = "planted-api-key-0123456789abcdef"
UNKNOWN_KEY = "planted-unknown-key-0123456789"
REDIS = "plantedRedisPassw0rd"
FLOWER = "plantedFlowerPassw0rd"
HOOK = "whsec_cGxhbnRlZC1ob29rLXNlY3JldC1wbGFudGVkISE="
TOKEN = "plantedResetToken77"
PATH_TOKEN = "plantedPathToken88"
QUERY = "plantedQuery99"
PERSON = "planted.person"
RESET_URL = f"https://lms.example.com/reset/{PATH_TOKEN}?token={TOKEN}"
OUTBOX = Fernet.generate_key().decode()
PLANTED = {
    PASSWORD,
    b64encode(PASSWORD.encode()).decode(),
    b64encode(f"\0{USER}\0{PASSWORD}".encode()).decode()[:-4],
    KEY,
    UNKNOWN_KEY,
    REDIS,
    FLOWER,
    b64encode(f"ada:{FLOWER}".encode()).decode()[8:-4],
    HOOK,
    TOKEN,
    PATH_TOKEN,
    QUERY,
    PERSON,
    OUTBOX,
    "planted.login",
}

TEMPLATE = "{{ {}[reset_url] }}"
"""Wrong, and its error quotes what it was given."""


def say(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request)
        return connection.recv(65_536)


def reset_for(suffix: str) -> dict[str, str]:
    return {"kind": "password_reset", "to": f"{PERSON}.{suffix}@example.com", "name": "Ada", "reset_url": RESET_URL}


@pytest.fixture
def planted(build: Build) -> Service:
    """A service whose secrets are planted, and whose SMTP server repeats whatever it is told."""
    smtp = SmtpServer(auth=(USER, PASSWORD))
    smtp.start()
    service = build(
        smtp,
        LOG_LEVEL="DEBUG",
        SMTP_USERNAME=USER,
        SMTP_PASSWORD=PASSWORD,
        API_KEYS=f"lms:send+custom+bulk+read+admin:{KEY}",
        OUTBOX_KEYS=OUTBOX,
        FLOWER_BASIC_AUTH=f"ada:{FLOWER}",
        ALERT_WEBHOOK_URL=f"http://127.0.0.1:{free_port()}/{PATH_TOKEN}?key={QUERY}",
        ALERT_WEBHOOK_SECRET=HOOK,
        ALERT_INTERVAL_SECONDS="1",
        RETRY_BASE_SECONDS="1",
        RETRY_MAX_SECONDS="1",
    )
    with service.valkey.client() as client:
        client.config_set("requirepass", REDIS)
    service.env["REDIS_URL"] = f"redis://:{REDIS}@127.0.0.1:{service.valkey.port}/0"
    return service


def with_broken_template(worker: Worker, directory: Path) -> Worker:
    """The same worker, from a copy of the programs in which one template is wrong."""
    backend = shutil.copytree(
        BACKEND, directory / "copy", ignore=shutil.ignore_patterns(".env", ".outbox-key", "__pycache__")
    )
    (backend / "templates" / "emails" / "password_reset.txt").write_text(TEMPLATE)
    worker.command = ["sh", "-c", 'cd "$0" && exec "$@"', str(backend), *worker.command]
    return worker


def test_no_planted_secret_is_in_any_output(planted: Service, tmp_path: Path) -> None:
    smtp = planted.smtp
    spoken = b64encode(f"\0{USER}\0{PASSWORD}".encode()).decode()
    quoted = f"<{PERSON}.x@example.com> {RESET_URL} {PASSWORD} {spoken} {KEY} {OUTBOX} {REDIS} {FLOWER} {HOOK}"
    evil = f'550-5.7.1 {quoted}\r\n550 5.7.1 \x1b[2J{{"event": "fake"}} {quoted}'
    smtp.reply("auth", f"535 5.7.8 {spoken} {PASSWORD} {b64encode(PASSWORD.encode()).decode()} refused", times=2)
    smtp.reply("rcpt", evil, when=lambda address: ".refused" in address)
    smtp.reply("rcpt", f"451 4.7.1 {quoted}", when=lambda address: ".later" in address, times=1)
    smtp.reply("dot", f"554 5.7.1 spam: {quoted} =3D{TOKEN}", when=lambda address: ".spam" in address)
    smtp.reply("dot", f"250 2.0.0 taken for {quoted}", when=lambda address: ".fine" in address)

    worker = planted.worker(lanes="critical,standard,bulk", LOG_FORMAT="text")
    planted.env["LOG_FORMAT"] = "json"
    api = planted.api()
    planted.http.headers["Authorization"] = f"Bearer {KEY}"
    ids = {suffix: planted.send(reset_for(suffix)) for suffix in ("fine", "refused", "later", "spam")}
    states = {"fine": "sent", "later": "sent", "refused": "failed", "spam": "failed"}
    for suffix, state in states.items():
        planted.wait_for_state(ids[suffix], state)
    people = [f"{PERSON}.{suffix}@example.com" for suffix in ("1", "2", "refused")]
    batch = planted.http.post(
        "/api/batches", json={"subject": "Hi", "text": f"see {RESET_URL}", "recipients": people}
    )
    wait_until(lambda: planted.http.get(f"/api/batches/{batch.json()['id']}").json()["ended"], what="the batch")
    planted.http.post("/api/emails?wait=true", json=reset_for("refused"))

    planted.http.get("/api/emails", params={"to": f"{PERSON}@example.com", "key": QUERY})
    planted.http.get(f"/api/emails/{PERSON}@example.com%0A%1b[2J%7B%22event%22:%22fake%22%7D")
    planted.http.get("/api/emails", headers={"Authorization": f"Bearer {UNKNOWN_KEY}"})
    planted.http.get(f"/api/emails?token={QUERY}", headers={"X-Request-ID": f"{QUERY} [2J"})
    planted.http.post("/api/emails", json={"kind": "welcome", "to": f"{PERSON}@@", "name": RESET_URL})
    planted.http.post("/api/emails", content=f"{{{TOKEN}")
    say(api.port, f"GET /{QUERY}?t={QUERY} HTTP/1.1\r\n{KEY}\r\n\r\n".encode())
    upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {}\r\n"
    key = b64encode(bytes(16)).decode()
    say(api.port, f"GET /ws?token={QUERY} HTTP/1.1\r\nHost: x\r\n{upgrade.format(key)}\r\n".encode())

    with redis.Redis.from_url(planted.env["REDIS_URL"], decode_responses=True) as client:
        client.hset(f"{planted.env['KEY_PREFIX']}email:{ids['spam']}", "payload", f"{{{RESET_URL}")
    # uvicorn closes the connection after a crash.
    crash = planted.http.get(f"/api/emails/{ids['spam']}", headers={"Connection": "close"})
    assert crash.status_code == 500

    worker.stop()
    broken = with_broken_template(Worker(planted.env, planted.directory, lanes="critical,standard,bulk"), tmp_path)
    planted.processes.append(broken)
    broken.start()
    planted.send(reset_for("broken"))
    wait_until(lambda: "email.not_prepared" in broken.text(), what="the template's error")

    flower = Process(
        [sys.executable, str(BACKEND.parent / "deploy" / "run_flower.py")],
        planted.directory / "flower.log",
        {**planted.env, "FLOWER_PORT": str(port := free_port()), "LOG_FORMAT": "text"},
    )
    planted.processes.append(flower)
    flower.start()
    wait_until(lambda: answers(f"http://127.0.0.1:{port}/healthcheck"), what="Flower", timeout=40)
    for login in (("ada", FLOWER), ("ada", QUERY)):
        httpx.get(f"http://127.0.0.1:{port}/tasks?search={QUERY}", auth=login)
    processes = [worker, broken, api, flower]
    for process in (broken, api, flower):
        process.stop()

    output = {process.log.name: process.text() for process in processes}
    found = [(name, secret) for name, text in output.items() for secret in PLANTED if secret in text]
    assert found == []
    for process in processes:
        check_lines(process)
    # That what was looked for could have been there: each of these did reach the log, without its secret.
    everything = "\n".join(output.values())
    for told in (
        "535 5.7.8",
        "550 5.7.1",
        "451 4.7.1",
        "554 5.7.1",
        "2.0.0 taken",
        "UndefinedError",
        "JSONDecodeError",
    ):
        assert told in everything
    for told in ("Invalid HTTP request", "/ws?token=***", "p***@example.com", "Settings: ", "webhook.failed"):
        assert told in everything


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=1).is_success
    except httpx.TransportError:
        return False


def check_lines(process: Process) -> None:
    """Each line is an event of ours, or belongs to the traceback of the one before."""
    if process.env["LOG_FORMAT"] == "json":
        assert all({"timestamp", "level", "event", "program"} <= line.keys() for line in lines_of(process))
        return
    for line in process.text().split("\n"):
        assert line.isprintable(), line
        assert line in NOT_LOGGED or line.startswith(("    ", "20")), line

"""A reset token is nowhere but in the mail, in no spelling: not while the mail waits for a forced retry, nor while it
is being sent, nor after."""

import base64
import json
import quopri
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
import redis
from celery.worker.control import Panel

from support.needles import Needles, spellings
from support.processes import BIN, Process, free_port, wait_until
from support.service import Service

# Characters that encodings change: it stands in the link percent-encoded.
TOKEN = "pR8v+Tok/en=That&Must~Not Show7Kq"
LINK = f"https://lms.example.com/reset/Zk4-path-Secret-Qw9?token={quote(TOKEN, safe='')}"
SECRETS = (TOKEN, quote(TOKEN, safe=""), "Zk4-path-Secret-Qw9")


found = Needles(*SECRETS).found


@pytest.mark.parametrize("secret", SECRETS)
def test_the_search_finds_what_is_there(secret: str) -> None:
    for needle in spellings(secret):
        assert found(b"x" + needle + b"y"), needle
    text = f"See {LINK} now\n" * 3
    for wrapped in (
        base64.encodebytes(text.encode()),
        base64.encodebytes(b"." + text.encode()),
        base64.b64encode(b".." + text.encode()),
        quopri.encodestring(text.encode()),
        json.dumps(json.dumps({"body": text})).encode(),
        repr(text).encode(),
    ):
        assert found(wrapped), wrapped


@pytest.fixture(scope="module")
def events(service: Service) -> Iterator[Process]:
    """`celery events --dump`, with its output in the service's directory."""
    command = [str(BIN / "celery"), "-A", "celery_app", "events", "--dump"]
    with Process(command, service.directory / "events.log", service.env) as process:
        wait_until(lambda: " heartbeat: " in process.text(), timeout=40, what="an event")
        yield process


def inspected(email_id: str) -> dict[str, str]:
    """The worker's answers to every question that `celery inspect` knows."""
    from celery_app import app

    ask = app.control.inspect(timeout=5, limit=1)
    questions = {name for name, about in Panel.meta.items() if about.type == "inspect"}
    # objgraph draws a picture with a package that is not here; hello is what nodes say to each other.
    answers = {name: getattr(ask, name)() for name in questions - {"objgraph", "hello", "query_task"}}
    answers |= {"query_task": ask.query_task([email_id]), "hello": ask.hello("a@test")}
    return {f"inspect {name}": json.dumps(answer, default=str) for name, answer in answers.items()}


def everywhere(service: Service, flower: httpx.Client, email_id: str) -> dict[str, bytes]:
    """Whatever anybody can look at, by where it was found."""
    pages = (f"/api/emails/{email_id}", "/api/emails", f"/api/tasks/{email_id}", "/health/ready", "/metrics")
    places = {f"GET {path}": service.http.get(path).content for path in pages}
    shown = ("/api/tasks", f"/api/task/info/{email_id}", f"/task/{email_id}", "/tasks", "/workers", "/api/workers")
    places |= {f"Flower {path}": flower.get(path).content for path in (*shown, "/broker", "/metrics")}
    places |= {name: text.encode() for name, text in inspected(email_id).items()}
    with redis.Redis.from_url(service.valkey.url) as client:
        client.config_set("rdbcompression", "no")  # the file would hold it, and not show it
        for key in client.scan_iter(b"*"):
            places[f"Redis {key!r}"] = key + b" " + (client.dump(key) or b"")
        client.config_set("rdbcompression", "yes")
    for path in sorted(service.directory.rglob("*")):
        if path.is_file():
            places[str(path.relative_to(service.directory))] = path.read_bytes()
    return places


def rewrite_aof(service: Service) -> None:
    """What is kept becomes the append-only file's whole content."""
    with service.valkey.client() as client:
        client.config_set("rdbcompression", "no")
        client.bgrewriteaof()
        wait_until(lambda: not client.info("persistence")["aof_rewrite_in_progress"], what="the rewrite")


@pytest.mark.usefixtures("as_client", "events")
def test_a_reset_token_is_nowhere_but_in_the_mail(service: Service, flower: httpx.Client) -> None:
    to = f"secret-{free_port()}@example.com"
    # Refused twice with words that quote the mail, as content filters do, so that the retry path is taken twice.
    for quoted in (LINK, f"{TOKEN} and {quote(TOKEN, safe='')} in {LINK.replace('=', '=3D')}"):
        service.smtp.reply("dot", f"451 4.3.0 looks like spam: {quoted}", times=1)
    service.smtp.delay("dot", 15.0, times=1)  # for as long as it takes to look everywhere
    email_id = service.send({"kind": "password_reset", "to": to, "name": "Ada", "reset_url": LINK})

    places: dict[str, bytes] = {}
    for moment in ("sending", "retrying", "sent"):
        service.wait_for_state(email_id, moment)
        if moment == "sent":
            wait_until(lambda: flower.get(f"/api/task/info/{email_id}").json().get("state") == "SUCCESS")
            rewrite_aof(service)
        seen = everywhere(service, flower, email_id)
        places |= {f"{place} while {moment}": content for place, content in seen.items()}
    assert service.record(email_id)["attempts"] == 3
    (mail,) = [one for one in service.smtp.messages if to in one.recipients]
    assert found(mail.data)

    assert {place: found(content) for place, content in places.items() if found(content)} == {}
    # It was looked for where the mail has been: all of these know its id.
    knowing = {place for place, content in places.items() if email_id.encode() in content}
    for wanted in (
        "inspect active while sending",
        "Flower /api/tasks while sending",
        f"Flower /task/{email_id} while sent",
        "GET /api/emails while retrying",
        "events.log while sent",
    ):
        assert wanted in knowing, sorted(knowing)
    for pattern in (
        r"Redis .*email:",
        r"api-\d+\.log",
        r"node-\d+\.log",
        r"appendonly.*\.incr\.aof",
        r".*\.base\.rdb",
    ):
        assert any(re.match(pattern, Path(place).name if "/" in place else place) for place in knowing), pattern

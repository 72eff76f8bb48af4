"""`/api/batches`: all of it or nothing, whatever is sent, and what can be seen of it."""

import asyncio
import csv
import io
import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

import httpx
import pytest
import redis
from fastapi import FastAPI

from api.batch_body import LONGEST_LINE
from mail.kinds import KINDS
from settings import get_settings
from support.api import ADMIN, MARK, TestClient, bearer, faults, problem
from support.batches import MAIL, people
from support.service import WELCOME
from utils.email_async import open_batch

BATCHES = "/api/batches"
NDJSON = {"Content-Type": "application/x-ndjson"}
Send = Callable[..., httpx.Response]


def post_json(client: TestClient, recipients: Iterable[Any], head: Any = MAIL, **headers: str) -> httpx.Response:
    # Not json=: httpx refuses to write lone surrogates.
    content = json.dumps({**head, "recipients": [*recipients]})
    return client.post(BATCHES, content=content, headers={"Content-Type": "application/json", **headers})


def lines(recipients: Iterable[Any], head: Any = MAIL) -> bytes:
    return "".join(f"{json.dumps(line)}\n" for line in (head, *recipients)).encode()


def post_lines(client: TestClient, recipients: Iterable[Any], head: Any = MAIL, **headers: str) -> httpx.Response:
    return client.post(BATCHES, content=lines(recipients, head), headers={**NDJSON, **headers})


@pytest.fixture(params=["json", "ndjson"])
def post(request: pytest.FixtureRequest, client: TestClient) -> Send:
    """`post(recipients, head)`, once as JSON and once as NDJSON."""
    send = post_json if request.param == "json" else post_lines

    def run(recipients: Iterable[Any], head: Any = MAIL, **headers: str) -> httpx.Response:
        return send(client, recipients, head, **headers)

    return run


def accepted(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 202, answer.text
    found: dict[str, Any] = answer.json()
    return found


def places(answer: httpx.Response) -> set[str]:
    """The fields that a 422 names, with NDJSON's lines turned into positions: the head is line 1."""
    found = set()
    for field in faults(answer):
        line, _, name = field.partition(", ")
        if line.startswith("line "):
            number = int(line.removeprefix("line ")) - 2
            found.add(f"recipients.{number}" + (f".{name}" if name else ""))
        else:
            found.add(field)
    return found


# Accepting


def test_accepted(client: TestClient, post: Send) -> None:
    recipients = [*people(250), "bob@example.com"]
    head = {**MAIL, "text": "{{ name }}"}
    recipients[-1] = {"to": "bob@example.com", "name": "Bob", "data": {"course": 7}}
    answer = accepted(post(recipients, head | {"course_id": "algebra-1"}))
    assert set(answer) == {"id", "state", "total", "duplicates", "status_url"}
    assert (answer["state"], answer["total"], answer["duplicates"]) == ("queued", 251, 0)
    batch = client.get(answer["status_url"]).json()
    assert batch["id"] == answer["id"]
    assert (batch["kind"], batch["course_id"], batch["on_unknown"]) == ("custom", "algebra-1", "hold")
    assert batch["subject"] == MAIL["subject"]
    assert batch["counts"] == {"queued": 251}
    assert not batch["ended"]
    status = client.get(f"/api/tasks/{answer['id']}").json()
    assert (status["task_id"], status["status"], status["state"]) == (answer["id"], "PENDING", "queued")
    one = client.get(f"/api/emails/{answer['id']}-250").json()
    assert (one["to"], one["state"], one["batch"]) == ("bob@example.com", "queued", answer["id"])


@pytest.mark.parametrize("kind", ["welcome", "course_enrollment", "certificate"])
def test_a_kind_with_shared_fields(client: TestClient, post: Send, kind: str) -> None:
    shared = KINDS[kind].sample().model_dump(mode="json", exclude={"to", "name"}, exclude_none=True)
    answer = accepted(
        post([{"to": "ada@example.com", "name": "Ada"}, {"to": "bob@example.com", "name": "B"}], shared)
    )
    assert client.get(answer["status_url"]).json()["kind"] == kind


@pytest.mark.parametrize("kind", ["password_reset", "email_verification", "custom2", 1])
def test_kinds_that_are_no_batch(post: Send, untouched: Callable[[], None], kind: object) -> None:
    assert set(faults(post(people(1), {"kind": kind}))) == {"kind"}
    untouched()


def test_send_at(client: TestClient, post: Send) -> None:
    answer = accepted(post(people(2), MAIL | {"send_at": "2040-01-01T00:00:00Z"}))
    assert client.get(answer["status_url"]).json()["counts"] == {"scheduled": 2}


def test_duplicates_are_counted(client: TestClient, post: Send) -> None:
    recipients = people(3)
    answer = accepted(post([*recipients, {**recipients[1], "to": "P1@EXAMPLE.COM"}, recipients[2]]))
    assert (answer["total"], answer["duplicates"]) == (3, 2)
    batch = client.get(answer["status_url"]).json()
    assert (batch["total"], batch["duplicates"]) == (3, 2)
    listed = client.get(f"{BATCHES}/{answer['id']}/recipients").json()["items"]
    assert [one["to"] for one in listed] == [one["to"] for one in recipients]


# Refusing: a 4xx with its position, and nothing is stored


def filled(**changes: Any) -> dict[str, Any]:
    return {**people(1)[0], "to": "last@example.com", **changes}


LINK = {"subject": "Hello", "html": '<p><a href="{{ course }}">course</a> {{ name }}</p>'}
TITLE = {"subject": "News of {{ course }}", "text": "Hello"}

BAD = {
    "no address": (MAIL, "ada", ""),
    "a number": (MAIL, 1, ""),
    "null": (MAIL, None, ""),
    "a list": (MAIL, ["ada@example.com"], ""),
    "wrong address": (MAIL, filled(to=MARK), ".to"),
    "no to": (MAIL, {"name": "Ada", "data": {"course": "x"}}, ".to"),
    "unknown field": (MAIL, filled(cc="bob@example.com"), ".cc"),
    "placeholder without a value": (MAIL, filled(data={}), ".data"),
    "name without a value": (MAIL, {"to": "last@example.com", "data": {"course": "x"}}, ".name"),
    "data of the wrong type": (MAIL, filled(data={"course": [MARK]}), ".data"),
    "data that is no object": (MAIL, filled(data=MARK), ".data"),
    "a script through a placeholder": (LINK, filled(data={"course": f"javascript:alert('{MARK}')"}), ".data"),
    "a line break in the subject": (TITLE, filled(data={"course": f"x\r\nBcc: {MARK}@evil.example"}), ".data"),
    "a control character": (MAIL, filled(data={"course": "x\0y"}), ".data"),
    "a web address in a name": (MAIL, filled(name="www.evil.example/x"), ".name"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("before", [0, 700])
def test_one_bad_recipient(post: Send, untouched: Callable[[], None], name: str, before: int) -> None:
    head, bad, field = BAD[name]
    good = [{**one, "data": {"course": "https://lms.example.com/1"}} for one in people(before)]
    [place] = places(post([*good, bad], head))
    assert place.startswith(f"recipients.{before}")
    if field:
        assert place.startswith(f"recipients.{before}{field}")
    untouched()


def test_several_are_named_at_once(post: Send, untouched: Callable[[], None]) -> None:
    assert places(post([*people(2), "x", *people(1, first=2), "y"])) == {"recipients.2.to", "recipients.4.to"}
    untouched()
    assert 20 <= len(faults(post(["x"] * 1000))) <= 40
    untouched()


@pytest.mark.parametrize(
    ("head", "field"),
    [
        ({}, "subject"),
        ({**MAIL, "subject": "a\nb"}, "subject"),
        ({**MAIL, "html": "<script>x</script>"}, "html"),
        ({**MAIL, "bcc": MARK}, "bcc"),
        ({**MAIL, "to": "ada@example.com"}, "to"),
        ({**MAIL, "send_at": "tomorrow"}, "send_at"),
        ({**MAIL, "send_at": "2030-01-01T00:00:00"}, "send_at"),
        ({**MAIL, "send_at": "2001-01-01T00:00:00Z"}, "send_at"),
        ({**MAIL, "expires_at": "2001-01-01T00:00:00Z"}, "expires_at"),
        ({**MAIL, "on_unknown": MARK}, "on_unknown"),
        ({**MAIL, "course_id": ""}, "course_id"),
        ({**MAIL, "course_id": "x" * 101}, "course_id"),
        ({**MAIL, "reply_to": MARK}, "reply_to"),
    ],
)
def test_a_bad_head(post: Send, untouched: Callable[[], None], head: dict[str, Any], field: str) -> None:
    assert field in faults(post(people(1), head))
    untouched()


def test_no_recipients(post: Send, untouched: Callable[[], None]) -> None:
    assert set(faults(post([]))) == {"recipients"}
    untouched()


def test_many_copies_of_one_address(post: Send, untouched: Callable[[], None]) -> None:
    [place] = places(post(filled() for _ in range(10_000)))
    assert place.startswith("recipients.")
    assert place.endswith(".to")
    untouched()


def test_one_too_many_in_a_json_body(client: TestClient, untouched: Callable[[], None]) -> None:
    found = faults(post_json(client, (f"p{number}@example.com" for number in range(100_001))))
    assert "application/x-ndjson" in found.pop("recipients.100000")
    assert not found
    untouched()


def test_one_too_many_lines(open_api: Callable[..., TestClient], untouched: Callable[[], None]) -> None:
    client = open_api(BATCH_STREAM_MAX_RECIPIENTS="600", BATCH_MAX_RECIPIENTS="10")
    assert set(faults(post_lines(client, people(601)))) == {"line 602"}
    untouched()
    assert accepted(post_lines(client, people(600)))["total"] == 600


@pytest.mark.parametrize(
    ("content", "field"),
    [
        (lines(people(600))[:-1], "line 601"),
        (lines(people(600))[:-20], "line 601"),
        (lines(people(600)) + b"{'to': 1}\n", "line 602"),
        (lines(people(600)) + b'"\xff"\n', "line 602"),
        (lines(people(600)) + b'"' + b"x" * 5_000_000 + b'"\n' + lines(people(9)), "line 602"),
        (lines(people(600)) + b"[" * 60_000 + b"\n", "line 602"),
        (lines(people(600)) + b'{"to": "a@example.com", "to": "b@example.com"}\n', "line 602"),
        (b"", "line 1"),
        (b"x" * 6_000_000, "line 1"),
    ],
    ids=["no line break", "cut off", "no JSON", "no UTF-8", "5 MB", "deep", "twice", "empty", "no line at all"],
)
def test_broken_lines(client: TestClient, untouched: Callable[[], None], content: bytes, field: str) -> None:
    assert set(faults(client.post(BATCHES, content=content, headers=NDJSON))) == {field}
    untouched()


def test_endless_nonsense_ends_early(client: TestClient, untouched: Callable[[], None]) -> None:
    async def messages() -> AsyncIterator[Any]:
        yield {"type": "http.request", "body": lines(people(1)), "more_body": True}
        yield {"type": "http.request", "body": b"nonsense\n" * 1000, "more_body": True}
        raise AssertionError("it was read on")

    start, body = run_app(client, messages, {**NDJSON, **ADMIN})
    assert start["status"] == 422
    assert len(json.loads(body["body"])["errors"]) >= 20
    untouched()


@pytest.mark.parametrize("end", ["", "]", "]}x", "]}" + " " * 100 + "{}", ",]}", ', "\\ud800"]}'])
def test_a_broken_json_body(client: TestClient, untouched: Callable[[], None], end: str) -> None:
    content = json.dumps({**MAIL, "recipients": people(600)}).removesuffix("]}") + end
    answer = client.post(BATCHES, content=content, headers={"Content-Type": "application/json"})
    [field] = faults(answer)
    assert field in ("body", "recipients", "recipients.600")
    untouched()


@pytest.mark.parametrize("content_type", ["", "text/csv", "application/jsonl", "multipart/form-data; boundary=x"])
def test_other_content(client: TestClient, untouched: Callable[[], None], content_type: str) -> None:
    answer = client.post(BATCHES, content=lines(people(1)), headers={"Content-Type": content_type})
    assert "application/x-ndjson" in problem(answer, 415)["detail"]
    untouched()


def test_too_large(open_api: Callable[..., TestClient], untouched: Callable[[], None]) -> None:
    client = open_api(BATCH_MAX_BODY_BYTES="100000", MAX_BODY_BYTES="1000")
    whole = lines(people(900))
    assert len(whole) < 100_000

    def pieces() -> Iterator[bytes]:
        yield from (whole[start : start + 1000] for start in range(0, len(whole), 1000))
        yield b" " * 100_000

    for content in (whole + b" " * 100_000, pieces()):
        answer = client.post(BATCHES, content=content, headers=NDJSON)
        assert "BATCH_MAX_BODY_BYTES" in problem(answer, 413)["detail"]
        untouched()
    assert accepted(client.post(BATCHES, content=whole, headers=NDJSON))["total"] == 900


def test_a_head_may_be_as_large_as_an_email(
    open_api: Callable[..., TestClient], untouched: Callable[[], None]
) -> None:
    client = open_api(MAX_BODY_BYTES="100000")
    head = {**MAIL, "html": "<p>" + "x" * 400_000}
    assert set(faults(post_lines(client, people(1), head))) == {"line 1"}
    assert set(faults(post_json(client, people(1), head))) == {"html"}
    untouched()
    head = {**MAIL, "html": "<p>" + "x" * (LONGEST_LINE + 10_000)}
    for send in (post_lines, post_json):
        accepted(send(client, people(1), head))


# Whoever goes away, or may not


def run_app(client: TestClient, messages: Callable[[], AsyncIterator[Any]], headers: dict[str, str]) -> list[Any]:
    """What the application sends for a request of these messages."""
    assert isinstance(client.app, FastAPI)
    source, sent = messages(), []

    async def receive() -> Any:
        return await anext(source)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "server": ("testserver", 80),
        "path": BATCHES,
        "raw_path": BATCHES.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
    }
    asyncio.run(client.app(scope, receive, send))
    return sent


@pytest.mark.parametrize(("headers", "status"), [({}, 401), (bearer("send-key"), 403), (bearer("read-key"), 403)])
def test_refused_before_it_is_read(
    client: TestClient, untouched: Callable[[], None], headers: dict[str, str], status: int
) -> None:
    async def messages() -> AsyncIterator[Any]:
        raise AssertionError("the body was read")
        yield

    assert run_app(client, messages, {**NDJSON, **headers})[0]["status"] == status
    untouched()


def keys(store: "redis.Redis") -> list[str]:
    return list(store.scan_iter(f"{get_settings().key_prefix}*", count=1000))


def test_a_client_that_goes_away(client: TestClient, store: "redis.Redis", untouched: Callable[[], None]) -> None:
    async def messages() -> AsyncIterator[Any]:
        yield {"type": "http.request", "body": lines(people(1200)), "more_body": True}
        assert keys(store), "nothing was written before the client went"
        while True:
            yield {"type": "http.disconnect"}

    run_app(client, messages, {**NDJSON, **ADMIN, "Idempotency-Key": "k"})
    untouched()


def test_a_client_that_goes_away_before_the_answer(client: TestClient, untouched: Callable[[], None]) -> None:
    async def messages() -> AsyncIterator[Any]:
        yield {"type": "http.request", "body": lines(people(1200)), "more_body": False}
        while True:
            yield {"type": "http.disconnect"}

    run_app(client, messages, {**NDJSON, **ADMIN})
    untouched()


def test_a_request_that_is_cancelled(client: TestClient, store: "redis.Redis", untouched: Callable[[], None]) -> None:
    async def messages() -> AsyncIterator[Any]:
        yield {"type": "http.request", "body": lines(people(1200)), "more_body": True}
        assert keys(store), "nothing was written before the request was cancelled"
        task = asyncio.current_task()
        assert task
        task.cancel()
        await asyncio.sleep(60)

    with pytest.raises(asyncio.CancelledError):
        run_app(client, messages, {**NDJSON, **ADMIN})
    untouched()


def test_other_calls_are_answered_meanwhile(client: TestClient) -> None:
    """Between two pieces of a batch, other calls come and are answered."""
    whole = lines(people(2000))
    answered = []

    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(client.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://testserver", headers=ADMIN) as http:

            async def pieces() -> AsyncIterator[bytes]:
                for start in range(0, len(whole), 50_000):
                    yield whole[start : start + 50_000]
                    alive, email = await asyncio.gather(
                        http.get("/health/live"), http.post("/api/emails", json=WELCOME)
                    )
                    answered.append((alive.status_code, email.status_code))

            return await http.post(BATCHES, content=pieces(), headers=NDJSON)

    assert accepted(asyncio.run(run()))["total"] == 2000
    assert len(answered) > 2
    assert set(answered) == {(200, 202)}


# The same again


def test_replayed(client: TestClient, post: Send) -> None:
    head = {"Idempotency-Key": "grades-7"}
    first, second = post(people(3), **head), post(people(3), **head)
    assert accepted(second) == accepted(first)
    assert "Idempotent-Replayed" not in first.headers
    assert second.headers["Idempotent-Replayed"] == "true"
    assert len(client.get(BATCHES).json()["items"]) == 1
    assert accepted(post(people(3), **head, **bearer("other-key")))["id"] != first.json()["id"]


def test_the_form_makes_no_difference(client: TestClient) -> None:
    head = {"Idempotency-Key": "grades-7"}
    first = accepted(post_json(client, people(3), **head))
    assert accepted(post_lines(client, people(3), **head)) == first


def test_conflict(post: Send, client: TestClient) -> None:
    head = {"Idempotency-Key": "grades-7"}
    accepted(post(people(3), **head))
    problem(post(people(4), **head), 409)
    problem(post(people(3), MAIL | {"subject": "Other"}, **head), 409)
    assert len(client.get(BATCHES).json()["items"]) == 1


def test_a_refused_batch_leaves_its_key_free(post: Send, untouched: Callable[[], None]) -> None:
    head = {"Idempotency-Key": "grades-7"}
    faults(post([*people(600), "x"], **head))
    untouched()
    accepted(post(people(3), **head))


def test_still_being_accepted(client: TestClient, post: Send) -> None:
    head = {"Idempotency-Key": "grades-7"}
    intake = open_batch(MAIL, idempotency_key="grades-7", scope="api:all")
    assert "still being taken in" in problem(post(people(3), **head), 409)["detail"]
    assert client.get(BATCHES).json()["items"] == []
    problem(client.get(f"{BATCHES}/{intake.id}"), 404)
    intake.discard()
    accepted(post(people(3), **head))


def test_a_bad_key(post: Send, untouched: Callable[[], None]) -> None:
    for key in ("", "x" * 256):
        assert set(faults(post(people(1), **{"Idempotency-Key": key}))) == {"Idempotency-Key"}
    untouched()


# Looking and steering


def test_list_pages(client: TestClient) -> None:
    ids = [accepted(post_json(client, people(1)))["id"] for _ in range(5)]
    found: list[str] = []
    cursor = None
    while True:
        page = client.get(BATCHES, params={"limit": 2} | ({"cursor": cursor} if cursor else {})).json()
        assert len(page["items"]) <= 2
        found += [one["id"] for one in page["items"]]
        if (cursor := page["next"]) is None:
            break
    assert found == ids[::-1]
    assert set(faults(client.get(BATCHES, params={"cursor": MARK}))) == {"cursor"}
    assert set(faults(client.get(BATCHES, params={"limit": 0}))) == {"limit"}


def test_recipients_page(client: TestClient) -> None:
    recipients = people(250)
    url = f"{BATCHES}/{accepted(post_json(client, recipients))['id']}/recipients"
    found: list[dict[str, Any]] = []
    cursor = None
    while True:
        page = client.get(url, params={"limit": 99} | ({"cursor": cursor} if cursor else {})).json()
        assert len(page["items"]) <= 99
        found += page["items"]
        if (cursor := page["next"]) is None:
            break
    assert [one["to"] for one in found] == [one["to"] for one in recipients]
    assert [one["name"] for one in found] == [one["name"] for one in recipients]
    assert [one["position"] for one in found] == [*range(250)]
    assert {one["state"] for one in found} == {"queued"}
    assert client.get(f"/api/emails/{found[7]['email_id']}").json()["to"] == "p7@example.com"
    assert client.get(url, params={"state": "sent"}).json() == {"items": [], "next": None}
    assert client.get(url, params={"missed": "true"}).json()["items"] == []
    assert set(faults(client.get(url, params={"state": MARK}))) == {"state"}
    assert set(faults(client.get(url, params={"cursor": MARK}))) == {"cursor"}


def test_csv(client: TestClient) -> None:
    recipients = [
        {"to": "=cmd@example.com", "name": "=HYPERLINK(x)", "data": {"course": "x"}},
        {"to": "+49@example.com", "name": 'A "quoted", name', "data": {"course": "x"}},
        {"to": "zoe@example.com", "name": "Zoë", "data": {"course": "x"}},
        *people(2500),
    ]
    batch = accepted(post_json(client, recipients))["id"]
    url = f"{BATCHES}/{batch}/recipients"
    answer = client.get(url, headers={"Accept": "text/csv"}, params={"limit": "1"})
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["content-disposition"] == f'attachment; filename="{batch}.csv"'
    columns, *rows = csv.reader(io.StringIO(answer.text))
    assert ",".join(columns) == (
        "email_id,position,to,name,state,attempts,smtp_code,smtp_reply,error,sent_at,possible_duplicate"
    )
    assert len(rows) == len(recipients)
    assert [row[2] for row in rows[3:]] == [one["to"] for one in people(2500)]
    assert [row[2] for row in rows[:3]] == ["'=cmd@example.com", "'+49@example.com", "zoe@example.com"]
    assert [row[3] for row in rows[:3]] == ["'=HYPERLINK(x)", 'A "quoted", name', "Zoë"]
    client.post(f"{BATCHES}/{batch}/cancel")
    for query, count in (({"missed": "true"}, 2503), ({"state": "sent"}, 0), ({"state": "cancelled"}, 2503)):
        answer = client.get(url, headers={"Accept": "text/csv"}, params=query)
        assert len(answer.text.splitlines()) == count + 1
    assert (
        "missed"
        in client.get(url, headers={"Accept": "text/csv"}, params={"missed": "true"}).headers["content-disposition"]
    )
    problem(client.get(f"{BATCHES}/batch-0/recipients", headers={"Accept": "text/csv"}), 404)


def test_steering(client: TestClient) -> None:
    batch = accepted(post_json(client, people(300)))["id"]

    def steer(verb: str) -> httpx.Response:
        return client.post(f"{BATCHES}/{batch}/{verb}")

    version = client.get(f"{BATCHES}/{batch}").json()["version"]
    for verb, state in (("pause", "paused"), ("resume", "queued"), ("pause", "paused")):
        for _ in range(2):
            answer = steer(verb)
            assert answer.status_code == 200
            assert answer.json()["state"] in (state, "sending" if verb == "resume" else state)
        assert answer.json()["version"] > version
        version = answer.json()["version"]
    for _ in range(2):
        found = steer("cancel").json()
        assert (found["state"], found["counts"], found["ended"]) == ("cancelled", {"cancelled": 300}, True)
    for verb in ("pause", "resume", "retry-failed", "release-held"):
        assert "cancelled" in problem(steer(verb), 409)["detail"]
    status = client.get(f"/api/tasks/{batch}").json()
    assert (status["status"], status["state"]) == ("REVOKED", "cancelled")


def test_unknown(client: TestClient) -> None:
    for batch in ("batch-0", MARK, "some-id", "batch-%0a"):
        for path in ("", "/recipients", "/events"):
            assert problem(client.get(f"{BATCHES}/{batch}{path}"), 404)["detail"] == "There is no batch with this id."
        for verb in ("pause", "resume", "cancel", "retry-failed", "release-held", "drop-held"):
            problem(client.post(f"{BATCHES}/{batch}/{verb}"), 404)
    problem(client.post(f"{BATCHES}/batch-0/explode"), 404)
    problem(client.get("/api/tasks/batch-0"), 404)

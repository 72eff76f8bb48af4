"""`/api/batches/{id}/events`: Server-Sent Events that resume, end, and never hold the server up."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.batches import moment_of
from api.streams import MOST, EventStreams
from support.api import TestClient, problem
from support.batches import MAIL, people, start_batch
from support.processes import Api, Valkey, wait_until
from utils.composition import get_batches


@pytest.fixture
def api(env: Mapping[str, str], tmp_path: Path) -> Iterator[Api]:
    with Api(env, tmp_path) as api:
        yield api


@pytest.fixture
def http(api: Api) -> Iterator[httpx.Client]:
    with api.client() as http:
        yield http


def events(chunks: Iterator[str]) -> Iterator[dict[str, str]]:
    """The fields of each event, `comment` for those that are only heard."""
    fields: dict[str, str] = {}
    for line in chunks:
        if line:
            name, _, value = line.partition(":")
            fields[name or "comment"] = value.removeprefix(" ")
        elif fields:
            yield fields
            fields = {}


def follow(http: httpx.Client, batch: str, last_id: str | None = None) -> Any:
    headers = {"Last-Event-ID": last_id} if last_id else {}
    return http.stream("GET", f"/api/batches/{batch}/events", headers=headers)


def test_until_the_end(http: httpx.Client) -> None:
    batch = start_batch(http, people(3))
    with follow(http, batch) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-cache"
        assert answer.headers["x-accel-buffering"] == "no"
        stream = events(answer.iter_lines())
        assert int(next(stream)["retry"]) > 0
        first = next(stream)
        assert first["event"] == "progress"
        assert json.loads(first["data"]) == http.get(f"/api/batches/{batch}").json()
        assert first["id"] == str(json.loads(first["data"])["version"])
        http.post(f"/api/batches/{batch}/pause")
        second = next(stream)
        assert json.loads(second["data"])["state"] == "paused"
        assert second["id"] != first["id"]
        http.post(f"/api/batches/{batch}/cancel")
        rest = [*stream]
    assert [one["event"] for one in rest if "event" in one][-1] == "end"
    assert json.loads(rest[-2]["data"])["counts"] == {"cancelled": 3}
    # Who has seen the end is told to stop; who has seen all but the end gets only that.
    assert http.get(f"/api/batches/{batch}/events", headers={"Last-Event-ID": rest[-1]["id"]}).status_code == 204
    with follow(http, batch, rest[-2]["id"]) as answer:
        assert [one.get("event") for one in events(answer.iter_lines())] == [None, "end"]


def test_resumed(http: httpx.Client) -> None:
    batch = start_batch(http, people(3))
    version = http.get(f"/api/batches/{batch}").json()["version"]
    with follow(http, batch, str(version)) as answer:
        stream = events(answer.iter_lines())
        assert "retry" in next(stream)
        paused = http.post(f"/api/batches/{batch}/pause").json()
        assert json.loads(next(stream)["data"])["version"] == paused["version"]
    with follow(http, batch, "something else") as answer:
        stream = events(answer.iter_lines())
        assert [next(stream).get("event"), next(stream).get("event")] == [None, "progress"]


def test_those_who_go_away_make_room(http: httpx.Client) -> None:
    batch = start_batch(http, people(1))
    with httpx.Client(
        base_url=http.base_url, headers=http.headers, timeout=30, limits=httpx.Limits(max_connections=None)
    ) as many:
        with ExitStack() as stack:
            streams = [events(stack.enter_context(follow(many, batch)).iter_lines()) for _ in range(MOST)]
            assert all("retry" in next(stream) for stream in streams)
            answer = many.get(f"/api/batches/{batch}/events")
            problem(answer, 503)
            assert int(answer.headers["Retry-After"]) > 0
            assert many.get("/health/live").status_code == 200

        def has_room() -> bool:
            with follow(many, batch) as answer:
                return bool(answer.status_code == 200)

        wait_until(has_room, what="room for another stream")


def test_the_process_ends_with_streams_open(api: Api, http: httpx.Client) -> None:
    batch = start_batch(http, people(1))
    with follow(http, batch) as answer:
        stream = events(answer.iter_lines())
        next(stream)
        api.stop(timeout=8)
        assert all(one.get("event") != "end" for one in stream)


# In this process, with shorter periods


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.streams.LOOK_EVERY", 0.01)
    monkeypatch.setattr("api.streams.HEARTBEAT_EVERY", 0.03)


def start(client: TestClient) -> str:
    answer = client.post("/api/batches", json={**MAIL, "recipients": people(1)})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


async def until(stream: AsyncIterator[bytes], words: bytes) -> bytes:
    """The next event that has these words in it."""
    async with asyncio.timeout(30):
        async for event in stream:
            if words in event:
                return event
    raise AssertionError("the stream has ended")


@pytest.mark.usefixtures("quick")
def test_heartbeats(client: TestClient) -> None:
    batch = start(client)
    version = str(get_batches().batch(batch).version)

    async def run() -> None:
        stream = EventStreams().follow(partial(moment_of, batch), last_id=version)
        assert b"retry" in await anext(stream)
        for _ in range(3):
            assert await anext(stream) == b": ping\n\n"

    asyncio.run(run())


@pytest.mark.usefixtures("quick")
def test_redis_goes_away_and_comes_back(open_api: Callable[..., TestClient], tmp_path: Path) -> None:
    with Valkey(tmp_path) as valkey:
        client = open_api(REDIS_URL=valkey.url)
        batch = start(client)

        async def run() -> None:
            stream = EventStreams().follow(partial(moment_of, batch))
            await until(stream, b"progress")
            valkey.kill()
            await until(stream, b": ping")
            await until(stream, b": ping")
            await asyncio.to_thread(valkey.start)
            await asyncio.to_thread(client.post, f"/api/batches/{batch}/pause")
            assert b"paused" in await until(stream, b"progress")

        asyncio.run(run())

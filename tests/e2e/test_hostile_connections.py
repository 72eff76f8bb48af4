"""A real uvicorn, and clients that ask too much of it before any key is looked at."""

import json
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from configparser import RawConfigParser
from itertools import count, repeat
from pathlib import Path

import httpx
import psutil
import pytest

from api.connections import LOOK_EVERY, MAX_HEADERS, MAX_PIPELINED, PATIENCE
from support.hostile import Bystander, Wire
from support.processes import Api, Valkey
from support.service import WELCOME, service_env
from support.smtp_server import SmtpServer

ROOT = Path(__file__).resolve().parents[2]
GET = b"GET /health/live HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /api/emails HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer all-key\r\nContent-Type: application/json\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
BODY = json.dumps(WELCOME).encode()
MEGABYTE = 2**20


def by_hand(api: Api) -> list[str]:
    """`uvicorn main:app`."""
    return api.command


def by_supervisor(api: Api) -> list[str]:
    """The command of deploy/supervisord.conf."""
    config = RawConfigParser(inline_comment_prefixes=(" ;",))
    config.read(ROOT / "deploy" / "supervisord.conf")
    values = {"PYTHON": sys.executable, "API_HOST": "127.0.0.1", "API_PORT": str(api.port)}
    return shlex.split(re.sub(r"%\(ENV_(\w+)\)s", lambda name: values[name[1]], config["program:api"]["command"]))


@pytest.fixture(scope="module")
def api(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, valkey: Valkey) -> Iterator[Api]:
    with SmtpServer() as smtp:
        process = Api(service_env(valkey.url, smtp), tmp_path_factory.mktemp("api"))
        process.command = getattr(request, "param", by_supervisor)(process)
        with process:
            yield process


@pytest.fixture(autouse=True)
def others_are_served(api: Api) -> Iterator[None]:
    """Whatever a test does: no memory stays or is needed for it, and others get their answers at once."""
    process = psutil.Process(api.pid)
    before = process.memory_info().rss
    with Bystander(f"{api.url}/health/live") as bystander:
        yield
    assert bystander.failures == 0
    assert bystander.longest < 1.5
    assert process.memory_info().rss - before < 60 * MEGABYTE


def endless(piece: bytes) -> Iterator[bytes]:
    return repeat(piece)


def many_headers(size: int) -> Iterator[bytes]:
    return (
        b"".join(b"X-%d: %s\r\n" % (number, b"a" * size) for number in range(at, at + 500)) for at in count(0, 500)
    )


FLOODS: dict[str, tuple[bytes, Callable[[], Iterator[bytes]]]] = {
    "100 MB of headers": (GET, lambda: many_headers(1_000)),
    "a million headers": (GET, lambda: many_headers(1)),
    "a header line that never ends": (GET + b"X-A: ", lambda: endless(b"a" * 60_000)),
    "a header name that never ends": (GET, lambda: endless(b"a" * 60_000)),
    "a target that never ends": (b"GET /?", lambda: endless(b"a" * 60_000)),
    "line breaks before a request": (b"", lambda: endless(b"\r\n" * 30_000)),
    "line breaks after a request": (GET + b"\r\n", lambda: endless(b"\r\n" * 30_000)),
    "requests without waiting for answers": (b"", lambda: endless((GET + b"\r\n") * 1_000)),
    "a chunk extension that never ends": (CHUNKED + b"1;a=", lambda: endless(b"a" * 60_000)),
    "a trailer that never ends": (CHUNKED + b"1\r\n{\r\n0\r\nX-A: ", lambda: endless(b"a" * 60_000)),
    "trailers without end": (CHUNKED + b"1\r\n{\r\n0\r\n", lambda: many_headers(1_000)),
}


@pytest.mark.parametrize("api", [by_hand, by_supervisor], indirect=True)
@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_is_cut_off(api: Api, name: str) -> None:
    begin, pieces = FLOODS[name]
    with Wire(api.port) as wire:
        wire.send(begin)
        # The kernels' buffers at both ends hold a few megabytes.
        assert wire.send_all(pieces()) < 20 * MEGABYTE


def test_too_many_headers_get_an_answer(api: Api) -> None:
    with Wire(api.port) as wire:
        wire.send(GET + b"X-A: a\r\n" * MAX_HEADERS + b"\r\n")
        head, _, body = wire.read().partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
        assert b"application/problem+json" in head
        assert json.loads(body)["status"] == 431
        assert wire.closed
    with Wire(api.port) as wire:
        wire.send(GET + b"X-A: a\r\n" * (MAX_HEADERS - 1) + b"\r\n")
        assert wire.read(0.5).startswith(b"HTTP/1.1 200")
        assert not wire.closed


def test_a_long_header_gets_an_answer(api: Api) -> None:
    with Wire(api.port) as wire:
        wire.send(GET)
        time.sleep(0.1)
        wire.send(b"X-A: " + b"a" * 70_000)
        assert wire.read().startswith(b"HTTP/1.1 431")
    assert httpx.get(f"{api.url}/health/live", headers={"X-A": "a" * 50_000}).status_code == 200


def test_requests_may_come_one_after_the_other(api: Api) -> None:
    with Wire(api.port) as wire:
        wire.send((GET + b"\r\n") * MAX_PIPELINED)
        assert wire.read(3).count(b"HTTP/1.1 200") == MAX_PIPELINED
        wire.send(POST + b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY))
        assert wire.read(3).startswith(b"HTTP/1.1 202")
        assert not wire.closed


def test_a_body_in_small_chunks_is_taken(api: Api) -> None:
    with Wire(api.port) as wire:
        padded = BODY + b" " * 50_000
        wire.send(CHUNKED + b"".join(b"1\r\n%c\r\n" % byte for byte in padded) + b"0\r\nX-Trailer: x\r\n\r\n")
        assert wire.read().startswith(b"HTTP/1.1 202")
        wire.send(GET + b"\r\n")
        assert wire.read(0.5).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "begin",
    [
        POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        POST + b"Content-Length: +2\r\n\r\n{}",
        POST + b"Content-Length: -2\r\n\r\n{}",
        POST + b"Content-Length: 0x2\r\n\r\n{}",
        POST + b"Content-Length: %d\r\n\r\n{}" % 10**30,
        POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        CHUNKED + b"zz\r\n",
        CHUNKED + b"-1\r\n",
        CHUNKED + b"f" * 17 + b"\r\n",
        CHUNKED + b"2\r\n{}x\r\n0\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\nHost : x\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\nHost: x\r\n X-A: folded\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\nX-A: a\0b\r\n\r\n",
        b"GET /health/live HTTP/1.1\nHost: x\n\n",
        b"GET /health/l\xc3\xafve HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /health/live HTTP/9.9\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n",
        bytes.fromhex("16030100a5010000a10303"),
    ],
)
def test_what_two_programs_could_read_differently_is_refused(api: Api, begin: bytes) -> None:
    with Wire(api.port) as wire:
        wire.send(begin)
        assert re.match(rb"HTTP/1\.1 4\d\d ", wire.read())
        assert wire.closed


@pytest.mark.parametrize(
    ("begin", "status", "stays_open"),
    [
        (b"GET /health/live HTTP/1.0\r\n\r\n", 200, False),
        (b"GET http://evil.example/health/live HTTP/1.1\r\nHost: x\r\n\r\n", 200, True),
        (b"GET //evil.example/ HTTP/1.1\r\nHost: x\r\n\r\n", 404, True),
        (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 404, True),
        (b"TRACE /health/live HTTP/1.1\r\nHost: x\r\nX-Secret: x\r\n\r\n", 405, True),
        (b"GET /api/emails/%00%ff%0d%0aX-A:a HTTP/1.1\r\nAuthorization: Bearer all-key\r\n\r\n", 404, True),
        (b"GET /api/emails HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", 400, False),
        (POST + b"Expect: 100-continue\r\nContent-Length: 50000000\r\n\r\n", 413, False),
    ],
)
def test_odd_requests_get_an_ordinary_answer(api: Api, begin: bytes, status: int, stays_open: bool) -> None:
    with Wire(api.port) as wire:
        wire.send(begin)
        assert wire.read(0.5).startswith(b"HTTP/1.1 %d" % status)
        assert wire.closed is not stays_open


def test_a_body_that_is_cut_short_accepts_nothing(api: Api) -> None:
    with Wire(api.port) as wire, api.client() as client:
        before = client.get("/api/emails").json()["items"]
        wire.send(POST + b"Content-Length: 500\r\n\r\n" + BODY)
        wire.end()
        wire.read()
        assert wire.closed
        assert client.get("/api/emails").json()["items"] == before


def test_whoever_is_slow_is_cut_off(api: Api) -> None:
    """500 connections that send nothing, and some that send a little now and then."""
    idle = [Wire(api.port) for _ in range(500)]
    trickles = {
        "head": (Wire(api.port), GET, b"X-A: a\r\n"),
        "body": (Wire(api.port), POST + b"Content-Length: 5000\r\n\r\n", b" "),
        "chunks": (Wire(api.port), CHUNKED, b"1\r\n \r\n"),
        "refused": (Wire(api.port), POST.replace(b"all-key", b"wrong") + b"Content-Length: 5000\r\n\r\n", b" "),
        "breaks": (Wire(api.port), GET + b"\r\n", b"\r\n"),
    }
    steady = Wire(api.port, timeout=30)
    answers = dict.fromkeys(trickles, b"")
    steady.send(POST + b"Content-Length: 60000\r\n\r\n")
    for wire, begin, _ in trickles.values():
        wire.send(begin)
    begun, sent = time.monotonic(), 0
    while time.monotonic() - begun < PATIENCE + 2 * LOOK_EVERY:
        time.sleep(1)
        for name, (wire, _, piece) in trickles.items():
            wire.send(piece)
            answers[name] += wire.read(0.01)
        if sent < 60_000:
            steady.send(b" " * 2_000)
            sent += 2_000
    for wire in idle:
        wire.poll()
    assert [wire.closed for wire in idle] == [True] * 500
    assert {name: wire.closed for name, (wire, _, _) in trickles.items()} == dict.fromkeys(trickles, True)
    for name in ("head", "body", "chunks"):
        assert answers[name].startswith(b"HTTP/1.1 408 Request Timeout"), name
    assert answers["refused"].startswith(b"HTTP/1.1 401")
    # A slow line that keeps its pace is waited for.
    assert steady.send(b" " * (60_000 - sent))
    assert steady.read().startswith(b"HTTP/1.1 422")
    for wire in [*idle, steady, *(wire for wire, _, _ in trickles.values())]:
        wire.close()

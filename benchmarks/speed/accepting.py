"""S1 to S4: taking mails in, one by one and many at once."""

import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import httpx

from speed.http import Connection, latency, request, throughput
from speed.measuring import Case, Table, measured
from support.processes import BIN, Api, Process, Valkey, free_port, wait_until
from support.service import service_env
from support.smtp_server import SmtpServer

PEERS = Path(__file__).resolve().parents[1] / "peers"
PERSISTENCE = "Redis with an append-only file (appendfsync everysec), one uvicorn worker each, on loopback."
_numbers = itertools.count()


class Stage(NamedTuple):
    """What runs: our API, the plain one, their Redis and SMTP server."""

    ours: Api
    plain: int
    env: dict[str, str]
    smtp: SmtpServer


@contextmanager
def stage(*, smtp_seconds: float = 0.0) -> Iterator[Stage]:
    """Our API and the plain one, on the same Redis. `smtp_seconds`: how long the SMTP server takes for a mail."""
    with TemporaryDirectory() as name, SmtpServer() as smtp, Valkey(Path(name)) as valkey:
        if smtp_seconds:
            smtp.delay("dot", smtp_seconds)
        env = service_env(valkey.url, smtp, API_REQUESTS_PER_MINUTE="0", LOG_LEVEL="WARNING")
        port = free_port()
        plain = Process(
            [str(BIN / "uvicorn"), "plain:api", "--port", str(port), "--no-access-log"],
            Path(name) / "plain.log",
            {**env, "PYTHONPATH": str(PEERS)},
        )
        with Api(env, Path(name)) as ours, plain:
            wait_until(lambda: _answers(port), timeout=30, what="the plain API")
            yield Stage(ours, port, env, smtp)


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/openapi.json", timeout=1).is_success
    except httpx.TransportError:
        return False


def _mail() -> dict[str, str]:
    return {"to": f"p{next(_numbers)}@example.com", "name": "Ada"}


def _ours() -> bytes:
    body = json.dumps({"kind": "welcome", **_mail()}).encode()
    return request("POST", "/api/emails", body, Content_Type="application/json", Authorization="Bearer all-key")


def _plain(path: str) -> Callable[[], bytes]:
    return lambda: request("POST", path, json.dumps(_mail()).encode(), Content_Type="application/json")


def latency_of_one(quick: bool) -> Table:
    """S1."""
    with stage() as at, Connection(at.plain) as plain, Connection(at.ours.port) as ours:
        count = 50
        cases = [
            Case("empty route", lambda: latency(plain, _plain("/empty"), count)),
            Case("ours", lambda: latency(ours, _ours, count)),
            Case(".delay() in a route", lambda: latency(plain, _plain("/delay"), count)),
        ]
        measured(cases, 3)
        rows = measured(cases, 8 if quick else 40)
    ratio = rows[1].ratio
    return Table(
        "S1: accepting over HTTP, one connection", "ms p50", rows, "at most 2.5", ratio, ratio <= 2.5, PERSISTENCE
    )


def throughput_at_16(quick: bool) -> Table:
    """S2."""
    with stage() as at:
        seconds = 1.0 if quick else 3.0

        def case(name: str, port: int, ask: Callable[[], bytes]) -> Case:
            return Case(name, lambda: throughput(port, ask, connections=16, seconds=seconds))

        cases = [
            case("empty route", at.plain, _plain("/empty")),
            case("ours", at.ours.port, _ours),
            case(".delay() in a route", at.plain, _plain("/delay")),
        ]
        rows = measured(cases, 3 if quick else 7)
    share = rows[1].ratio
    return Table(
        "S2: accepting over HTTP, 16 connections", "mails/s", rows, "at least 0.35", share, share >= 0.35, PERSISTENCE
    )


def against_inline(quick: bool) -> Table:
    """S3."""
    with stage(smtp_seconds=0.5) as at, Connection(at.plain) as plain, Connection(at.ours.port) as ours:
        latency(ours, _ours, 50)
        cases = [
            Case("ours", lambda: latency(ours, _ours, 20)),
            Case("sent in the request", lambda: latency(plain, _plain("/inline"), 1)),
        ]
        rows = measured(cases, 5 if quick else 15)
    ratio = rows[1].ratio
    return Table(
        "S3: against sending in the request, to a server that takes 500 ms",
        "ms p50", rows, "at least 300", ratio, ratio >= 300, PERSISTENCE,
    )  # fmt: skip


def batch_of_10000(quick: bool) -> Table:
    """S4."""
    count = 2_000 if quick else 10_000
    with stage() as at:
        os.environ |= at.env
        os.environ["PYTHONPATH"] = str(PEERS)
        import plain
        from utils.email_async import send_bulk_emails_async

        def ours() -> float:
            people = [{"to": f"p{number}@example.com", "name": "Ada"} for number in range(count)]
            began = time.perf_counter()
            send_bulk_emails_async(people, "News", text="Dear {{ name }}, we begin on Monday.")
            return time.perf_counter() - began

        def delays() -> float:
            began = time.perf_counter()
            for number in range(count):
                plain.send.delay(f"p{number}@example.com", "Ada")
            return time.perf_counter() - began

        rows = measured([Case("ours", ours), Case("a loop of .delay()", delays)], 3 if quick else 7)
    ratio = rows[1].ratio
    return Table(
        f"S4: a batch of {count:,} accepted", "s", rows, "at least 25", ratio, ratio >= 25,
        "Every recipient checked, its mail rendered, recorded and durable. " + PERSISTENCE,
    )  # fmt: skip

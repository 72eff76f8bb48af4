"""S5, S6: what worker nodes deliver to a server that answers at once. S11: what grows with the outbox."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from cryptography.fernet import Fernet

from mail.answers import Numbers
from mail.kinds import WelcomeEmail
from mail.outbox import Outbox
from mail.vault import Vault
from speed.measuring import Case, Table, measured, rows_of
from speed.sinks import Address, smtp_source
from support.batches import start_batch, wait_for_end
from support.processes import BIN, Process, Valkey, wait_until
from support.service import Service, service_env
from support.smtp_server import SmtpServer
from support.smtp_sink import smtp_sink

PEERS = Path(__file__).resolve().parents[1] / "peers"
LESSON = "<p>The next lesson begins on Monday, in room 12.</p>"
HTML = f"<html><body><p>Dear {{{{ name }}}},</p>{LESSON * 180}</body></html>"
SIZE = 12_500


@contextmanager
def service(sink: Address) -> Iterator[Service]:
    """Our API, on a Redis of its own; workers are started by the case."""
    with TemporaryDirectory() as name, Valkey(Path(name)) as valkey:
        env = service_env(valkey.url, sink, API_REQUESTS_PER_MINUTE="0", LOG_LEVEL="WARNING")
        one = Service(valkey, cast("SmtpServer", sink), env, Path(name))
        try:
            one.api()
            yield one
        finally:
            one.close()


def _seconds(record: dict[str, Any], first: str, last: str) -> float:
    return (datetime.fromisoformat(record[last]) - datetime.fromisoformat(record[first])).total_seconds()


def _batch(sink: Address, nodes: int, count: int) -> float:
    with service(sink) as ours:
        for _ in range(nodes):
            ours.worker(lanes="bulk")
        people = [{"to": f"p{number}@example.com", "name": "Ada"} for number in range(count)]
        batch = start_batch(ours.http, people, subject="News", html=HTML, text=None)
        record = wait_for_end(ours.http, batch, timeout=300)
        if record["counts"] != {"sent": count}:
            raise RuntimeError(f"not all were sent: {record['counts']}")
        return count / _seconds(record, "started_at", "finished_at")


def _singles(sink: Address, count: int) -> float:
    with service(sink) as ours:
        ids = ours.accept(count)
        ours.worker(lanes="critical,standard")
        with ours.valkey.client() as client:
            states = [f"{ours.env['KEY_PREFIX']}state:{state}" for state in ("queued", "sending", "retrying")]
            wait_until(lambda: not any(map(client.zcard, states)), timeout=300, what="all to be sent")
        sent = sorted(datetime.fromisoformat(ours.record(one)["sent_at"]) for one in ids)
        return count / (sent[-1] - sent[0]).total_seconds()


def _tutorial(sink: Address, count: int) -> float:
    """Celery's defaults: as many processes as there are cores."""
    with TemporaryDirectory() as name, Valkey(Path(name)) as valkey:
        env = {
            **service_env(valkey.url, sink),
            "PYTHONPATH": str(PEERS),
            "SMTP_HOST": sink.host,
            "SMTP_PORT": str(sink.port),
        }
        each = "tutorial.send_email.delay(f'p{n}@example.com', 'Ada', 'https://lms.example.com')"
        fill = f"import tutorial\nfor n in range({count}): {each}"
        with Process([str(BIN / "python"), "-c", fill], Path(name) / "fill.log", env) as filling:
            if filling.wait(120):
                raise RuntimeError(filling.text())
        command = [str(BIN / "celery"), "-A", "tutorial", "worker", "-Q", "tutorial", "-l", "WARNING"]
        with valkey.client() as client, Process(command, Path(name) / "worker.log", env):
            wait_until(lambda: client.llen("tutorial") < count, timeout=60, what="the tutorial's worker")
            began = time.perf_counter()
            wait_until(
                lambda: not client.llen("tutorial") and not client.hlen("unacked"), timeout=120, what="its end"
            )
            return count / (time.perf_counter() - began)


def batch_delivery(quick: bool) -> Table:
    """S5."""
    count = 1_000 if quick else 5_000
    with smtp_sink() as port:
        sink = Address("127.0.0.1", port)
        cases = [
            Case("smtp-source -s 10", lambda: smtp_source(sink, count, SIZE)),
            Case("ours, one node", lambda: _batch(sink, 1, count)),
            Case("ours, two nodes", lambda: _batch(sink, 2, count)),
            Case("the tutorial", lambda: _tutorial(sink, 200)),
        ]
        rows = measured(cases, 1 if quick else 3)
    best = max(rows[1].ratio, rows[2].ratio)
    return Table("S5: a batch to smtp-sink", "mails/s", rows, "at least 0.25 of smtp-source", best, best >= 0.25)


def single_delivery(quick: bool) -> Table:
    """S6."""
    count = 500 if quick else 2_000
    with smtp_sink() as port:
        sink = Address("127.0.0.1", port)
        cases = [
            Case("the tutorial", lambda: _tutorial(sink, 200)),
            Case("ours", lambda: _singles(sink, count)),
        ]
        rows = measured(cases, 1 if quick else 3)
    ratio = rows[1].ratio
    return Table("S6: single mails to smtp-sink", "mails/s", rows, "at least 5", ratio, ratio >= 5)


def growth(quick: bool) -> Table:
    """S11: accepting and claiming with an outbox that is empty, and with one that is full."""
    full = 10_000 if quick else 200_000
    with TemporaryDirectory() as name, Valkey(Path(name)) as valkey, valkey.client() as client:
        vault = Vault((Fernet.generate_key().decode(),))
        outbox = Outbox(client, prefix="growth:", vault=vault, numbers=Numbers())

        def accept_and_claim(count: int, first: int) -> float:
            began = time.perf_counter()
            for number in range(first, first + count):
                email_id = outbox.accept(WelcomeEmail(to=f"p{number % 50_000}@example.com", name="Ada")).id
                outbox.claim(email_id, "t", "node")
                outbox.settle(email_id, "t", "sent", code=250, reply="2.0.0 taken")
            return (time.perf_counter() - began) / count * 1000

        accept_and_claim(500, 0)
        empty = [accept_and_claim(300, 0) for _ in range(5)]
        used = client.info("memory")["used_memory"]
        accept_and_claim(full, 0)
        per_email = (client.info("memory")["used_memory"] - used) / full
        loaded = [accept_and_claim(300, 0) for _ in range(5)]
    rows = rows_of({"empty": empty, f"with {full:,} emails": loaded})
    ratio = rows[1].ratio
    note = f"{per_email:,.0f} bytes of Redis per finished email; the target is at most 1,000."
    return Table(
        "S11: accepting, claiming and settling one email", "ms", rows, "at most 1.3", ratio,
        ratio <= 1.3 and per_email <= 1_000, note,
    )  # fmt: skip

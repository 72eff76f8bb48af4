"""What is claimed of batches, each as a function that builds a service, treats it badly, and measures.

Every claim takes the number of recipients and an empty directory, and returns a verdict.
"""

import json
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import psutil

from rig import HERE, Rig
from support.batches import MAIL, batch, people
from support.processes import wait_until

THREADS = 20  # per worker node, as by default
KEY = "all-key"


class Verdict(NamedTuple):
    """Whether a claim holds (None: not tried, and why), and what was measured."""

    holds: bool | None
    measured: str


# accept


def accept(size: int, directory: Path) -> Verdict:
    """One request with all recipients: API memory grows by < 150 MB, and no other call takes 100 ms longer."""
    with Rig(directory) as rig:
        body = json.dumps({**MAIL, "recipients": people(size)}).encode()
        api = psutil.Process(rig.api.pid)
        rig.start(people(10))
        _probed(rig, lambda: None)  # whatever is loaded at a first call is loaded now
        seconds, grown, busy = _timed_post(rig, body, api)
        idle = _probed(rig, lambda: time.sleep(seconds))
    slower = {name: 1000 * (max(busy[name]) - max(idle[name])) for name in busy}
    calls = "; ".join(
        f"{name}: {_ms(busy[name])} (idle {_ms(idle[name])}), {len(busy[name])} calls" for name in sorted(busy)
    )
    return Verdict(
        grown < 150 and max(slower.values()) < 100,
        f"{size:,} recipients ({len(body) / 1e6:.1f} MB) in {seconds:.1f} s; API memory +{grown:.0f} MB; "
        f"p50/slowest of {calls}; slowest at most {max(slower.values()):.0f} ms slower than idle",
    )


def _timed_post(rig: Rig, body: bytes, api: psutil.Process) -> tuple[float, float, dict[str, list[float]]]:
    before = api.memory_info().rss
    peak = before
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, api.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    seconds = 0.0

    def post() -> None:
        nonlocal seconds
        began = time.monotonic()
        answer = rig.http.post(
            "/api/batches", content=body, headers={"Content-Type": "application/json"}, timeout=600
        )
        seconds = time.monotonic() - began
        answer.raise_for_status()

    try:
        busy = _probed(rig, post)
    finally:
        done.set()
        watcher.join()
    return seconds, (peak - before) / 1e6, busy


def _probed(rig: Rig, work: Callable[[], None]) -> dict[str, list[float]]:
    """The seconds that other calls took while `work` was going on."""
    command = [sys.executable, str(HERE / "prober.py"), rig.api.url, KEY]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as prober:
        try:
            time.sleep(1)  # it is under way
            work()
        finally:
            out, _ = prober.communicate()
    found: dict[str, list[float]] = json.loads(out)
    return found


def _ms(seconds: Sequence[float]) -> str:
    return f"{1000 * statistics.median(seconds):.0f}/{1000 * max(seconds):.0f} ms"


# chaos


def chaos(size: int, directory: Path) -> Verdict:
    """Bulk nodes killed with -9 five times and Redis twice: everyone exactly once, or held by name."""
    everyone = people(size)
    with Rig(directory, sink={"delay": "0.05"}) as rig:
        bulk = rig.nodes_of_production(bulk=2)
        batch_id = rig.start(everyone)
        began = time.monotonic()
        for number, fraction in enumerate((0.1, 0.2, 0.35, 0.5, 0.6, 0.75, 0.85)):
            rig.wait_for_taken(batch_id, int(size * fraction))
            if number in (2, 5):
                rig.valkey.kill()
                time.sleep(1.5)  # the outage itself
                rig.valkey.start()
            else:
                bulk[number % 2].kill()
        rig.wait_for_end(batch_id, timeout=900)
        seconds = time.monotonic() - began
        account = rig.account(batch_id)
        return exactly(
            [*account.wrong, *account.others("sent", "held")],
            f"{size:,} recipients, 5 kills of nodes, 2 of Redis, {rig.restarts} restarts: ended by itself after "
            f"{seconds:.0f} s; {account.counts['sent']:,} sent, {account.held()}",
        )


# faults


def faults(size: int, directory: Path) -> Verdict:
    """3 % refused for good, 5 % greylisted, the server down for 20 s: the right state for each recipient."""
    everyone = people(size)
    refused = {one["to"] for number, one in enumerate(everyone) if number % 100 in (7, 41, 77)}
    greylisted = {one["to"] for number, one in enumerate(everyone) if number % 100 in (3, 23, 43, 63, 83)}
    sink = {
        "delay": "0.02",
        "down": "20",
        "refuse": r"^p\d*(07|41|77)@|^p7@",
        "greylist": r"^p\d*(03|23|43|63|83)@|^p3@",
    }
    with Rig(directory, sink=sink, RETRY_BASE_SECONDS="1", RETRY_MAX_SECONDS="2") as rig:
        rig.nodes_of_production(bulk=2)
        batch_id = rig.start(everyone)
        rig.wait_for_taken(batch_id, size // 3)
        rig.sink.signal(signal.SIGUSR1)
        rig.wait_for_end(batch_id, timeout=900)
        account = rig.account(batch_id)
        wrong = account.wrong
        events = rig.sink.events()
        cut = {event.to for event in events if event.what == "cut"}
        asked = {event.to for event in events if event.what == "greylist"}
        for one in account.recipients:
            allowed = {"failed"} if one["to"] in refused else {"sent"}
            if one["to"] in cut:
                allowed |= {"held"}
            if one["state"] not in allowed:
                wrong.append(f"{one['to']} is {one['state']}")
            if one["to"] in refused and one["smtp_code"] != 550:
                wrong.append(f"{one['to']} failed without the server's 550")
        if asked != greylisted:
            wrong.append("not everyone was greylisted who should have been")
        return exactly(
            wrong,
            f"{size:,} recipients, {len(refused)} refused, {len(greylisted)} greylisted, 20 s without a server: "
            f"{counts_of(account.counts)}; {len(cut)} mails were cut by the outage",
        )


# steer


def steer(size: int, directory: Path) -> Verdict:
    """Pause and cancel in the middle: at most 10 mails per worker thread leave after the call has returned."""
    nodes = 2
    limit = 10 * THREADS * nodes
    with Rig(directory, sink={"delay": "0.02"}, WORKER_CONCURRENCY=str(THREADS)) as rig:
        rig.nodes_of_production(bulk=nodes)
        paused = rig.start(people(size))
        rig.wait_for_taken(paused, size // 3)
        rig.post(paused, "pause")
        after_pause = _leaving(rig, paused, time.time())
        at_rest = len(rig.sink.taken(paused))
        time.sleep(5)  # in which none may leave
        moved = len(rig.sink.taken(paused)) - at_rest
        rig.post(paused, "resume")
        rig.wait_for_end(paused, timeout=900)
        resumed = rig.account(paused)
        wrong = [*resumed.wrong, *resumed.others("sent")]

        cancelled = rig.start(people(size))
        rig.wait_for_taken(cancelled, size // 3)
        rig.post(cancelled, "cancel")
        after_cancel = _leaving(rig, cancelled, time.time())
        rig.wait_for_end(cancelled, timeout=120)
        stopped = rig.account(cancelled)
        wrong += [*stopped.wrong, *stopped.others("sent", "cancelled")]
    if moved:
        wrong.append(f"{moved} mails left while it was paused")
    for what, count in (("pause", after_pause), ("cancel", after_cancel)):
        if count > limit:
            wrong.append(f"{count} mails after {what}")
    return exactly(
        wrong,
        f"{size:,} recipients, {nodes} nodes of {THREADS} threads: after pause {after_pause} mails, after cancel "
        f"{after_cancel} (limit {limit}); after cancel {counts_of(stopped.counts)}",
    )


def _leaving(rig: Rig, batch_id: str, since: float) -> int:
    """How many mails leave after this time, once nothing is in flight any more."""

    def settled() -> bool:
        found = batch(rig.http, batch_id)
        return found is not None and not found["counts"].get("sending")

    wait_until(settled, timeout=60, what="nothing to be in flight")
    return sum(event.at > since for event in rig.sink.taken(batch_id))


# pace

PER_SECOND = 50
WINDOW = 5.0


def pace(size: int, directory: Path) -> Verdict:
    """SMTP_MAX_PER_SECOND=50 with three worker processes: 225 to 260 mails in every window of 5 seconds."""
    with Rig(directory, SMTP_MAX_PER_SECOND=str(PER_SECOND)) as rig:
        rig.nodes_of_production(bulk=3)
        batch_id = rig.start(people(size))
        rig.wait_for_end(batch_id, timeout=60 + size / 10)
        account = rig.account(batch_id)
        wrong = [*account.wrong, *account.others("sent")]
        times = [event.at for event in rig.sink.taken(batch_id)]
    counts = windows(times)
    if not all(225 <= count <= 260 for count in counts):
        wrong.append("a window is out of bounds")
    return exactly(
        wrong,
        f"{size:,} recipients, 3 nodes, {times[-1] - times[0]:.1f} s: {min(counts)} to {max(counts)} mails in "
        f"{len(counts)} windows of {WINDOW:g} s",
    )


def windows(times: Sequence[float]) -> list[int]:
    """How many of these fall into each window, from the first on in steps of a tenth of it, to the last whole one."""
    steps = int((times[-1] - times[0] - WINDOW) / (WINDOW / 10)) + 1
    starts = [times[0] + step * WINDOW / 10 for step in range(steps)]
    return [sum(start <= at < start + WINDOW for at in times) for start in starts]


# lanes

RESETS = 200
APART = 0.1  # seconds between two resets


def lanes(size: int, directory: Path) -> Verdict:
    """Password resets while a batch is being sent: p50 ≤ 1.5 times, p99 ≤ 3 times those of an idle system.

    The batch must outlast the resets, so `size` cannot be small.
    """
    measured = []
    holds = True
    for delay in (0.0, 0.2):
        place = directory / f"delay-{delay:g}"
        place.mkdir()
        with Rig(place, sink={"delay": str(delay)}) as rig:
            rig.nodes_of_production()
            _resets(rig, "warm", 20)
            idle = _resets(rig, "before", RESETS // 2)
            batch_id = rig.start(people(size))
            rig.wait_for_taken(batch_id, 100)
            busy = _resets(rig, "during", RESETS)
            found = batch(rig.http, batch_id) or {}
            waiting = found["counts"].get("queued", 0)
            rig.post(batch_id, "cancel")
            rig.wait_for_end(batch_id, timeout=120)
            idle += _resets(rig, "after", RESETS // 2)
        ratios = [_percentile(busy, p) / _percentile(idle, p) for p in (50, 99)]
        holds = holds and waiting > 0 and ratios[0] <= 1.5 and ratios[1] <= 3
        measured.append(
            f"server {1000 * delay:.0f} ms, {waiting:,} still waiting at the end: "
            + ", ".join(
                f"p{p} {1000 * _percentile(busy, p):.0f} ms (idle {1000 * _percentile(idle, p):.0f}, "
                f"{ratio:.2f} times)"
                for p, ratio in zip((50, 99), ratios, strict=True)
            )
        )
    return Verdict(holds, f"{size:,} recipients, {RESETS} resets each; " + "; ".join(measured))


def _resets(rig: Rig, who: str, count: int) -> list[float]:
    """Seconds from accept, by the outbox's clock, to the final dot at the server."""
    ids: list[str] = []
    for number in range(count):
        body = {
            "kind": "password_reset",
            "to": f"{who}{number}@example.com",
            "name": "Ada",
            "reset_url": f"https://lms.example.com/reset?token={who}{number:08}",
        }
        answer = rig.http.post("/api/emails", json=body)
        answer.raise_for_status()
        ids.append(answer.json()["id"])
        time.sleep(APART)

    def arrived() -> dict[str, float] | None:
        at = {event.email_id: event.at for event in rig.sink.taken()}
        return at if all(email_id in at for email_id in ids) else None

    at = wait_until(arrived, timeout=60, what="all resets to arrive") or {}
    return [at[email_id] - _accepted(rig, email_id) for email_id in ids]


def _accepted(rig: Rig, email_id: str) -> float:
    record = rig.http.get(f"/api/emails/{email_id}").json()
    return datetime.fromisoformat(record["created_at"]).timestamp()


def _percentile(values: Sequence[float], percent: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


# All of them.


def exactly(wrong: Sequence[str], measured: str) -> Verdict:
    more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
    return Verdict(not wrong, measured + (f"; WRONG: {'; '.join(wrong[:5])}{more}" if wrong else ""))


def counts_of(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {state}" for state, count in counts.items())

"""The faults of nodes and of Redis that every service is put to: ours, and those in benchmarks/peers.

Each function breaks a service while it sends, in as many runs as it takes, and returns the tally. The faults of the
SMTP server are in smtp_faults.py; what only ours is put to is in ours.py.
"""

import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import httpx
import psutil

from chaos.driver import Stand
from chaos.tally import Lab, Tally

WAIT = 75.0  # seconds after a fault, by which nothing may wait any more


def kill_tree(process: psutil.Process) -> None:
    """kill -9 of a process and of all its children, parent first, as the kernel's OOM killer or a host that dies."""
    with suppress(psutil.NoSuchProcess):
        tree = [process, *process.children(recursive=True)]
        for one in tree:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(tree, 5)


def next_arrival(stand: Stand, *, timeout: float = WAIT) -> float | None:
    """Seconds until a mail arrives that was not there yet; None when none comes."""
    began, before = time.monotonic(), len(stand.arrived())
    while time.monotonic() - began < timeout:
        if len(stand.arrived()) > before:
            return stand.arrived()[before].at - began
        if stand.waiting() == 0:
            return None
        time.sleep(0.05)
    return None


def recovered(tally: Tally, stand: Stand) -> None:
    """Note how long it takes until mail arrives again."""
    if (seconds := next_arrival(stand)) is not None:
        tally.recovery.append(max(0.0, seconds))


# R1


def nodes_killed(lab: Lab) -> Tally:
    """kill -9 of all worker nodes, six times under load."""
    tally = Tally()
    kills = 2 if lab.short else 6
    for _ in lab.runs(3):
        with lab.stand(delay=0.1) as stand:
            in_smtp = 0
            stand.load(150 if lab.short else 600, rate=40)
            for _ in range(kills):
                with suppress(AssertionError):  # a service that sends nothing any more is killed all the same
                    stand.wait_for_arrivals(30, timeout=30)
                nodes = stand.service.nodes()
                in_smtp += stand.smtp.open_connections  # idle ones among them
                for node in nodes:
                    kill_tree(node)
                recovered(tally, stand)
            account = stand.account(timeout=WAIT)
            tally.add(account, runs=kills)
            tally.demand(
                account.copies <= in_smtp, f"{account.copies} copies, and {in_smtp} connections at the kills"
            )
    return tally


# R2


def nodes_stopped(lab: Lab, *signals: signal.Signals) -> Tally:
    """SIGTERM, then SIGQUIT, to all worker nodes under load."""
    tally = Tally()
    for number in signals or (signal.SIGTERM, signal.SIGQUIT):
        for _ in lab.runs(3):
            with lab.stand(delay=0.1) as stand:
                stand.load(300)
                with suppress(AssertionError):
                    stand.wait_for_arrivals(60)
                stopped = stand.service.nodes()
                for node in stopped:
                    node.send_signal(number)
                psutil.wait_procs(stopped, 90)
                recovered(tally, stand)
                tally.add(stand.account(timeout=WAIT))
    return tally


# R3, R4


def redis_killed(lab: Lab) -> Tally:
    """Redis (append-only file, everysec) killed with -9 in the middle, and back after three seconds."""
    tally = Tally()
    for _ in lab.runs(3):
        with lab.stand(delay=0.1) as stand:
            load = stand.load(10_000, rate=60)
            stand.wait_for_arrivals(60)
            stand.valkey.kill()
            time.sleep(3)  # the outage itself
            stand.valkey.start()
            recovered(tally, stand)
            load.stop()
            tally.add(stand.account(timeout=WAIT))
    return tally


def redis_killed_often(lab: Lab) -> Tally:
    """Redis killed again and again under load."""
    tally = Tally()
    kills = 4 if lab.short else 20
    with lab.stand(delay=0.1) as stand:
        load = stand.load(10_000, rate=30)
        restarts = Restarts(stand)
        for _ in range(kills):
            with suppress(AssertionError):
                stand.wait_for_arrivals(20, timeout=30)
            stand.valkey.kill()
            time.sleep(1)  # the outage itself
            stand.valkey.start()
            recovered(tally, stand)
        load.stop()
        tally.add(stand.account(timeout=WAIT), runs=kills)
        tally.remark = f"nodes that ended and were started again: {restarts.count()}"
    return tally


class Restarts:
    """Counts the worker nodes that are others than those of the beginning."""

    def __init__(self, stand: Stand) -> None:
        self._stand = stand
        self._first = {node.pid for node in stand.service.nodes()}

    def count(self) -> int:
        return len({node.pid for node in self._stand.service.nodes()} - self._first)


# R7


def api_without_redis(lab: Lab) -> Tally:
    """Redis dead, then frozen, while 100 clients ask at once; and another call meanwhile."""
    tally = Tally()
    remarks = []
    for name in ("dead", "frozen"):
        with lab.stand() as stand:
            stand.load(20).wait()
            stand.wait_for_end(timeout=30)
            (stand.valkey.kill if name == "dead" else stand.valkey.freeze)()
            seconds, codes = _asked_at_once(stand, 100)
            (stand.valkey.start if name == "dead" else stand.valkey.thaw)()
            tally.add(stand.account(timeout=WAIT))
            remarks.append(f"{name}: slowest answer {max(seconds):.1f} s, {codes}")
            if stand.service.records:
                tally.demand(max(seconds) <= 2, f"an answer took {max(seconds):.1f} s")
    tally.remark = "; ".join(remarks)
    return tally


def _asked_at_once(stand: Stand, clients: int) -> tuple[list[float], str]:
    def one(number: int) -> tuple[float, str]:
        wanted = stand.service.request(f"away{number}@example.com")
        began = time.monotonic()
        try:
            code = str(https[number].post(wanted.path, json=wanted.body, headers=wanted.headers).status_code)
        except httpx.TransportError:
            code = "no answer in 45 s"
        return time.monotonic() - began, code

    with ExitStack() as stack, ThreadPoolExecutor(clients) as pool:
        # A client takes longer to be made than a service to answer: its certificates are read.
        made = (httpx.Client(base_url=stand.service.url, timeout=45, verify=False) for _ in range(clients))
        https = [stack.enter_context(client) for client in made]
        answers = list(pool.map(one, range(clients)))
    codes = sorted({code for _, code in answers})
    return [seconds for seconds, _ in answers], ", ".join(codes)


FAULTS: dict[str, tuple[str, Callable[[Lab], Tally]]] = {
    "R1": ("kill -9 of all worker nodes", nodes_killed),
    "R2": ("SIGTERM, SIGQUIT, started again", nodes_stopped),
    "R3": ("Redis killed with -9, back after 3 s", redis_killed),
    "R4": ("Redis killed with -9 again and again", redis_killed_often),
    "R7": ("API asked while Redis is dead, or frozen", api_without_redis),
}

"""The faults that only our service is put to, beside those of faults.py."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import cast

import psutil

from chaos.driver import Stand
from chaos.faults import WAIT, Restarts, kill_tree, recovered
from chaos.lms import Lms
from chaos.tally import Lab, Tally
from support.needs import missing, need
from support.network import BridgedValkey, forbidden, network
from support.processes import ShiftedValkey, Valkey, Worker, wait_until
from support.smtp_server import SmtpServer

LEASE = 20.0  # seconds, as by default


def lms(stand: Stand) -> Lms:
    return cast("Lms", stand.service)


# Killed


def api_killed(lab: Lab) -> Tally:
    """kill -9 of the API while it takes mails in."""
    tally = Tally()
    kills = 2 if lab.short else 6
    with lab.stand() as stand:
        load = stand.load(10_000, rate=60)
        for _ in range(kills):
            stand.wait_for_arrivals(40)
            stand.service.api().kill()
            recovered(tally, stand)
        load.stop()
        account = stand.account(timeout=WAIT)
        tally.add(account, runs=kills)
        tally.remark = f"{account.unclear} requests without an answer"
    return tally


def supervisor_killed(lab: Lab) -> Tally:
    """kill -9 of supervisor: its programs end too, and it is started again by whoever watches it."""
    tally = Tally()
    for _ in lab.runs(3):
        with lab.stand(delay=0.1) as stand:
            load = stand.load(10_000, rate=40)
            stand.wait_for_arrivals(40)
            orphans = [*stand.service.nodes(), stand.service.api()]
            lms(stand).supervisor().kill()
            _, alive = psutil.wait_procs(orphans, 60)
            tally.demand(not alive, f"{len(alive)} programs outlived their supervisor")
            stand.service.start()
            recovered(tally, stand)
            load.stop()
            tally.add(stand.account(timeout=WAIT))
    return tally


def terminated_then_killed(lab: Lab) -> Tally:
    """SIGTERM to the node that sends, and kill -9 ten seconds later, while each mail takes 15 s in SMTP."""
    tally = Tally()
    with lab.stand(delay=15) as stand:
        stand.load(20).wait()
        stand.wait_for_sessions(20)
        node = lms(stand).program("mail")
        node.terminate()
        time.sleep(10)  # what an impatient operator waits
        kill_tree(node)
        stand.smtp.clear()
        recovered(tally, stand)
        tally.add(stand.account(timeout=WAIT))
    return tally


# Frozen


def node_frozen(lab: Lab) -> Tally:
    """SIGSTOP of the node that sends, shorter and longer than the lease, and SIGCONT."""
    tally = Tally()
    for seconds in (5.0,) if lab.short else (5.0, 2 * LEASE):
        with lab.stand(delay=0.2) as stand:
            stand.load(200, rate=80)
            stand.wait_for_arrivals(40)
            node = lms(stand).program("mail")
            node.suspend()
            time.sleep(seconds)
            node.resume()
            recovered(tally, stand)
            tally.add(stand.account(timeout=WAIT))
    tally.remark = "what the server had taken during the freeze is sent again by nobody else: one mail node"
    return tally


def api_frozen(lab: Lab) -> Tally:
    """SIGSTOP of the API for 30 s, longer than its clients wait."""
    tally = Tally()
    with lab.stand() as stand:
        load = stand.load(400, rate=60)
        stand.wait_for_arrivals(40)
        api = stand.service.api()
        api.suspend()
        time.sleep(5 if lab.short else 30)
        api.resume()
        recovered(tally, stand)
        load.wait()
        account = stand.account(timeout=WAIT)
        tally.add(account)
        tally.remark = f"{account.unclear} requests without an answer"
    return tally


def supervisor_frozen(lab: Lab) -> Tally:
    """SIGSTOP of supervisor for 30 s, in which a node dies."""
    tally = Tally()
    with lab.stand(delay=0.1) as stand:
        stand.load(300, rate=60)
        stand.wait_for_arrivals(40)
        node, supervisor = lms(stand).program("mail"), lms(stand).supervisor()
        supervisor.suspend()
        node.kill()
        time.sleep(5 if lab.short else 30)
        supervisor.resume()
        recovered(tally, stand)
        tally.add(stand.account(timeout=WAIT))
    return tally


def redis_frozen(lab: Lab) -> Tally:
    """Redis frozen for 60 s, three leases, while 50 mails are in SMTP. No copies either."""
    tally = Tally()
    seconds, mails = (8.0, 20) if lab.short else (60.0, 50)
    env = {"LEASE_SECONDS": "3"} if lab.short else {}
    for _ in lab.runs(2):
        with lab.stand(delay=3, WORKER_CONCURRENCY=str(mails), **env) as stand:
            stand.load(mails + 20, clients=8).wait()
            stand.wait_for_sessions(mails)
            stand.valkey.freeze()
            time.sleep(seconds)
            stand.valkey.thaw()
            recovered(tally, stand)
            account = stand.account(timeout=WAIT)
            tally.add(account)
            tally.demand(not account.copies, f"{account.copies} copies")
    return tally


def host_cut_off(lab: Lab) -> Tally:
    """One of two worker hosts loses the network in the middle, for three leases, and comes back: its connections to
    Redis and to the SMTP server are half open, and nobody tells it."""
    if reason := forbidden():
        missing(reason)
    tally = Tally()
    lease, meanwhile = 5, []
    for run in lab.runs(3):
        directory = lab.directory / f"hosts{run}"
        directory.mkdir(parents=True)
        with ExitStack() as stack:
            net = stack.enter_context(network())
            valkey, smtp = BridgedValkey(directory, net.address), SmtpServer(host=net.address)
            stand = stack.enter_context(lab.stand(valkey=valkey, smtp=smtp, delay=0.5, LEASE_SECONDS=str(lease)))
            host = net.hosts[0]
            node = Worker(lms(stand).env, directory)
            node.command = [need("ip", package="iproute2"), "netns", "exec", host, *node.command]
            stack.enter_context(node)
            load = stand.load(10_000, rate=30)
            stand.wait_for_arrivals(60)
            in_smtp = stand.smtp.open_connections  # those of the other host, too
            net.cut(host)
            before = len(stand.arrived())
            time.sleep(3 * lease)
            meanwhile.append(len(stand.arrived()) - before)
            net.mend(host)
            recovered(tally, stand)
            node.wait_ready()
            load.stop()
            account = stand.account(timeout=WAIT)
            tally.add(account)
            tally.demand(meanwhile[-1] > 0, "the other host sent nothing meanwhile")
            tally.demand(account.copies <= in_smtp, f"{account.copies} copies, and {in_smtp} connections at the cut")
    tally.remark = f"the other host sent {min(meanwhile)}-{max(meanwhile)} meanwhile"
    return tally


# Redis in trouble


def disk_full(lab: Lab) -> Tally:
    """The disk under the append-only file is full for a while: nothing is taken in, nothing is lost."""
    tally = Tally()
    with small_disk(lab.directory / "disk", megabytes=24) as disk:
        ballast = disk / "ballast"
        with lab.stand(valkey=Valkey(disk), delay=0.05) as stand:
            load = stand.load(10_000, rate=60)
            stand.wait_for_arrivals(60)
            fill(ballast)
            wait_until(lambda: stand.asked()[-1].answer == "refused", timeout=60, what="Redis to refuse")
            time.sleep(5 if lab.short else 20)
            tally.demand(stand.asked()[-1].answer != "accepted", "a mail was accepted that could not be kept")
            ballast.unlink()
            wait_until(lambda: stand.asked()[-1].answer == "accepted", timeout=60, what="Redis to take mails again")
            recovered(tally, stand)
            # What was accepted must be on the disk, too.
            stand.valkey.kill()
            stand.valkey.start()
            load.stop()
            tally.add(stand.account(timeout=WAIT))
    return tally


def memory_full(lab: Lab) -> Tally:
    """Redis near maxmemory: accepting stops, delivering goes on. At it: all is sent once there is room."""
    tally = Tally()
    for share in (0.95, 1.0):
        with lab.stand(delay=0.2, WORKER_CONCURRENCY="4") as stand, stand.valkey.client() as client:
            load = stand.load(10_000, rate=100)
            stand.wait_for_arrivals(20)
            client.config_set("maxmemory", int(client.info("memory")["used_memory"] / share))
            wait_until(lambda: stand.asked()[-1].answer == "refused", timeout=30, what="Redis to refuse")
            load.stop()
            if share < 1:
                tally.demand(stand.wait_for_end(timeout=WAIT), "delivering stopped, too")
            else:
                time.sleep(5)  # Celery can write nothing either, and its worker ends again and again
            client.config_set("maxmemory", 0)
            recovered(tally, stand)
            tally.add(stand.account(timeout=WAIT))
    return tally


def time_moved(lab: Lab) -> Tally:
    """Redis's clock jumps an hour ahead, and then back, while mails are in SMTP."""
    tally = Tally()
    for hours in (1, -1):
        directory = lab.directory / f"clock{hours}"
        directory.mkdir(parents=True)
        valkey = ShiftedValkey(directory)
        with lab.stand(valkey=valkey, delay=3, LEASE_SECONDS="4") as stand:
            time.sleep(6)  # the nodes have seen Redis for longer than a lease: they would take over
            # Fewer than the node has threads: one that is free would take over what seems to have lapsed.
            stand.load(12).wait()
            stand.wait_for_sessions(12)
            valkey.shift(3600 * hours)
            stand.load(60)
            recovered(tally, stand)
            account = stand.account(timeout=WAIT)
            tally.add(account)
            tally.demand(not account.copies, f"{account.copies} copies after {hours:+} h")
    return tally


def smtp_down_for_a_day(lab: Lab) -> Tally:
    """The SMTP server is away for a day: Redis's clock is moved on by half an hour at a time."""
    tally = Tally()
    directory = lab.directory / "day"
    directory.mkdir(parents=True)
    valkey = ShiftedValkey(directory)
    with lab.stand(valkey=valkey) as stand:
        stand.load(60).wait()
        stand.wait_for_end(timeout=30)
        stand.smtp.stop()
        stand.load(100).wait()
        for half_hours in range(1, 5 if lab.short else 49):
            valkey.shift(1800 * half_hours)
            time.sleep(3)  # time for probes and retries at this hour
        tally.demand(stand.waiting() == 100, f"{stand.waiting()} of 100 still wait at the end of the outage")
        stand.smtp.start()
        valkey.shift(1800 * 49)
        recovered(tally, stand)
        tally.add(stand.account(timeout=90))
    return tally


# The long run


def everything_killed(lab: Lab) -> Tally:
    """60 kills of worker nodes and 40 of Redis in one run under load."""
    tally = Tally()
    kills = [5, 3] if lab.short else [60, 40]
    with lab.stand(delay=0.1) as stand:
        load = stand.load(100_000, rate=20)
        restarts = Restarts(stand)
        of_redis = 0
        for number in range(sum(kills)):
            with suppress(AssertionError):
                stand.wait_for_arrivals(15, timeout=60)
            if number * kills[1] // sum(kills) >= of_redis and of_redis < kills[1]:
                of_redis += 1
                stand.valkey.kill()
                time.sleep(1)  # the outage itself
                stand.valkey.start()
            else:
                kill_tree(lms(stand).program("mail"))
            recovered(tally, stand)
        load.stop()
        tally.add(stand.account(timeout=2 * WAIT), runs=sum(kills))
        tally.demand(of_redis == kills[1], f"only {of_redis} kills of Redis")
        tally.remark = f"{restarts.count()} of 2 nodes are others than at the start"
    return tally


@contextmanager
def small_disk(directory: Path, *, megabytes: int) -> Iterator[Path]:
    """A file system of that size."""
    need("mount", package="mount")
    directory.mkdir(parents=True)
    if os.geteuid() != 0:
        missing("mounting a small disk needs root")
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", directory], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


def fill(ballast: Path) -> None:
    """Write until the disk is full."""
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"\0" * 4096)


OURS = {
    "API": ("kill -9 of the API", api_killed),
    "supervisor": ("kill -9 of supervisor", supervisor_killed),
    "TERM KILL": ("SIGTERM, SIGKILL after 10 s", terminated_then_killed),
    "node frozen": ("SIGSTOP of a node, 5 s and 40 s", node_frozen),
    "API frozen": ("SIGSTOP of the API, 30 s", api_frozen),
    "supervisor frozen": ("SIGSTOP of supervisor, 30 s, a node killed meanwhile", supervisor_frozen),
    "host cut off": ("one of two worker hosts without a network for three leases", host_cut_off),
    "Redis frozen": ("SIGSTOP of Redis, 60 s, 50 mails in SMTP", redis_frozen),
    "disk full": ("full disk under the append-only file", disk_full),
    "memory full": ("Redis at maxmemory", memory_full),
    "time moved": ("Redis TIME an hour ahead, an hour back", time_moved),
    "R5 day": ("SMTP server away for a day (Redis TIME moved)", smtp_down_for_a_day),
    "60 + 40": ("60 kills of nodes and 40 of Redis in one run", everything_killed),
}

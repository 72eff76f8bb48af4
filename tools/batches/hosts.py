"""Two worker hosts as network namespaces on a bridge, so that one of them can be cut off without being killed."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from claims import Verdict, exactly
from rig import Rig
from support.batches import people
from support.processes import Valkey, wait_until

LEASE_SECONDS = 6


def hosts(size: int, directory: Path) -> Verdict:
    """Two worker hosts share a batch, one is cut off in the middle and comes back: exactly once, or held by name."""
    if reason := _forbidden():
        return Verdict(None, reason)
    with _network() as network:
        valkey = BridgedValkey(directory, network.address)
        with Rig(
            directory,
            valkey=valkey,
            host=network.address,
            sink={"delay": "0.1"},
            LEASE_SECONDS=str(LEASE_SECONDS),
        ) as rig:
            rig.node("critical,standard")
            for host in network.hosts:
                rig.node("bulk", command=["ip", "netns", "exec", host])
            batch_id = rig.start(people(size))
            rig.wait_for_taken(batch_id, size // 3)
            network.cut(network.hosts[0])
            before = len(rig.sink.taken(batch_id))
            time.sleep(2 * LEASE_SECONDS)  # the other one takes over what its leases held
            meanwhile = len(rig.sink.taken(batch_id)) - before
            network.mend(network.hosts[0])
            rig.wait_for_end(batch_id, timeout=600)
            rejoined = wait_until(lambda: _answers(rig), timeout=60, what="the host to come back")
            account = rig.account(batch_id)
    wrong = [*account.wrong, *account.others("sent", "held")]
    if not meanwhile:
        wrong.append("the other host did nothing meanwhile")
    return exactly(
        wrong,
        f"{size:,} recipients, one of two hosts cut off for {2 * LEASE_SECONDS} s (the other sent {meanwhile} "
        f"meanwhile), {rejoined} hosts at the end: {account.counts['sent']:,} sent, {account.held()}",
    )


class BridgedValkey(Valkey):
    """A Valkey that listens on the bridge."""

    def __init__(self, directory: Path, address: str) -> None:
        self.address = address
        super().__init__(directory, bind=address)
        self.command += ["--protected-mode", "no"]

    @property
    def url(self) -> str:
        return f"redis://{self.address}:{self.port}/0"


class Network:
    """The bridge's address, and the hosts on it by name."""

    def __init__(self) -> None:
        number = os.getpid() % 250
        self.bridge = f"lms{number}"
        self.address = f"10.213.{number}.1"
        self.hosts = [f"{self.bridge}a", f"{self.bridge}b"]

    def build(self, stack: ExitStack) -> None:
        """Everything made is removed by the stack."""
        _ip("link", "add", self.bridge, "type", "bridge")
        stack.callback(_ip, "link", "del", self.bridge)
        _ip("addr", "add", f"{self.address}/24", "dev", self.bridge)
        _ip("link", "set", self.bridge, "up")
        for number, host in enumerate(self.hosts, 2):
            _ip("netns", "add", host)
            stack.callback(_ip, "netns", "del", host)  # and its cable
            _ip("link", "add", f"{host}0", "type", "veth", "peer", "name", "eth0", "netns", host)
            _ip("link", "set", f"{host}0", "master", self.bridge, "up")
            _ip("-n", host, "addr", "add", self.address.removesuffix("1") + f"{number}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", host, "link", "set", device, "up")

    def cut(self, host: str) -> None:
        _ip("link", "set", f"{host}0", "down")

    def mend(self, host: str) -> None:
        _ip("link", "set", f"{host}0", "up")


@contextmanager
def _network() -> Iterator[Network]:
    network = Network()
    with ExitStack() as stack:
        network.build(stack)
        yield network


def _answers(rig: Rig) -> int:
    """How many bulk nodes sweep at present; 0 until all of them do."""
    with rig.valkey.client() as client:
        lately = client.time()[0] * 1000 - 3_000
        nodes = client.zcount(f"{rig.env['KEY_PREFIX']}nodes:bulk", lately, "+inf")
    return nodes if nodes == 2 else 0


def _forbidden() -> str:
    """Why there can be no namespaces here, if so."""
    if shutil.which("ip") is None:
        return "not tried: needs ip, of the package iproute2"
    probe = f"lmsprobe{os.getpid()}"
    tried = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    if tried.returncode:
        return f"not tried: needs root and network namespaces ({tried.stderr.strip()})"
    _ip("netns", "del", probe)
    return ""


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)

"""Hosts as network namespaces on a bridge, so that one of them can be cut off without being killed."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from support.processes import Valkey


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
            stack.callback(_ip, "netns", "del", host)
            _ip("link", "add", f"{host}0", "type", "veth", "peer", "name", "eth0", "netns", host)
            stack.callback(_ip, "link", "del", f"{host}0")  # it would go with its host, but later
            _ip("link", "set", f"{host}0", "master", self.bridge, "up")
            _ip("-n", host, "addr", "add", self.address.removesuffix("1") + f"{number}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", host, "link", "set", device, "up")

    def cut(self, host: str) -> None:
        _ip("link", "set", f"{host}0", "down")

    def mend(self, host: str) -> None:
        _ip("link", "set", f"{host}0", "up")


@contextmanager
def network() -> Iterator[Network]:
    """Two hosts; see forbidden()."""
    made = Network()
    with ExitStack() as stack:
        made.build(stack)
        yield made


def forbidden() -> str:
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

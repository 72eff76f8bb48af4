"""Whatever `./start.sh` starts listens on this machine only: seen from inside a network namespace of the test's own,
which has an address beside the loopback ones."""

import os
import re
import secrets
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.checkout import PORTS, Checkout, Script, all_gone
from support.needs import missing, need
from support.processes import wait_until

OUTSIDE = "192.0.2.10"  # for documentation only (RFC 5737): nobody else has it
CONNECT = "import socket, sys; sys.exit(socket.socket().connect_ex((sys.argv[1], int(sys.argv[2]))))"


@pytest.fixture
def namespace() -> Iterator[list[str]]:
    """The beginning of a command that runs in it."""
    ip = need("ip", package="iproute2")
    need("ss", package="iproute2")
    if os.geteuid() != 0:
        missing("only root may make network namespaces")
    name = f"exposure-{secrets.token_hex(4)}"

    def run(*arguments: str) -> None:
        subprocess.run([ip, *arguments], check=True, capture_output=True)

    try:
        run("netns", "add", name)
    except subprocess.CalledProcessError as error:
        missing(f"network namespaces are not allowed here: {error.stderr.decode().strip()}")
    try:
        run("-n", name, "link", "set", "lo", "up")
        run("-n", name, "addr", "add", f"{OUTSIDE}/32", "dev", "lo")
        yield [ip, "netns", "exec", name]
    finally:
        run("netns", "delete", name)


@pytest.fixture
def checkout(tmp_path: Path, venv: Path) -> Checkout:
    return Checkout(tmp_path, venv)


@pytest.fixture
def script(namespace: list[str], checkout: Checkout) -> Iterator[Script]:
    command = [*namespace, str(checkout.root / "start.sh")]
    script = Script(command, cwd=Path("/"), env=checkout.env, log=checkout.root / "start.log")
    try:
        script.wait_for("Ctrl-C stops everything")
        yield script
    finally:
        tree = script.tree()
        script.process.terminate()
        script.wait()
        wait_until(lambda: all_gone(tree), what="its end")
        script.destroy()


def test_nothing_of_it_is_reached_from_another_machine(
    namespace: list[str], checkout: Checkout, script: Script
) -> None:
    table = subprocess.run([*namespace, "ss", "-ltnuH"], capture_output=True, text=True, check=True).stdout
    listening = re.findall(r"^(?:tcp|udp)\s+\S+\s+\d+\s+\d+\s+(\S+):(\d+)\s", table, re.MULTILINE)
    wanted = {str(checkout.ports[name]) for name in PORTS} | {str(checkout.redis_port)}
    assert wanted <= {port for _, port in listening}
    assert {address for address, _ in listening} <= {"127.0.0.1", "[::1]"}, table
    python = str(checkout.root / ".venv" / "bin" / "python")
    for port in wanted:
        for address, opens in (("127.0.0.1", True), (OUTSIDE, False)):
            done = subprocess.run([*namespace, python, "-c", CONNECT, address, port], check=False)
            assert (done.returncode == 0) is opens, (address, port)
    # And the namespace is the only place where it is at all.
    for port in wanted:
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", int(port))) != 0

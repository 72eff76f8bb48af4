"""Two worker hosts, one of which is cut off without being killed."""

import time
from pathlib import Path

from claims import Verdict, exactly
from rig import Rig
from support.batches import people
from support.network import BridgedValkey, forbidden, network
from support.processes import wait_until

LEASE_SECONDS = 6


def hosts(size: int, directory: Path) -> Verdict:
    """Two worker hosts share a batch, one is cut off in the middle and comes back: exactly once, or held by name."""
    if reason := forbidden():
        return Verdict(None, reason)
    with network() as net:
        valkey = BridgedValkey(directory, net.address)
        with Rig(
            directory,
            valkey=valkey,
            host=net.address,
            sink={"delay": "0.1"},
            LEASE_SECONDS=str(LEASE_SECONDS),
        ) as rig:
            rig.node("critical,standard")
            for host in net.hosts:
                rig.node("bulk", command=["ip", "netns", "exec", host])
            batch_id = rig.start(people(size))
            rig.wait_for_taken(batch_id, size // 3)
            net.cut(net.hosts[0])
            before = len(rig.sink.taken(batch_id))
            time.sleep(2 * LEASE_SECONDS)  # the other one takes over what its leases held
            meanwhile = len(rig.sink.taken(batch_id)) - before
            net.mend(net.hosts[0])
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


def _answers(rig: Rig) -> int:
    """How many bulk nodes sweep at present; 0 until all of them do."""
    with rig.valkey.client() as client:
        lately = client.time()[0] * 1000 - 3_000
        nodes = client.zcount(f"{rig.env['KEY_PREFIX']}nodes:bulk", lately, "+inf")
    return nodes if nodes == 2 else 0

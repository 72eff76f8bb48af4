"""The short form of the chaos suite: few kills, each of another kind, in every run of the tests."""

from collections.abc import Callable
from pathlib import Path

import pytest

from chaos import faults, ours
from chaos.driver import Stand
from chaos.lms import Lms
from chaos.tally import Lab, Tally
from support.processes import wait_until

pytestmark = pytest.mark.timeout(240)

SHORT = [
    faults.nodes_killed,
    faults.redis_killed,
    ours.redis_frozen,
    ours.api_killed,
]


@pytest.mark.parametrize("fault", SHORT, ids=lambda fault: fault.__name__)
def test_nothing_is_lost(prove: Callable[..., Tally], fault: Callable[[Lab], Tally]) -> None:
    prove(fault, short=True)


def test_the_account_finds_a_planted_loss(tmp_path: Path) -> None:
    """Its wake-up and its due entry are taken away: nothing in the service knows of it any more."""
    with Stand(tmp_path, Lms) as stand:
        stand.load(20).wait()
        stand.wait_for_end(timeout=30)
        node = ours.lms(stand).program("mail")
        node.suspend()
        stand.load(30).wait()
        prefix = ours.lms(stand).env["KEY_PREFIX"]
        planted = next(one.id for one in reversed(stand.asked()) if one.id)
        with stand.valkey.client() as client:
            queue = f"{prefix}standard"
            wait_until(lambda: any(planted in message for message in client.lrange(queue, 0, -1)))
            for message in client.lrange(queue, 0, -1):
                if planted in message:
                    assert client.lrem(queue, 0, message) == 1
            assert client.zrem(f"{prefix}due:standard", planted) == 1
        node.resume()
        account = stand.account(timeout=20)
    assert account.wrong() == [f"stuck: {planted}"]
    assert len(account.sent) == 49

"""The thread that renews leases never sleeps while one is held."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import NamedTuple

from mail.answers import Numbers
from mail.leases import LeaseKeeper
from mail.permits import Permits
from support.processes import wait_until


class Lease(NamedTuple):
    id: str
    token: str = "t"


class Renewals:
    """Stands for the outbox: notes what is renewed."""

    numbers = Numbers(lease=timedelta(seconds=0.2))

    def __init__(self) -> None:
        self.seen: list[str] = []

    def renew(self, leases: Mapping[str, str], permits: Sequence[str] = ()) -> set[str]:
        self.seen += leases
        return set(leases)


class Interrupted(threading.Event):
    """Something happens at the very moment at which the thread clears the event."""

    def __init__(self, then: Callable[[], None]) -> None:
        super().__init__()
        self._then: Callable[[], None] | None = then

    def clear(self) -> None:
        then, self._then = self._then, None
        if then:
            then()
        super().clear()


def test_a_lease_that_begins_as_the_thread_goes_to_sleep_is_renewed() -> None:
    outbox = Renewals()
    keeper = LeaseKeeper(outbox, Permits(limited=False, trim=lambda _: None))
    release = threading.Event()

    def hold_another() -> None:
        began = threading.Event()

        def hold() -> None:
            with keeper.hold(Lease("second"), time.monotonic()):
                began.set()
                release.wait(30)

        threading.Thread(target=hold, daemon=True).start()
        assert began.wait(10)

    with keeper.hold(Lease("first"), time.monotonic()):
        wait_until(lambda: "first" in outbox.seen, what="the first lease to be renewed")
        keeper._wake = Interrupted(hold_another)
    try:
        wait_until(lambda: "second" in outbox.seen, what="the second lease to be renewed")
    finally:
        release.set()

"""The long form of the chaos suite: every fault at full length, about an hour. `./test.sh -m chaos -n 0`."""

from collections.abc import Callable

import pytest

from chaos.suite import FAULTS, OURS
from chaos.tally import Tally

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]


@pytest.mark.parametrize("name", [*FAULTS, *OURS])
def test_nothing_is_lost(prove: Callable[..., Tally], name: str) -> None:
    _, fault = {**FAULTS, **OURS}[name]
    tally: Tally = prove(fault, short=False)
    print(name, *tally.cells(), sep=" | ")

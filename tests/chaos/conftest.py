"""A lab for each test: our service, in a directory that goes with the test."""

from collections.abc import Callable
from pathlib import Path

import pytest

from chaos.lms import Lms
from chaos.tally import Lab, Tally

Prove = Callable[..., Tally]


@pytest.fixture
def prove(tmp_path: Path, record_property: Callable[[str, object], None]) -> Prove:
    """`prove(fault, short=True)`: runs it, and demands that nothing was wrong."""

    def run(fault: Callable[[Lab], Tally], *, short: bool) -> Tally:
        tally = fault(Lab(tmp_path, Lms, short=short))
        record_property("tally", tally.cells())
        assert not tally.wrong, "\n".join(tally.wrong[:20])
        assert tally.mails > 0
        return tally

    return run

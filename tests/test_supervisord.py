"""deploy/run_supervisord.py."""

import runpy
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from supervisor.process import Subprocess
from supervisor.states import ProcessStates

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"


def test_a_program_that_ends_at_once_again_and_again_is_soon_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = runpy.run_path(str(DEPLOY / "run_supervisord.py"))
    monkeypatch.setattr(Subprocess, "change_state", ours["change_state"])
    process = Subprocess(SimpleNamespace(name="mail"))
    pauses = []
    for _ in range(30):
        process.change_state(ProcessStates.STARTING)
        process.change_state(ProcessStates.BACKOFF)
        pauses.append(round(process.delay - time.time()))
    assert pauses == [1, 2, 3, *[ours["LONGEST_PAUSE"]] * 27]

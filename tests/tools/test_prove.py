"""The full-size proof runs, at a small size: two hosts share a batch, and one is cut off."""

import subprocess
import sys
from pathlib import Path

import pytest

PROVE = Path(__file__).parents[2] / "tools" / "batches" / "prove.py"


@pytest.mark.timeout(180)
def test_two_hosts_share_a_batch_and_one_is_cut_off() -> None:
    done = subprocess.run(
        [sys.executable, PROVE, "hosts", "--size", "400"], capture_output=True, text=True, timeout=170, check=False
    )
    if "skipped" in done.stdout:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("hosts    holds")

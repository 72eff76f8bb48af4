"""The running API against its own OpenAPI description: every operation, with right, wrong and odd requests."""

import os
import re
import subprocess
from collections.abc import Callable

import pytest

from support.checkout import ROOT
from support.processes import BIN
from support.service import Service

# Not that whatever fits the description is taken: it cannot say that a mail needs html or text, or what a cursor is.
CHECKS = ("--exclude-checks", "positive_data_acceptance")
COMMAND = (str(BIN / "schemathesis"), "--config-file", str(ROOT / "tests" / "support" / "schemathesis.toml"))
# Each run makes the same requests.
ALWAYS = ("--generation-deterministic", "--no-color")


def run(service: Service, *options: str) -> str:
    """What it printed, if it found nothing."""
    done = subprocess.run(
        [*COMMAND, "run", str(service.http.base_url.join("/openapi.json")), *ALWAYS, *options],
        cwd=service.directory,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests"), "SCHEMATHESIS_HOOKS": "support.schemathesis_hooks"},
        capture_output=True,
        text=True,
        timeout=115,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8_000:] + done.stderr
    return done.stdout


@pytest.fixture
def service(build: Callable[..., Service]) -> Service:
    service = build(API_REQUESTS_PER_MINUTE="0", RECIPIENT_HOURLY_LIMIT="100000")
    service.api()
    return service


@pytest.mark.timeout(300)
def test_it_keeps_to_its_description(service: Service) -> None:
    # Seen from elsewhere: this machine itself may read /metrics without a key.
    headers = ("-H", "Authorization: Bearer all-key", "-H", "X-Forwarded-For: 192.0.2.1")
    operations = sum(map(len, service.http.get("/openapi.json").json()["paths"].values()))
    made = 0
    for phase in ("coverage", "fuzzing", "stateful"):
        printed = run(service, *headers, *CHECKS, "--phases", phase, "--max-examples", "5")
        found = re.search(r"(\d+) generated, (\d+) passed", printed)
        assert found
        assert found[1] == found[2]
        assert f"Tested: {operations}\n" in printed or phase == "stateful"
        made += int(found[1])
    assert made > 500
    answered = re.findall(r"http\.request .*status=(\d+)", service.processes[-1].text())
    assert {"200", "202", "401", "404", "405", "422"} <= set(answered)


def test_without_a_key_it_keeps_to_its_description_and_takes_nothing(service: Service) -> None:
    nobody = ("-H", "X-Forwarded-For: 192.0.2.1", "--generation-with-security-parameters", "false")
    run(service, *nobody, *CHECKS, "--phases", "coverage", "--max-examples", "1")
    with service.valkey.client() as client:
        assert list(client.scan_iter(f"{service.env['KEY_PREFIX']}email:*")) == []
        assert list(client.scan_iter(f"{service.env['KEY_PREFIX']}batch*")) == []

"""How long the console's pages take with many emails in the outbox.

    .venv/bin/python benchmarks/console.py [100000 1000000]

Fills an outbox of its own (append-only file on, every mail accepted as always, one in a hundred failed) up to each of
the numbers, and asks for each page twenty times on loopback. `ratio`: of the median to the one at the first number.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "backend"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import httpx
from cryptography.fernet import Fernet

from mail.answers import Numbers
from mail.kinds import WelcomeEmail
from mail.outbox import Outbox
from mail.vault import Vault
from support.processes import Valkey, wait_until
from support.service import Service, service_env
from support.smtp_server import SmtpServer

ROUNDS = 20
PAGES = (
    "/console",
    "/console/emails",
    "/console/emails?q=p77@example.com",
    "/console/emails?state=failed",
    "/console/emails?state=sent",
    "/console/emails?kind=certificate",
    "/console/dead-letters",
    "/console/batches",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("emails", type=int, nargs="*", default=[100_000, 1_000_000])
    counts = sorted(parser.parse_args().emails)
    directory = Path(tempfile.mkdtemp(prefix="console-"))
    with SmtpServer() as smtp, Valkey(directory) as valkey:
        service = Service(valkey, smtp, service_env(valkey.url, smtp), directory)
        try:
            api = service.api()
            first: dict[str, float] = {}
            kept = 0
            for count in counts:
                _fill(service, range(kept, count))
                kept = count
                with service.valkey.client() as client:  # Redis copies all it has while it rewrites its file
                    wait_until(lambda: not client.info()["aof_rewrite_in_progress"], timeout=300, what="the rewrite")
                with httpx.Client(base_url=api.url, timeout=60) as browser:
                    browser.post("/console/sign-in", data={"key": "all-key"})
                    print(f"| page, with {count:,} emails | median | slowest | ratio |\n| --- | --- | --- | --- |")
                    for page in PAGES:
                        times = [_asked(browser, page) for _ in range(ROUNDS)]
                        median = statistics.median(times)
                        ratio = median / first.setdefault(page, median)
                        print(f"| {page} | {median:.0f} ms | {max(times):.0f} ms | {ratio:.2f} |", flush=True)
        finally:
            service.close()


def _fill(service: Service, numbers: Iterable[int]) -> None:
    with service.valkey.client() as client:
        vault = Vault([Fernet.generate_key().decode()])
        outbox = Outbox(client, prefix=service.env["KEY_PREFIX"], vault=vault, numbers=Numbers())
        for number in numbers:
            email_id = outbox.accept(WelcomeEmail(to=f"p{number % 50_000}@example.com", name="Ada")).id
            outbox.claim(email_id, "t", "node")
            if number % 100:
                outbox.settle(email_id, "t", "sent", code=250, reply="2.0.0 taken")
            else:
                outbox.settle(email_id, "t", "failed", code=550, error=f"550 5.1.{number % 7} no such user")


def _asked(browser: httpx.Client, page: str) -> float:
    began = time.perf_counter()
    browser.get(page).raise_for_status()  # one that leads to the form to sign in is an error, too
    return (time.perf_counter() - began) * 1000


if __name__ == "__main__":
    main()

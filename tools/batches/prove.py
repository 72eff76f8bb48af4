"""Proves what is claimed of batches, at full size, against real processes on this machine.

    .venv/bin/python tools/batches/prove.py                    all claims, in about eight minutes
    .venv/bin/python tools/batches/prove.py chaos --size 1000  one of them, smaller

Prints a verdict for each claim, and exits with 1 where one does not hold. Needs requirements-dev.txt; `hosts` needs
root and iproute2, and is skipped without.
"""

import argparse
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import httpx
import redis

import claims
import hosts
from claims import Verdict


class Claim(NamedTuple):
    """What to run, with how many recipients."""

    prove: Callable[[int, Path], Verdict]
    size: int


CLAIMS = {
    "accept": Claim(claims.accept, 50_000),
    "chaos": Claim(claims.chaos, 10_000),
    "faults": Claim(claims.faults, 10_000),
    "steer": Claim(claims.steer, 10_000),
    "pace": Claim(claims.pace, 35 * claims.PER_SECOND),
    "lanes": Claim(claims.lanes, 50_000),
    "hosts": Claim(hosts.hosts, 3_000),
}
WORDS = {True: "holds", False: "DOES NOT HOLD", None: "skipped"}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("claims", nargs="*", metavar="CLAIM", help=", ".join(CLAIMS))
    parser.add_argument("--size", type=int, metavar="N", help="recipients, in place of each claim's own number")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep logs and records there")
    options = parser.parse_args(arguments)
    if unknown := set(options.claims) - set(CLAIMS):
        parser.error(f"no such claim: {', '.join(sorted(unknown))}")
    directory = options.keep or Path(tempfile.mkdtemp(prefix="prove-"))
    verdicts = [_prove(name, options.size, directory / name) for name in options.claims or CLAIMS]
    failed = any(verdict.holds is False for verdict in verdicts)
    if failed or options.keep:
        print(f"Logs and records: {directory}")
    else:
        shutil.rmtree(directory)
    return 1 if failed else 0


def _prove(name: str, size: int | None, directory: Path) -> Verdict:
    directory.mkdir(parents=True)
    began = time.monotonic()
    try:
        verdict = CLAIMS[name].prove(size or CLAIMS[name].size, directory)
    except (AssertionError, OSError, RuntimeError, httpx.HTTPError, redis.RedisError) as error:
        traceback.print_exc()
        verdict = Verdict(False, f"broke off: {error}")
    seconds = time.monotonic() - began
    print(f"{name:<8} {WORDS[verdict.holds]:<14} {verdict.measured} [{seconds:.0f} s]", flush=True)
    return verdict


if __name__ == "__main__":
    sys.exit(main())

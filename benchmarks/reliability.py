"""Puts our service and its two yardsticks to the same faults, and prints the table of docs/reliability.md.

    .venv/bin/python benchmarks/reliability.py                       all of it, in about two hours
    .venv/bin/python benchmarks/reliability.py R1 R3 --service tuned some rows of one service
    .venv/bin/python benchmarks/reliability.py "disk full" --short   fewer kills, shorter outages

Every row is a line of the table. Exits with 1 when a row of our service is not what is promised.
"""

import argparse
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "backend"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))

import redis

from chaos.driver import Service
from chaos.lms import Lms
from chaos.suite import FAULTS, OURS
from chaos.tally import Lab, Tally
from service import PEERS

SERVICES: Mapping[str, Callable[..., Service]] = {"lms": Lms, **PEERS}
HEAD = ("fault", "service", "runs", "mails", "lost", "stuck", "copies", "sending again after", "")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faults", nargs="*", metavar="FAULT", help=", ".join([*FAULTS, *OURS]))
    parser.add_argument("--service", action="append", choices=list(SERVICES))
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the logs there")
    options = parser.parse_args(arguments)
    if unknown := set(options.faults) - {*FAULTS, *OURS}:
        parser.error(f"no such fault: {', '.join(sorted(unknown))}")
    directory = options.keep or Path(tempfile.mkdtemp(prefix="reliability-"))
    print(_row(HEAD), _row(["---"] * len(HEAD)), sep="\n", flush=True)
    kept = True
    for name, (title, fault) in _wanted(options.faults).items():
        for service in options.service or SERVICES:
            if service == "lms" or name in FAULTS:
                lab = Lab(directory / service / name.replace(" ", "-"), SERVICES[service], short=options.short)
                tally = _tried(fault, lab)
                kept &= service != "lms" or not tally.wrong
                print(_row([f"{name}: {title}", service, *tally.cells()]), flush=True)
                _complain(service, tally)
    print(f"Logs: {directory}", file=sys.stderr)
    return 0 if kept else 1


def _wanted(names: Sequence[str]) -> Mapping[str, tuple[str, Callable[[Lab], Tally]]]:
    every = {**FAULTS, **OURS}
    return {name: every[name] for name in names or every}


def _tried(fault: Callable[[Lab], Tally], lab: Lab) -> Tally:
    began = time.monotonic()
    try:
        tally = fault(lab)
    except (AssertionError, OSError, redis.RedisError) as error:
        traceback.print_exc()
        tally = Tally(wrong=[f"broke off: {error}"])
    print(f"[{time.monotonic() - began:.0f} s]", file=sys.stderr)
    return tally


def _complain(service: str, tally: Tally) -> None:
    for what in tally.wrong[:10] if service == "lms" else ():
        print(f"WRONG: {what}", file=sys.stderr)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())

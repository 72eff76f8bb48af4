"""How fast it is, against its peers in the same run.

    .venv/bin/python benchmarks/run.py                 every yardstick, in about ten minutes
    .venv/bin/python benchmarks/run.py S1 S10          some of them
    .venv/bin/python benchmarks/run.py --quick         all, in under three minutes: enough to see that one got worse

Prints a table each: median, least and most, and the ratio to the first row of the same round. The machine is never
quiet, so only ratios tell something. Exits with 1 where a target is not reached.
"""

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "backend"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))

from speed import accepting, building, delivering, working
from speed.measuring import Table

YARDSTICKS: Mapping[str, Callable[[bool], Table]] = {
    "S1": accepting.latency_of_one,
    "S2": accepting.throughput_at_16,
    "S3": accepting.against_inline,
    "S4": accepting.batch_of_10000,
    "S5": working.batch_delivery,
    "S6": working.single_delivery,
    "S7": delivering.round_trips,
    "S10": building.building,
    "S11": working.growth,
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("yardsticks", nargs="*", metavar="NAME", help=", ".join(YARDSTICKS))
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(arguments)
    if unknown := set(options.yardsticks) - set(YARDSTICKS):
        parser.error(f"no such yardstick: {', '.join(sorted(unknown))}")
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n", flush=True)
    reached = True
    for name in options.yardsticks or YARDSTICKS:
        began = time.monotonic()
        table = YARDSTICKS[name](options.quick)
        reached &= table.reached
        print(table, flush=True)
        print(f"[{name}: {time.monotonic() - began:.0f} s]", file=sys.stderr)
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())

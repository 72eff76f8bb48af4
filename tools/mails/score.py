"""Scores every kind of mail against L1 to L11 and exits with 1 where one falls short.

    .venv/bin/python tools/mails/score.py [--kind welcome] [--stress] [--shots DIR]

Needs Chromium (CHROMIUM names another than /usr/bin/chromium), SpamAssassin, and requirements-dev.txt.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import node
import spam
from browser import CHROMIUM, VIEWS, Seen, inspector
from marks import MARKS, Mark, Measured, judge
from samples import KIND_NAMES, Mail, samples, stressed

Marks = dict[str, Mark]


def missing() -> list[str]:
    """What has to be installed first, and how."""
    remedies = {
        CHROMIUM: "apt-get install chromium, or name one in CHROMIUM",
        "spamassassin": "apt-get install spamassassin",
    }
    return [f"{name} is not installed: {remedy}" for name, remedy in remedies.items() if not shutil.which(name)]


def measure(mails: Sequence[Mail]) -> list[Measured]:
    """Measure the mails with all tools."""
    node.install()
    with ThreadPoolExecutor() as pool:
        checked = pool.submit(node.check, [mail.html for mail in mails])
        spammed = pool.submit(spam.score, [mail.message for mail in mails])
        seen = list(pool.map(_see, (mails[::2], mails[1::2])))
        in_order = [seen[number % 2][number // 2] for number in range(len(mails))]
        return [Measured(*one) for one in zip(mails, in_order, checked.result(), spammed.result(), strict=True)]


def _see(mails: Sequence[Mail]) -> list[Seen]:
    if not mails:
        return []
    with inspector() as chromium:
        return [chromium.see(mail) for mail in mails]


def table(scored: Mapping[str, Marks]) -> str:
    """The marks as aligned text."""
    rows = [["", *MARKS]]
    rows += [[name, *(mark.shown for mark in marks.values())] for name, marks in scored.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def faults(scored: Mapping[str, Marks]) -> list[str]:
    """One line for each shortcoming, however many mails share it."""
    mails: dict[tuple[str, str], list[str]] = {}
    for name, marks in scored.items():
        for limit, mark in marks.items():
            for fault in mark.faults:
                mails.setdefault((limit, fault), []).append(name)
    return [
        f"{limit} {found[0]}{f' and {len(found) - 1} more' if len(found) > 1 else ''}: {fault}"
        for (limit, fault), found in sorted(mails.items(), key=lambda item: int(item[0][0][1:]))
    ]


def photograph(mails: Sequence[Mail], directory: Path) -> None:
    """Write `<mail>-<view>.png` for every view."""
    directory.mkdir(parents=True, exist_ok=True)
    with inspector() as chromium:
        for mail in mails:
            for name, view in VIEWS.items():
                (directory / f"{mail.name}-{name}.png").write_bytes(chromium.photograph(mail, view))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Score the mails against L1 to L11.")
    parser.add_argument("--kind", action="append", choices=KIND_NAMES, help="only this kind; may be repeated")
    parser.add_argument("--stress", action="store_true", help="also with long names, right-to-left names, and so on")
    parser.add_argument("--shots", type=Path, metavar="DIR", help="write screenshots there")
    chosen = parser.parse_args(arguments)

    if lacks := missing():
        parser.error("; ".join(lacks))
    started = time.monotonic()
    kinds = chosen.kind or KIND_NAMES
    mails = [*samples(kinds), *(stressed(kinds) if chosen.stress else ())]
    scored = {measured.mail.name: judge(measured) for measured in measure(mails)}
    print(table(scored))
    short = faults(scored)
    print(*["", *short], sep="\n")
    if chosen.shots:
        photograph(mails, chosen.shots)
    print(f"{len(mails)} mails, {len(short)} shortcomings, {time.monotonic() - started:.0f} s")
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())

"""`python doctor.py`: is this installation well, and if not, what mends it?

Looks at everything the service needs, at most some 15 seconds, and changes and sends nothing. The exit code is 1 when
it finds a fault.
"""

import argparse
import sys

try:
    import json
    import logging
    from collections import Counter
    from collections.abc import Iterator
    from datetime import UTC, datetime

    from mail.findings import Finding, Level
    from settings import Settings
    from terminal import GREEN, PLAIN, RED, YELLOW, coloured, run, say, wrapped
    from utils.doctor import configuration, installation, network, services
    from utils.doctor.runner import Check, Timed, examine
except ImportError as missing:
    sys.exit(f"{missing}. Run it with the service's Python: ../.venv/bin/python doctor.py")
except KeyboardInterrupt:
    sys.exit(130)

SCHEMA = 1  # of --json; a field that is added does not change it
COLOURS = {Level.OK: GREEN, Level.WARNING: YELLOW, Level.FAULT: RED, Level.SKIPPED: PLAIN}
NAME_WIDTH = 19
INDENT = 9 + NAME_WIDTH


def main() -> int:
    """The exit code: 1 for a fault, else 0."""
    options = _options()
    # Whatever the parts would log is a finding here.
    logging.disable()
    found = []
    for timed in _examination():
        found.append(timed)
        if not options.json:
            _show(timed.finding)
    counts = Counter(timed.finding.level for timed in found)
    if options.json:
        say(json.dumps(_report(found), indent=2))
    else:
        say("")
        say(_verdict(counts))
    return int(Level.FAULT in counts)


def _examination() -> Iterator[Timed]:
    settings, said = configuration.read_settings()
    yield from (Timed(finding, 0.0) for finding in said)
    anyway = [Check("python", installation.python), Check("files", installation.files)]
    if settings is None:
        yield from examine(anyway)
        for name in ("keys", "templates", "redis", "broker", "smtp", "api", "flower", "inbox", "disk"):
            yield Timed(Finding(name, Level.SKIPPED, "not tried: the settings come first"), 0.0)
        return
    yield from examine([*anyway, *_checks(settings)])


def _checks(settings: Settings) -> Iterator[Check]:
    yield Check("settings", lambda: configuration.advice(settings))
    yield Check("keys.api", lambda: configuration.api_keys(settings))
    yield Check("keys.outbox", lambda: configuration.outbox_keys(settings))
    yield Check("templates", installation.templates)
    yield Check("disk", lambda: installation.disks(settings), hangs="Look at the disk and the system's log")
    yield Check("redis", lambda: services.redis_and_outbox(settings), 8, "Look at Redis's log, load and disk")
    yield Check("broker", lambda: services.broker(settings), 8, "Look at the broker's log and load")
    yield Check("smtp", services.smtp, 12, "Run python test_smtp.py, which waits longer")
    yield Check("api", lambda: network.api(settings), 8, "Look at the API's log")
    yield Check("flower", lambda: network.flower(settings), 8, "Look at Flower's log")
    yield Check("inbox", lambda: network.inbox(settings), 8, "Look at what has INBOX_PORT")


def _show(finding: Finding) -> None:
    mark = coloured(f"{finding.level:<7}", COLOURS[finding.level])
    say(f"{mark}  {finding.name:<{NAME_WIDTH}}{wrapped(finding.words, INDENT)}")
    if finding.fix and finding.level is not Level.OK:
        say(f"{'':<{INDENT}}{wrapped(f'Fix: {finding.fix}', INDENT)}")


def _verdict(counts: "Counter[Level]") -> str:
    if not (counts[Level.FAULT] or counts[Level.WARNING]):
        return "All is well. Nothing was sent: python test_smtp.py --to you@example.com sends a mail."
    parts = [
        f"{counts[level]} {level}{'s' * (counts[level] != 1)}"
        for level in (Level.FAULT, Level.WARNING)
        if counts[level]
    ]
    return f"{' and '.join(parts)}. More: docs/doctor.md"


def _report(found: list[Timed]) -> dict[str, object]:
    return {
        "schema": SCHEMA,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "level": max((one.finding.level for one in found), key=list(Level).index),
        "checks": [
            {
                "name": finding.name,
                "level": finding.level,
                "found": finding.words,
                "fix": finding.fix,
                "seconds": round(seconds, 3),
            }
            for finding, seconds in found
        ],
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python doctor.py",
        description="Looks at everything the service needs: settings, keys, files, templates, disks, Redis, lanes,\n"
        "broker, SMTP, API, Flower. Names what is wrong and what mends it. Changes and sends nothing, and\n"
        "never prints a secret.",
        epilog="exit codes:\n    0  no fault (there may be warnings)\n"
        "    1  a fault, or Python or its packages are not right\n    2  a wrong argument\n"
        "  130  stopped with Ctrl-C\n\n"
        "Settings come from the environment, then from backend/.env. More: docs/doctor.md",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="the findings as JSON, for programs")
    return parser.parse_args()


if __name__ == "__main__":
    run(main)

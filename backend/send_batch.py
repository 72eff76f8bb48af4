"""`python send_batch.py learners.csv ...`: one email to everyone in a CSV file, and a look at how it goes.

The whole file is checked before anything is accepted; faults are named by their line. Then the workers send, whether
anybody watches or not.
"""

import argparse
import os
import sys

try:
    import signal
    import time
    from collections.abc import Callable, Iterator
    from contextlib import contextmanager, nullcontext
    from datetime import timedelta
    from io import TextIOWrapper
    from pathlib import Path
    from typing import Any

    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.table import Table
    from rich.text import Text

    from mail.batches import Batch
    from mail.errors import ConfigurationError, EmailError, FieldError, InvalidEmail, OutboxUnavailable
    from mail.intake import MAX_FAULTS, AcceptedBatch, Intake
    from mail.records import State
    from settings import get_settings, no_color
    from utils.composition import get_batches
    from utils.csv_recipients import CsvRecipients, hand_over
    from utils.email_async import open_batch
except ModuleNotFoundError as missing:
    sys.exit(f"{missing}. Run it with the service's Python: ../.venv/bin/python send_batch.py")
except KeyboardInterrupt:
    sys.exit(130)

ALL_SENT, MISSED, REFUSED, INTERRUPTED = 0, 1, 2, 130
LOOK_SECONDS = 0.5
LINE_SECONDS = 5.0  # between two lines where no bar can be drawn
WAITING = frozenset({State.SCHEDULED, State.QUEUED, State.SENDING, State.RETRYING})
Show = Callable[[Batch | None], None]
OPTIONS = ("subject", "html", "text", "kind", "course_id", "send_at", "on_unknown")


def main() -> int:
    """The exit code; --help explains it."""
    options = _options()
    # A terminal that is not UTF-8 shows what it can.
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    console = Console(highlight=False, markup=False, soft_wrap=True, force_terminal=False if no_color() else None)
    batch_id: str = options.watch
    try:
        get_settings()
        if batch_id:
            get_batches().batch(batch_id)  # of a wrong id, or without Redis, there is nothing to watch
        else:
            with console.status(f"Checking {options.file}") if console.is_terminal else nullcontext():
                accepted = _accept(options)
            if accepted is None:
                console.print(f"All is well with {options.file}. Nothing was accepted: it was a dry run.")
                return ALL_SENT
            console.print(_receipt(accepted))
            batch_id = accepted.id
    except InvalidEmail as error:
        _complain(*(_named(fault, options.file) for fault in error.errors[:MAX_FAULTS]))
        return REFUSED
    except OSError as error:
        _complain(f"{options.file}: {error.strerror}")
        return REFUSED
    except (ConfigurationError, EmailError) as error:
        _complain(str(error))
        return REFUSED
    except KeyboardInterrupt:
        _complain("Stopped. Nothing was accepted." if options.file else "")
        return INTERRUPTED
    return ALL_SENT if options.no_wait else _watch(batch_id, console)


# Accepting.


def _accept(options: argparse.Namespace) -> AcceptedBatch | None:
    """Take in the whole file, or nothing; None where nothing was asked for.

    Raises:
        InvalidEmail: the fields are those of the request, or "line 18, to".
    """
    head: dict[str, Any] = dict(options.field)
    head |= {name: value for name in OPTIONS if (value := getattr(options, name)) is not None}
    with options.file.open("rb") as file:
        recipients = CsvRecipients(file)
        intake = open_batch(
            head, idempotency_key=options.idempotency_key, limit=get_settings().batch_stream_max_recipients
        )
        try:
            hand_over(recipients, intake)
            if options.dry_run:
                intake.check()
                return None
            return _finish(intake)
        finally:
            intake.discard()


def _finish(intake: Intake) -> AcceptedBatch:
    # From here until somebody watches, a Ctrl-C would leave nobody knowing whether the batch was accepted.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return intake.finish()


def _named(fault: FieldError, file: Path) -> str:
    """A fault with the place where it can be mended."""
    if fault.field.startswith("line "):
        return f"{file}, {fault.field.replace(', ', ': ', 1)}: {fault.message}"
    if fault.field == "recipients":
        return f"{file}: {fault.message}"
    if fault.field in (*OPTIONS, "idempotency_key"):
        return f"--{fault.field.replace('_', '-')}: {fault.message}"
    return f"--field {fault.field}: {fault.message}"


def _receipt(accepted: AcceptedBatch) -> str:
    what = "Accepted before, under the same key" if accepted.replayed else "Accepted"
    repeated = f", {accepted.duplicates} repeated addresses left out" if accepted.duplicates else ""
    return f"{what}: batch {accepted.id}, {accepted.total} recipients{repeated}"


# Watching.


def _watch(batch_id: str, console: Console) -> int:
    """Show how it goes until it has ended, then how it went."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with (_bar if console.is_terminal else _lines)(console) as show:
            while (batch := _look(batch_id)) is None or not batch.ended:
                show(batch)
                time.sleep(LOOK_SECONDS)
            show(batch)
    except KeyboardInterrupt:
        console.print(
            f"\nThe batch goes on. To watch it again:\n  python send_batch.py --watch {batch_id}\n"
            f"To cancel it:\n  {_call('POST', batch_id, '/cancel')}"
        )
        return INTERRUPTED
    console.print(_summary(batch))
    missed = batch.total - batch.counts.get(State.SENT, 0)
    if not missed:
        return ALL_SENT
    console.print(
        f"{missed} were not sent. Who, and why, as CSV:\n  {_call('GET', batch_id, '/recipients?missed=true')}"
    )
    for state, action in ((State.FAILED, "retry-failed"), (State.HELD, "release-held")):
        if batch.counts.get(state):
            console.print(f"To send those that are {state} again:\n  {_call('POST', batch_id, f'/{action}')}")
    return MISSED


def _look(batch_id: str) -> Batch | None:
    """None while Redis does not answer."""
    try:
        return get_batches().batch(batch_id)
    except OutboxUnavailable:
        return None


@contextmanager
def _bar(console: Console) -> Iterator[Show]:
    bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), console=console)
    task = bar.add_task("")
    with Live(bar, console=console) as live:

        def show(batch: Batch | None) -> None:
            if batch:
                bar.update(task, description=batch.state, total=batch.total, completed=_done(batch))
            live.update(Group(bar, *(Text(part) for part in _details(batch))))

        yield show


@contextmanager
def _lines(console: Console) -> Iterator[Show]:
    """Where no bar can be drawn: a line at once when the state changes, else one from time to time."""
    said, said_state, said_at = "", "", 0.0

    def show(batch: Batch | None) -> None:
        nonlocal said, said_state, said_at
        state = batch.state if batch else ""
        line = f"{state}: {_done(batch)} of {batch.total} done" if batch else ""
        line = "; ".join([line, *_details(batch)] if line else _details(batch))
        if line != said and (state != said_state or time.monotonic() - said_at >= LINE_SECONDS):
            console.print(line)
            said, said_state, said_at = line, state, time.monotonic()

    yield show


def _done(batch: Batch) -> int:
    return sum(count for state, count in batch.counts.items() if state not in WAITING)


def _details(batch: Batch | None) -> list[str]:
    if batch is None:
        return ["Redis does not answer; looking again"]
    parts = [", ".join(f"{count} {state}" for state, count in batch.counts.items())]
    if batch.per_second:
        parts.append(f"{batch.per_second:.1f} mails per second")
    if batch.seconds_left is not None and not batch.ended:
        parts.append(f"{timedelta(seconds=round(batch.seconds_left))} left")
    if batch.limited_by:
        parts.append(f"limited by {batch.limited_by}")
    return parts


def _summary(batch: Batch) -> Table:
    took = ""
    if batch.started_at and batch.finished_at:
        took = f" after {timedelta(seconds=round((batch.finished_at - batch.started_at).total_seconds()))}"
    table = Table("state", title=f"Batch {batch.id}: {batch.state}{took}", title_justify="left", show_footer=True)
    table.add_column("recipients", justify="right", footer=str(batch.total))
    table.columns[0].footer = "total"
    for state, count in batch.counts.items():
        table.add_row(state, str(count))
    return table


def _call(method: str, batch_id: str, what: str) -> str:
    """A request to the API, as something to paste."""
    settings = get_settings()
    csv = '-H "Accept: text/csv" ' if method == "GET" else ""
    return (
        f'curl -X {method} -H "Authorization: Bearer $API_KEY" {csv}'
        f'"http://{settings.api_host}:{settings.api_port}/api/batches/{batch_id}{what}"'
    )


def _complain(*lines: str) -> None:
    sys.stderr.write("".join(f"{line}\n" for line in lines))


# The command line.


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python send_batch.py",
        description="Sends one email to everyone in a CSV file: a subject and a body of your own with\n"
        "{{ placeholders }}, or a kind. The columns of the file: to (or email), name, and whatever else the mail\n"
        "uses. All of the file is accepted, or nothing and every fault is named by its line.",
        epilog="exit codes:\n    0  all are sent (with --no-wait: accepted; with --dry-run: nothing is wrong)\n"
        "    1  the batch has ended, and some were not sent\n"
        "    2  nothing was accepted: an argument, the file, a setting, or Redis that does not answer\n"
        "  130  stopped with Ctrl-C; an accepted batch goes on\n\n"
        "Settings come from the environment, then from backend/.env. More: docs/batches.md",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="the CSV file")
    parser.add_argument("--watch", metavar="BATCH_ID", help="only show how a batch goes that was accepted before")
    content = parser.add_argument_group("the mail")
    content.add_argument("--subject", help="its subject")
    content.add_argument("--html", metavar="FILE", type=_content, help="a file with its HTML body")
    content.add_argument("--text", metavar="FILE", type=_content, help="a file with its plain text body")
    content.add_argument("--kind", help="a kind, such as course_enrollment, in place of a subject and a body")
    content.add_argument(
        "--field", metavar="NAME=VALUE", type=_field, action="append", default=[],
        help="a field of the kind that all recipients share, or reply_to, from_name, expires_at; may be repeated",
    )  # fmt: skip
    batch = parser.add_argument_group("the batch")
    batch.add_argument("--course-id", metavar="ID", help="the course that it belongs to")
    batch.add_argument("--send-at", metavar="TIME", help="not before then, such as 2030-01-31T09:00:00Z")
    batch.add_argument(
        "--on-unknown", metavar="hold|resend",
        help="what to do with a mail that a crash leaves unknown: hold it for a human (default), or send it again",
    )  # fmt: skip
    batch.add_argument("--idempotency-key", metavar="KEY", help="the same key with the same file is taken once")
    batch.add_argument("--no-wait", action="store_true", help="end when the batch is accepted")
    batch.add_argument("--dry-run", action="store_true", help="check everything, accept nothing")
    options = parser.parse_args()
    if (options.file is None) == (options.watch is None):
        parser.error("name a CSV file, or a batch with --watch")
    return options


def _content(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise argparse.ArgumentTypeError(f"{path} must be UTF-8") from None


def _field(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError("must read NAME=VALUE, such as course_name=Algebra")
    return name, value


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:  # whoever read along has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)

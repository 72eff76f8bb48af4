"""Runs checks side by side, and never waits longer for one than it may take."""

import time
from collections.abc import Callable, Iterable, Iterator
from enum import Enum, auto
from queue import Empty, SimpleQueue
from threading import Thread
from typing import NamedTuple

from mail.findings import Finding, Level


class Check(NamedTuple):
    """One thing to look at.

    `run` yields findings whose names begin with `name`. It gets `seconds`; `hangs` says what to do when they are not
    enough.
    """

    name: str
    run: Callable[[], Iterable[Finding]]
    seconds: float = 5.0
    hangs: str = "Look at what it waits for"


class Timed(NamedTuple):
    """A finding, and how many seconds it took."""

    finding: Finding
    seconds: float


class _End(Enum):
    DONE = auto()
    BROKEN = auto()


def examine(checks: Iterable[Check]) -> Iterator[Timed]:
    """Start all checks at once, and yield what they find in their order, each finding as soon as it is its turn.

    A check that breaks off or hangs ends with a fault of its own, and stops no other. A hanging one is left behind in
    a daemon thread.
    """
    begun = time.monotonic()
    running: list[tuple[Check, SimpleQueue[Timed | _End]]] = []
    for check in checks:
        found: SimpleQueue[Timed | _End] = SimpleQueue()
        Thread(target=_work, args=(check, found), name=check.name, daemon=True).start()
        running.append((check, found))
    for check, found in running:
        yield from _collect(check, found, begun + check.seconds)


def _work(check: Check, found: "SimpleQueue[Timed | _End]") -> None:
    end = _End.BROKEN  # and the interpreter prints the traceback of what broke it
    try:
        before = time.monotonic()
        for finding in check.run():
            found.put(Timed(finding, time.monotonic() - before))
            before = time.monotonic()
        end = _End.DONE
    finally:
        found.put(end)


def _collect(check: Check, found: "SimpleQueue[Timed | _End]", deadline: float) -> Iterator[Timed]:
    while True:
        try:
            one = found.get(timeout=max(0.0, deadline - time.monotonic()))
        except Empty:
            text = f"no answer within {check.seconds:g} s"
            yield Timed(Finding(check.name, Level.FAULT, text, check.hangs), check.seconds)
            return
        match one:
            case Timed():
                yield one
            case _End.DONE:
                return
            case _End.BROKEN:
                text = "this check broke off, through a fault of its own; the traceback is above"
                yield Timed(Finding(check.name, Level.FAULT, text, "Please report it"), 0.0)
                return

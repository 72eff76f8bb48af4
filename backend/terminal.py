"""What the commands of this directory share: how they print, and how they end."""

import os
import shutil
import sys
import textwrap
from collections.abc import Callable
from io import TextIOWrapper

from settings import no_color

WIDEST = 110
GREEN, YELLOW, RED, PLAIN = "32", "33", "31;1", "0"


def run(main: Callable[[], int]) -> None:
    """Run a command, and end the process with its exit code."""
    # A terminal that is not UTF-8 shows what it can.
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # whoever read along has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def coloured(text: str, colour: str) -> str:
    """The text in a colour, where somebody sees it."""
    return f"\033[{colour}m{text}\033[0m" if sys.stdout.isatty() and not no_color() else text


def wrapped(text: str, indent: int) -> str:
    """The text in lines of the terminal's width, all but the first indented; the indents of its own lines stay."""
    width = max(30, min(shutil.get_terminal_size().columns, WIDEST) - indent)
    lines: list[str] = []
    for line in text.splitlines():
        own = line[: -len(line.lstrip())]
        lines += textwrap.wrap(line, width, subsequent_indent=own, break_long_words=False, break_on_hyphens=False)
    return f"\n{'':<{indent}}".join(lines)

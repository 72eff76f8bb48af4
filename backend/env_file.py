"""What stands in a `.env` file, and on which line.

python-dotenv drops a line it cannot read and only logs that, without the file's name; the setting on that line then
silently has its default.
"""

import difflib
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from dotenv.parser import Binding, parse_stream

from mail.errors import ConfigurationError

ROOT = Path(__file__).resolve().parent.parent
SIMILAR = 0.8  # difflib's ratio: SMTP_PASS is meant for SMTP_PASSWORD, SMTP_TLS for nothing of ours
UNREADABLE = "must read NAME=value, or begin with #"
_OPENS_QUOTE = re.compile(r"""\s*(?:export\s+)?[^=#\s]+[^\S\n]*=[^\S\n]*["']""")


class EnvFile(NamedTuple):
    """What a file holds."""

    lines: dict[str, int]
    """The line numbers of its settings, by upper-case name; of the last one when a name comes twice."""

    remarks: list[str]
    """Names that come twice, and names that look like a misspelt setting."""


def read_env_file(path: Path, known: Collection[str]) -> EnvFile:
    """Look through a file. Names that are nothing like a setting are let be: a file may be shared with other
    programs. No message shows a value.

    Raises:
        ConfigurationError: the file cannot be read, or a line of it; names file and line.
    """
    lines: dict[str, int] = {}
    remarks: list[str] = []
    for line, binding in _bindings(path):
        if fault := _fault(binding, known):
            raise ConfigurationError(f"{shown(path)}, line {line}: {fault}")
        name = (binding.key or "").upper()
        place = f"{shown(path)}, line {line}: {name}"
        if name in lines:
            remarks.append(f"{place} is on line {lines[name]} too; the last one counts")
        if name in known:
            lines[name] = line
        elif meant := _meant(name, known):
            remarks.append(f"{place} is not a setting; did you mean {meant}?")
    return EnvFile(lines, remarks)


def shown(path: Path) -> str:
    """The path as messages have it: from the checkout where it is inside."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def _bindings(path: Path) -> Iterator[tuple[int, Binding]]:
    try:
        with path.open(encoding="utf-8") as file:
            for binding in parse_stream(file):
                text = binding.original.string
                # A binding begins with the empty lines before it.
                yield binding.original.line + text[: len(text) - len(text.lstrip())].count("\n"), binding
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(f"{shown(path)}, line {line}: not UTF-8; save the file in that encoding") from None
    except OSError as error:
        raise ConfigurationError(f"{shown(path)} cannot be read: {error.strerror}") from None


def _fault(binding: Binding, known: Collection[str]) -> str | None:
    text = binding.original.string.strip()
    if binding.error or "\n" in (binding.value or ""):
        swallowed = {line.partition("=")[0].strip().upper() for line in text.splitlines()}
        if not binding.error and swallowed.isdisjoint(known):
            return None  # another program's value of several lines, such as a private key
        if _OPENS_QUOTE.match(text):
            return "a quote is not closed, or something follows the closing one"
        return UNREADABLE
    if binding.key and binding.value is None:
        return UNREADABLE
    return None


def _meant(name: str, known: Collection[str]) -> str | None:
    candidates = [one for one in known if one[:1] == name[:1]]
    return next(iter(difflib.get_close_matches(name, candidates, n=1, cutoff=SIMILAR)), None)

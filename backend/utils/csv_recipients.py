"""Recipients of a batch from a CSV file, read as a stream."""

import csv
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

from mail.errors import FieldError, InvalidEmail
from mail.intake import Intake

MAX_LINE = 1_000_000  # bytes
SLICE = 500  # recipients that are handed over at once
DELIMITERS = ",;\t"  # the first one also stands for a file of a single column
ADDRESS_COLUMNS = ("to", "email")


class Row(NamedTuple):
    """One recipient, `{"to", "name", "data"}`, and the line of the file where it begins (from 1)."""

    line: int
    recipient: dict[str, Any]


class CsvRecipients:
    """The rows of a file with a header: `to` (or `email`), `name`, and any other column as data.

    UTF-8 with or without a byte order mark; commas, semicolons or tabs; line breaks within quotes. Empty lines do
    not count. An empty `name` is none; an empty cell of another column is data that is empty.
    """

    def __init__(self, file: BinaryIO) -> None:
        """Read the header.

        Raises:
            InvalidEmail: it cannot be used; the field is "line 1".
        """
        lines = _lines(file)
        try:
            first = next(lines, "")
            self._reader = csv.reader(_again(first, lines), delimiter=_delimiter(first), strict=True)
            header = next(self._reader, [])
        except UnicodeDecodeError:
            raise InvalidEmail([FieldError("line 1", _NOT_UTF8)]) from None
        except (csv.Error, _LineTooLong) as error:
            raise InvalidEmail([_unreadable(1, error)]) from None
        self._columns = [_column(name) for name in header]
        if faults := list(_header_faults(self._columns)):
            raise InvalidEmail([FieldError("line 1", fault) for fault in faults])

    @property
    def columns(self) -> tuple[str, ...]:
        """Their names; that of the addresses is `to`."""
        return tuple(self._columns)

    def __iter__(self) -> Iterator[Row | FieldError]:
        """Every row, or the fault in its place ("line 18"). One that hides where the next row begins ends it."""
        while True:
            line = self._reader.line_num + 1
            try:
                cells = next(self._reader, None)
            except UnicodeDecodeError:
                yield FieldError(f"line {self._reader.line_num + 1}", _NOT_UTF8)
                return
            except (csv.Error, _LineTooLong) as error:
                yield _unreadable(line, error)
                return
            if cells is None:
                return
            if not any(cells):
                continue
            if len(cells) != len(self._columns):
                yield FieldError(
                    f"line {line}", f"has {len(cells)} columns where the header has {len(self._columns)}"
                )
                continue
            yield Row(line, self._recipient(cells))

    def _recipient(self, cells: Sequence[str]) -> dict[str, Any]:
        data = dict(zip(self._columns, cells, strict=True))
        recipient: dict[str, Any] = {"to": data.pop("to").strip()}
        if name := data.pop("name", "").strip():
            recipient["name"] = name
        if data:
            recipient["data"] = data
        return recipient


def hand_over(rows: CsvRecipients, intake: Intake) -> None:
    """Give every row to a batch that is being taken in, and the faults in their places.

    Raises:
        OutboxUnavailable
    """
    for run in _runs(rows):
        if isinstance(run, FieldError):
            intake.refuse(run)
        else:
            intake.take([row.recipient for row in run], first_line=run[0].line)


def _runs(rows: CsvRecipients) -> Iterator[Sequence[Row] | FieldError]:
    """The rows in slices of neighbouring lines, and the faults between them."""
    run: list[Row] = []
    for row in rows:
        if run and (isinstance(row, FieldError) or row.line != run[-1].line + 1 or len(run) == SLICE):
            yield run
            run = []
        if isinstance(row, FieldError):
            yield row
        else:
            run.append(row)
    if run:
        yield run


class _LineTooLong(Exception):
    """Of a file that is no CSV at all; whatever is in it must not fill the memory."""


_NOT_UTF8 = 'must be UTF-8; a spreadsheet program can save the file as "CSV UTF-8"'


def _lines(file: BinaryIO) -> Iterator[str]:
    encoding = "utf-8-sig"
    while line := file.readline(MAX_LINE + 1):
        if len(line) > MAX_LINE:
            raise _LineTooLong(f"longer than {MAX_LINE:,} bytes")
        # Line by line, because a decoder that reads ahead cannot say where the fault is.
        yield line.decode(encoding)
        encoding = "utf-8"


def _again(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _delimiter(header: str) -> str:
    def fit(delimiter: str) -> tuple[bool, int]:
        columns = [_column(name) for name in next(csv.reader([header], delimiter=delimiter), [])]
        return "to" in columns, len(columns)

    return max(DELIMITERS, key=fit)


def _column(name: str) -> str:
    name = name.strip()
    if name.lower() in ADDRESS_COLUMNS:
        return "to"
    return "name" if name.lower() == "name" else name


def _header_faults(columns: Sequence[str]) -> Iterator[str]:
    if not columns:
        yield "must be a header that names the columns: to, name, and any others that the mail uses"
    elif "to" not in columns:
        yield "must name a column to (or email): this line is the header"
    elif columns.count("to") > 1:
        yield "must name one column of addresses, to or email"
    for number, name in enumerate(columns, 1):
        if not name:
            yield f"column {number} has no name; name it, or delete the column"
        elif name != "to" and name in columns[: number - 1]:
            yield f"column {number} has the name of another one; each must have its own"


def _unreadable(line: int, error: Exception) -> FieldError:
    return FieldError(
        f"line {line}",
        f"cannot be read as CSV ({error}); is a quote opened here and not closed, or not doubled within quotes?",
    )

"""CSV files as people save them: how each is read, and what is said of those that cannot be."""

import io
from typing import Any

import pytest

from mail.errors import FieldError, InvalidEmail
from utils.csv_recipients import MAX_LINE, CsvRecipients, Row

ADA = {"to": "ada@example.com", "name": "Ada"}


def read(content: bytes) -> list[Row | FieldError]:
    return list(CsvRecipients(io.BytesIO(content)))


def recipients(content: bytes) -> list[dict[str, Any]]:
    return [row.recipient for row in read(content) if isinstance(row, Row)]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_delimiters_marks_and_line_ends(delimiter: str, mark: str, ending: str) -> None:
    lines = [("name", "to", "grade"), ("Ada", "ada@example.com", "1.0"), ("", "bob@example.com", "")]
    content = mark + ending.join(delimiter.join(cells) for cells in lines)
    assert recipients(content.encode()) == [
        {**ADA, "data": {"grade": "1.0"}},
        {"to": "bob@example.com", "data": {"grade": ""}},
    ]


def test_a_single_column() -> None:
    assert recipients(b"to\nada@example.com\n") == [{"to": "ada@example.com"}]


def test_headers_as_programs_write_them() -> None:
    assert recipients(b'"E, mail";Email ; NAME\nx;ada@example.com;Ada\n') == [{**ADA, "data": {"E, mail": "x"}}]


def test_each_row_has_the_line_where_it_begins() -> None:
    content = b'to,note\na@example.com,"two\nlines"\n\n,\nb@example.com,one\n'
    assert read(content) == [
        Row(2, {"to": "a@example.com", "data": {"note": "two\nlines"}}),
        Row(6, {"to": "b@example.com", "data": {"note": "one"}}),
    ]


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"", "must be a header"),
        (b"\nto,name\n", "must be a header"),
        (b"name,grade\n", "must name a column to"),
        (b"to,email\n", "one column of addresses"),
        (b"to,,grade\n", "column 2 has no name"),
        (b"to,grade,grade\n", "column 3 has the name of another"),
        ("to\tname\n".encode("utf-16"), "must be UTF-8"),
        (b'to,"name\n', "cannot be read as CSV"),
    ],
)
def test_a_header_that_is_not_right(header: bytes, said: str) -> None:
    with pytest.raises(InvalidEmail, match=said) as raised:
        read(header)
    assert raised.value.errors[0].field == "line 1"


def test_rows_of_another_length_are_named_and_the_rest_is_read() -> None:
    short, long, right = read(b"to,name\nada@example.com\na,b,c\nada@example.com,Ada\n")
    assert short == FieldError("line 2", "has 1 columns where the header has 2")
    assert long == FieldError("line 3", "has 3 columns where the header has 2")
    assert right == Row(4, ADA)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (b"ada@example.com,M\xfcller\n", "must be UTF-8"),
        (b'ada@example.com,"Ada\nb@example.com,Bob\n', "cannot be read as CSV"),
        (b'ada@example.com,"Ada" L\n', "cannot be read as CSV"),
        (b"ada@example.com," + b"x" * MAX_LINE + b"\n", "cannot be read as CSV"),
    ],
    ids=["latin-1", "unclosed quote", "quote within", "no end"],
)
def test_what_hides_the_next_row_ends_it(row: bytes, said: str) -> None:
    first, fault = read(b"to,name\nada@example.com,Ada\n" + row + b"b@example.com,Bob\n")
    assert first == Row(2, ADA)
    assert isinstance(fault, FieldError)
    assert fault.field == "line 3"
    assert said in fault.message

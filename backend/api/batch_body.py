"""Reads the body of a batch piece by piece: its head, its recipients, and what is wrong with it.

Two forms. `JsonBody` is one object; its recipients may come before the other fields, so it keeps what it has read
until the end, and takes a limited number of them. `NdjsonBody` is a head on the first line and a recipient on each
further one, and keeps no more than the line it is reading.

Neither ever has the whole body in memory, and both are strict where parsers differ: what two programs read
differently is refused.
"""

import json
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import ijson.backends.yajl2_c as ijson

from mail.errors import FieldError, InvalidEmail

LONGEST_LINE = 65_536  # bytes; a recipient has a few hundred
DEEPEST = 20  # levels; a recipient's data lies four deep

# JSON text without lone surrogates: half a character, which has no UTF-8 form (RFC 8259 section 8.2). The longest
# escape is a pair of surrogates.
_SOUND = re.compile(
    rb"(?:[^\\]++|\\[^u]|\\u(?![dD][89a-fA-F])[^\\]{4}|\\u[dD][89abAB][^\\]{2}\\u[dD][c-fC-F][^\\]{2})*+",
    re.DOTALL,
)
_LONGEST_ESCAPE = len(r"\ud83d\ude00")

_NOT_JSON = "is not valid JSON"
_NOT_UTF8 = "must be UTF-8, without lone surrogates"
_TOO_DEEP = "is nested too deeply"
_NUMBER = "has a number out of range; send it as text"


class Head(NamedTuple):
    """All of a request but its recipients."""

    fields: dict[str, Any]


class RawRecipient(NamedTuple):
    """One recipient as it came; `line` (from 1) in NDJSON only."""

    raw: object
    line: int | None = None


Part = Head | RawRecipient | FieldError
"""What reading yields. A `FieldError` is a fault that does not keep the rest from being read."""


class BatchBody(Protocol):
    """The body of one request. Both methods raise InvalidEmail, naming the place, when reading on makes no sense."""

    def feed(self, piece: bytes) -> Iterator[Part]:
        """The parts that a further piece of the body completes. To be exhausted before the next call."""

    def end(self) -> Iterator[Part]:
        """The last parts, once the whole body has been fed."""


class JsonBody:
    """One object: the head's fields and `recipients`, in any order.

    Args:
        limit: the most recipients.
        longest: bytes that a value of the head may have.
    """

    def __init__(self, *, limit: int, longest: int) -> None:
        self._limit = limit
        self._longest = longest
        self._events = ijson.utils.sendable_list()
        self._parser = ijson.basic_parse_coro(self._events, use_float=True)
        self._escape = b""
        self._silence = 0
        self._open: list[dict[str, Any] | list[Any]] = []
        self._keys: list[str] = []
        self._whole: dict[str, Any] | None = None

    def feed(self, piece: bytes) -> Iterator[Part]:
        # yajl would read a lone surrogate as a question mark.
        text = self._escape + piece if self._escape else piece
        sound = _sound_length(text)
        self._escape = text[sound:]
        if sound:  # no bytes are the end to the parser
            self._parse(text[:sound])
        if len(self._escape) >= _LONGEST_ESCAPE:
            raise self._refused(_NOT_UTF8)
        longest = LONGEST_LINE if self._keys[:1] == ["recipients"] else self._longest
        if self._silence > longest:
            raise self._refused(f"is larger than {longest} bytes")
        yield from ()

    def end(self) -> Iterator[Part]:
        if b'"' in self._escape:
            raise self._refused(_NOT_UTF8)
        try:
            self._parser.close()
        except ijson.common.JSONError:
            raise self._refused("the JSON ends here, before it is complete") from None
        self._build()
        head = self._whole or {}
        if "recipients" not in head:
            raise InvalidEmail([FieldError("recipients", "required")])
        recipients = head.pop("recipients")
        if not isinstance(recipients, list):
            raise InvalidEmail([FieldError("recipients", "must be a list")])
        yield Head(head)
        yield from map(RawRecipient, recipients)

    def _parse(self, text: bytes) -> None:
        try:
            self._parser.send(text)
        except (ijson.common.JSONError, UnicodeDecodeError) as error:
            self._build()
            raise self._refused(_complaint(error)) from None
        self._silence = 0 if self._events else self._silence + len(text)
        self._build()

    def _build(self) -> None:
        """Turn what the parser has found into values."""
        for event, value in self._events:
            match event:
                case "map_key":
                    twice = value in self._open[-1]
                    self._keys[-1] = value
                    if twice:
                        raise self._refused("comes twice")
                case "start_map" | "start_array":
                    if len(self._open) == DEEPEST:
                        raise self._refused(_TOO_DEEP)
                    self._open.append({} if event == "start_map" else [])
                    self._keys.append("")
                case "end_map" | "end_array":
                    self._keys.pop()
                    self._put(self._open.pop())
                case _:
                    self._put(value)
        self._events.clear()

    def _put(self, value: Any) -> None:
        if not self._open:
            if not isinstance(value, dict):
                raise InvalidEmail([FieldError("body", "must be a JSON object")])
            self._whole = value
            return
        inner = self._open[-1]
        if isinstance(inner, dict):
            inner[self._keys[-1]] = value
            return
        inner.append(value)
        if len(self._open) == 2 and len(inner) > self._limit and self._keys[0] == "recipients":
            fault = f"one too many: JSON may hold {self._limit}; send more as application/x-ndjson"
            raise InvalidEmail([FieldError(f"recipients.{self._limit}", fault)])

    def _refused(self, message: str) -> InvalidEmail:
        path = (
            key[:100] if isinstance(inner, dict) else str(len(inner))
            for inner, key in zip(self._open, self._keys, strict=True)
        )
        return InvalidEmail([FieldError(".".join(filter(None, path)) or "body", message)])


class NdjsonBody:
    """Lines: the head, then the recipients. Blank ones are skipped.

    Args:
        longest: bytes that the head may have; a recipient has `LONGEST_LINE`.
    """

    def __init__(self, *, longest: int) -> None:
        self._longest = longest
        self._rest = b""
        self._line = 1
        self._reads_head = True

    def feed(self, piece: bytes) -> Iterator[Part]:
        *lines, rest = piece.split(b"\n")
        for line in lines:
            whole, self._rest = self._rest + line, b""
            self._refuse_if_long(whole)
            if not whole.isspace() and whole:
                yield self._part(whole)
            self._line += 1
        self._rest += rest
        self._refuse_if_long(self._rest)

    def end(self) -> Iterator[Part]:
        if self._rest.strip():
            message = "must end with a line break: without it nobody can tell a whole list from one that was cut off"
            raise self._refused(message)
        if self._reads_head:
            raise self._refused("must be a JSON object with everything but the recipients")
        yield from ()

    def _part(self, line: bytes) -> Part:
        try:
            value = _decoded(line)
        except ValueError as error:
            if self._reads_head:
                raise self._refused(str(error)) from None
            return FieldError(self._place(), str(error))
        if not self._reads_head:
            return RawRecipient(value, self._line)
        if not isinstance(value, dict):
            raise self._refused("must be a JSON object with everything but the recipients")
        if "recipients" in value:
            raise InvalidEmail([FieldError("recipients", "must follow, one a line")])
        self._reads_head = False
        return Head(value)

    def _refuse_if_long(self, line: bytes) -> None:
        longest = self._longest if self._reads_head else LONGEST_LINE
        if len(line) > longest:
            raise self._refused(f"is longer than {longest} bytes")

    def _refused(self, message: str) -> InvalidEmail:
        return InvalidEmail([FieldError(self._place(), message)])

    def _place(self) -> str:
        return f"line {self._line}"


def _sound_length(text: bytes) -> int:
    found = _SOUND.match(text)
    return found.end() if found else 0


def _complaint(error: Exception) -> str:
    """What yajl found, in our words: its own quote the input."""
    said = str(error)
    if "overflow" in said:
        return _NUMBER
    if "UTF8" in said or isinstance(error, UnicodeDecodeError):
        return _NOT_UTF8
    if "trailing garbage" in said:
        return "must be one JSON object, with nothing after it"
    return _NOT_JSON


def _decoded(line: bytes) -> Any:
    """One line's value.

    Raises:
        ValueError: with words of ours.
    """
    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise ValueError(_NOT_UTF8) from None
    try:
        value = _decoder.decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{_NOT_JSON} (character {error.colno})") from None
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    if _sound_length(line) < len(line):
        raise ValueError(_NOT_UTF8)
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("has a field that comes twice")
    return fields


def _integer(digits: str) -> int:
    # 64 bits, as in a JSON body. Python refuses to read thousands of digits.
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**63:
        raise ValueError(_NUMBER)
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(_NUMBER)
    return value


def _no_constant(_: str) -> None:
    raise ValueError(_NOT_JSON)  # NaN and Infinity, which Python's parser would take


_decoder = json.JSONDecoder(
    object_pairs_hook=_without_duplicates, parse_int=_integer, parse_float=_float, parse_constant=_no_constant
)

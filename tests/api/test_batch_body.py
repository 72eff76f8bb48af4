"""The body of a batch, read in pieces: what it yields, and what it refuses at which place."""

import json
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.batch_body import LONGEST_LINE, BatchBody, Head, JsonBody, NdjsonBody, Part, RawRecipient
from mail.errors import FieldError, InvalidEmail

LIMIT = 50
LONGEST = 1_000_000
PIECES = (1, 2, 3, 5, 7, 64, 65_536)

HEAD = {"subject": "Grades", "html": "<p>{{ name }}, {{ grade }}</p>"}
ADA = {"to": "ada@example.com", "name": "Ada", "data": {"grade": "A", "points": 12, "share": 0.5}}
RECIPIENTS = [ADA, "bob@example.com", {"to": "zoë@example.com", "name": "Zoë 😀"}]


def json_body() -> JsonBody:
    return JsonBody(limit=LIMIT, longest=LONGEST)


def ndjson_body() -> NdjsonBody:
    return NdjsonBody(longest=LONGEST)


def read(build: Callable[[], BatchBody], content: bytes, piece: int = 65_536) -> list[Part]:
    body = build()

    def parts() -> Iterator[Part]:
        for start in range(0, len(content), piece):
            yield from body.feed(content[start : start + piece])
        yield from body.end()

    return list(parts())


def fault(build: Callable[[], BatchBody], content: bytes) -> FieldError:
    """The one fault that ends the reading, the same however the content is cut."""
    found = set()
    for piece in PIECES if len(content) < 10_000 else PIECES[-2:]:
        with pytest.raises(InvalidEmail) as refused:
            read(build, content, piece)
        found.update(refused.value.errors)
    [one] = found
    return one


class TestJson:
    def parts(self, recipients: list[Any]) -> list[Part]:
        return [Head(HEAD), *map(RawRecipient, recipients)]

    @pytest.mark.parametrize("ascii_only", [True, False])
    def test_reads_what_python_reads(self, ascii_only: bool) -> None:
        content = json.dumps({**HEAD, "recipients": RECIPIENTS}, ensure_ascii=ascii_only, indent=1).encode()
        for piece in PIECES:
            assert read(json_body, content, piece) == self.parts(RECIPIENTS)

    def test_recipients_may_come_first(self) -> None:
        assert read(json_body, json.dumps({"recipients": RECIPIENTS, **HEAD}).encode()) == self.parts(RECIPIENTS)

    def test_what_is_inside_a_recipient_is_not_the_list(self) -> None:
        odd = [{"recipients": ["x"] * (LIMIT + 1)}]
        assert read(json_body, json.dumps({**HEAD, "recipients": odd}).encode()) == self.parts(odd)

    @given(st.text(alphabet=st.characters(codec="utf-8")), st.booleans(), st.sampled_from(PIECES))
    def test_any_text(self, text: str, ascii_only: bool, piece: int) -> None:
        content = json.dumps({"subject": text, "recipients": [text]}, ensure_ascii=ascii_only).encode()
        assert read(json_body, content, piece) == [Head({"subject": text}), RawRecipient(text)]

    @pytest.mark.parametrize(
        ("content", "field", "words"),
        [
            ("", "body", "before it is complete"),
            (" ", "body", "before it is complete"),
            ("[]", "body", "JSON object"),
            ('"x"', "body", "JSON object"),
            ("null", "body", "JSON object"),
            ("{}", "recipients", "required"),
            ('{"recipients": null}', "recipients", "list"),
            ('{"recipients": {"to": "x"}}', "recipients", "list"),
            ('{"recipients": [', "recipients.0", "before it is complete"),
            ('{"recipients": [{"to": "x"}, {"to": "y', "recipients.1.to", "before it is complete"),
            ('{"recipients": []', "recipients", "before it is complete"),
            ('{"recipients": ["x\\', "recipients.0", "before it is complete"),
            ('{"recipients": ["x"]} x', "body", "nothing after"),
            ('{"recipients": ["x"]}{}', "body", "nothing after"),
            ('{"recipients": ["x"]}\0', "body", "nothing after"),
            ('{"recipients": ["x", {"to": NaN}]}', "recipients.1.to", "valid JSON"),
            ('{"recipients": [Infinity]}', "recipients.0", "valid JSON"),
            ('{"recipients": [{"data": {"x": 1e999}}]}', "recipients.0.data.x", "number"),
            (f'{{"recipients": [{{"data": {{"x": {"9" * 20}}}}}]}}', "recipients.0.data.x", "number"),
            (f'{{"recipients": [{{"data": {{"x": {"9" * 9000}}}}}]}}', "recipients.0.data.x", "number"),
            ('{"recipients": ["x",]}', "recipients.1", "valid JSON"),
            ("{'recipients': []}", "body", "valid JSON"),
            ('{"a": 1, "b": 2, "a": 3}', "a", "twice"),
            ('{"recipients": [], "recipients": []}', "recipients", "twice"),
            ('{"recipients": [{"to": "x", "to": "y"}]}', "recipients.0.to", "twice"),
            ('{"recipients": ["a\0b"]}', "recipients.0", "valid JSON"),
            ('{"recipients": ["a\nb"]}', "recipients.0", "valid JSON"),
            ('{"recipients": ["x", "\\ud800"]}', "recipients.1", "surrogate"),
            ('{"recipients": ["x", "\\udc00"]}', "recipients.1", "surrogate"),
            ('{"recipients": ["\\ud83d\\u0041"]}', "recipients.0", "surrogate"),
            ('{"recipients": ["\\ude00\\ud83d"]}', "recipients.0", "surrogate"),
            ('{"subject": ' + "[" * 30, "subject.0", "deeply"),
            ('{"subject": ' + "[" * 100_000, "subject.0", "deeply"),
            ('{"subject": ' + '{"a":' * 30, "subject.a", "deeply"),
            ("\ufeff{}", "body", "valid JSON"),
        ],
    )
    def test_refused(self, content: str, field: str, words: str) -> None:
        place, message = fault(json_body, content.encode())
        assert place.startswith(field) if words == "deeply" else place == field
        assert words in message

    @pytest.mark.parametrize("bad", [b"\xff", b"\xc3(", b"\xed\xa0\x80"])
    def test_no_utf8(self, bad: bytes) -> None:
        place, message = fault(json_body, b'{"recipients": ["x", "' + bad + b'"]}')
        assert place == "recipients.1"
        assert "UTF-8" in message

    def test_escaped_backslashes_are_no_surrogates(self) -> None:
        for text in (r"\ud800", r"\\ud800", "\\" * 20_001 + "ud800", "😀\\ud83d"):
            content = json.dumps({"recipients": [text]}).encode()
            for piece in PIECES[3:]:
                assert read(json_body, content, piece) == [Head({}), RawRecipient(text)]

    def test_one_too_many(self) -> None:
        people = [f"p{number}@example.com" for number in range(LIMIT)]
        assert len(read(json_body, json.dumps({"recipients": people}).encode())) == LIMIT + 1
        place, message = fault(json_body, json.dumps({"recipients": [*people, "one@more.example"]}).encode())
        assert place == f"recipients.{LIMIT}"
        assert "application/x-ndjson" in message

    def test_refused_as_soon_as_seen(self) -> None:
        """A value that never ends is not kept until the body does."""
        for start, longest in (('{"html": "', LONGEST), ('{"recipients": ["x", {"name": "', LONGEST_LINE)):
            body = json_body()
            list(body.feed(start.encode()))
            for _ in range(longest // 10_000):
                list(body.feed(b"x" * 10_000))
            with pytest.raises(InvalidEmail, match="larger than"):
                list(body.feed(b"x" * 10_000))


class TestNdjson:
    def content(self, *lines: Any) -> bytes:
        return "".join(f"{json.dumps(line)}\n" for line in lines).encode()

    def test_reads_line_by_line(self) -> None:
        content = self.content(HEAD, *RECIPIENTS)
        expected = [Head(HEAD), *(RawRecipient(raw, line) for line, raw in enumerate(RECIPIENTS, start=2))]
        for piece in PIECES:
            assert read(ndjson_body, content, piece) == expected
        body = ndjson_body()
        assert list(body.feed(self.content(HEAD))) == [Head(HEAD)]
        assert list(body.feed(self.content(ADA))) == [RawRecipient(ADA, 2)]

    def test_blank_lines_and_carriage_returns(self) -> None:
        content = b'\n \r\n{"subject": "x"}\r\n\n\t\n"ada@example.com"\r\n\n'
        assert read(ndjson_body, content) == [Head({"subject": "x"}), RawRecipient("ada@example.com", 6)]

    @pytest.mark.parametrize(
        ("line", "words"),
        [
            ("ada@example.com", "valid JSON"),
            ('{"to": "x"', "valid JSON"),
            ('{"to": "x"} {"to": "y"}', "valid JSON"),
            ('{"to": NaN}', "valid JSON"),
            ('{"to": 1e999}', "number"),
            ('{"to": -' + "9" * 5000 + "}", "number"),
            ('{"to": 9223372036854775808}', "number"),
            ('{"to": "x", "to": "y"}', "twice"),
            ('{"to": "a\0b"}', "valid JSON"),
            ('{"to": "\\ud800"}', "surrogate"),
            ('{"\\udfff": 1}', "surrogate"),
            ("[" * 60_000, "deeply"),
            ("\ufeff{}", "valid JSON"),
        ],
    )
    def test_a_bad_line_is_named_and_the_rest_is_read(self, line: str, words: str) -> None:
        for piece in PIECES[3:]:
            head, found, after = read(ndjson_body, f'{{"subject": "x"}}\n{line}\n"ada@example.com"\n'.encode(), piece)
            assert isinstance(head, Head)
            assert isinstance(found, FieldError)
            assert found.field == "line 2"
            assert words in found.message
            assert after == RawRecipient("ada@example.com", 3)

    def test_no_utf8(self) -> None:
        found = read(ndjson_body, b'{}\n{"to": "\xff"}\n{"to": "\xed\xa0\x80"}\n')[1:]
        assert [isinstance(one, FieldError) and (one.field, "UTF-8" in one.message) for one in found] == [
            ("line 2", True),
            ("line 3", True),
        ]

    @pytest.mark.parametrize(
        ("content", "field", "words"),
        [
            ("", "line 1", "everything but the recipients"),
            ("\n\n", "line 3", "everything but the recipients"),
            ('{"subject": "x"}', "line 1", "line break"),
            ('{"subject": "x"}\n"ada@example.com"\n"bob@example.com"', "line 3", "line break"),
            ('{"subject": "x"}\n"ada@exam', "line 2", "line break"),
            ('"ada@example.com"\n', "line 1", "everything but the recipients"),
            ('{"recipients": []}\n', "recipients", "follow"),
            ("{\n", "line 1", "valid JSON"),
            ('{"a": 1, "a": 2}\n', "line 1", "twice"),
        ],
    )
    def test_refused(self, content: str, field: str, words: str) -> None:
        place, message = fault(ndjson_body, content.encode())
        assert place == field
        assert words in message

    def test_a_long_line_is_refused_as_soon_as_seen(self) -> None:
        body = ndjson_body()
        list(body.feed(b"{}\n"))
        with pytest.raises(InvalidEmail) as refused:
            list(body.feed(b"x" * (LONGEST_LINE + 1)))
        assert refused.value.errors[0].field == "line 2"
        whole = b'{}\n"' + b"x" * 5_000_000 + b'"\n'
        assert fault(ndjson_body, whole).field == "line 2"
        just = b'"' + b"x" * (LONGEST_LINE - 2) + b'"'
        assert len(read(ndjson_body, b"{}\n" + just + b"\n")) == 2

    def test_the_head_may_be_longer(self) -> None:
        head = {"html": "x" * 500_000}
        assert read(ndjson_body, self.content(head)) == [Head(head)]
        assert fault(ndjson_body, self.content({"html": "x" * LONGEST})).field == "line 1"

    def test_memory_is_constant(self) -> None:
        body = ndjson_body()
        list(body.feed(self.content(HEAD)))
        piece = self.content(*[ADA] * 500)
        list(body.feed(piece))
        tracemalloc.start()
        try:
            for _ in range(40):
                for _part in body.feed(piece):
                    pass
            assert tracemalloc.get_traced_memory()[0] < 20_000
        finally:
            tracemalloc.stop()

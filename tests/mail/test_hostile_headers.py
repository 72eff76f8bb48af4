"""What the fields let through, in mails of every kind and of batches: a mail has our headers and no others, however
hostile the names, subjects, addresses and placeholders that were accepted."""

from collections import Counter
from datetime import UTC, datetime
from email import message_from_bytes, message_from_string
from email.errors import NonASCIILocalPartDefect
from email.policy import default
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mail.brand import Brand
from mail.errors import InvalidEmail
from mail.kinds import KINDS, parse
from mail.mailing import Mailing
from mail.message import Message, Sender, build
from mail.rendering import Rendered, Renderer
from support.fuzz import OUR_HEADERS

TEMPLATES = Path(__file__).resolve().parents[2] / "backend" / "templates" / "emails"
RENDERER = Renderer(TEMPLATES, Brand("Ünïversität", "https://lms.example.com", "help@lms.example.com", "", "#1f5eff"))
SENDER = Sender("no-reply@lms.example.com", "Example, Academy")
DATE = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

_breaks = st.sampled_from(["\r\n", "\n", "\r", "\0", "\v", "\f", "\x1c", "\x85", "\u2028", "\u2029", "\t", "\r\n\t"])
_words = st.sampled_from(
    [
        *(
            "Bcc: evil@evil.example",
            "Subject: x",
            "\r\n\r\n<script>",
            "=?utf-8?q?=0D=0ABcc:_x?=",
            "=?utf-8?b?DQpCY2M6?=",
        ),
        *('"', "\\", "<", ">", "@", ",", ";", ":", "(", ")", "[", "]", "=?", "?=", "%0d%0a", "=0A", ".", "..", " "),
        *("Ada", "Zoë", "李雷", "مريم", "😀", "e\u0301", "\u202e", "\u2066", "\u200b", "\ufeff", "\ud800", "x" * 190),
    ]
)
# Half of it is taken, and reaches a header.
_fine = st.sampled_from(
    [
        *(
            "=?utf-8?q?=0D=0ABcc:_x?=",
            "=?utf-8?b?DQpCY2M6?=",
            "=?",
            "?=",
            '"',
            "\\",
            "<",
            ">",
            "@",
            ",",
            ";",
            ":",
            "()",
        ),
        *("[]", "%0d%0a", "=0A", " ", "Ada", "Zoë", "李雷", "مريم", "😀", "e\u0301", "\u200b", "Bcc: evil", "x" * 15),
    ]
)
text = st.lists(_fine, min_size=1, max_size=6).map("".join) | st.lists(
    _words | _breaks | st.text(max_size=5), min_size=1, max_size=6
).map("".join)
_local = st.lists(
    st.sampled_from(["ada", "+x", ".", "é", "李", '"', " ", "\\", "\r\n", "\0", "o'b", "x" * 60, "@"]), max_size=4
)
_domain = st.sampled_from(
    [
        "example.com",
        "bücher.example",
        "xn--bcher-kva.example",
        "例え.テスト",
        "EXAMPLE.com",
        "a" * 63 + ".com",
        "[127.0.0.1]",
    ]
) | st.text(max_size=8)
address = st.builds(lambda local, domain: f"{''.join(local)}@{domain}", _local, _domain) | st.sampled_from(
    [
        *(
            "o'b+x@example.com",
            "zoë@example.com",
            "李雷@例え.テスト",
            "ada@bücher.example",
            "x" * 64 + "@example.com",
        ),
        *("ada@" + "a." * 90 + "example", "ada@" + "ü" * 20 + ".example", "!#$%&*/=?^_`{|}~@example.com"),
    ]
)


def checked(message: Message) -> None:
    """By the standard library's parser."""
    head = message.data.partition(b"\r\n\r\n")[0]
    assert not any(control in head.replace(b"\r\n", b"") for control in (b"\r", b"\n", b"\0"))
    parsed = message_from_bytes(message.data, policy=default)
    if message.smtputf8:  # UTF-8 in a header is no defect then (RFC 6532)
        parsed = message_from_string(message.data.decode(), policy=default)
    names = Counter(name.lower() for name in parsed)
    assert set(names) <= OUR_HEADERS
    assert set(names.values()) == {1}
    for part in parsed.walk():
        assert not part.defects
    for name, value in parsed.items():
        assert all(isinstance(defect, NonASCIILocalPartDefect) for defect in value.defects), (name, value)
    assert len(parsed["To"].addresses) == len(parsed["From"].addresses) == 1
    assert parsed["From"].addresses[0].addr_spec == SENDER.address
    assert parsed["To"].addresses[0].addr_spec == message.recipient


def built(rendered: Rendered, **fields: Any) -> None:
    checked(build(rendered, email_id="3f1c7a52-1111-4222-8333-444455556666", sender=SENDER, date=DATE, **fields))


@pytest.mark.parametrize("word", KINDS)
def test_single_mails(word: str) -> None:
    taken = 0
    sample = KINDS[word].sample().model_dump(mode="json", exclude_none=True)
    in_headers = [
        name for name in ("name", "course_name", "subject", "from_name") if name in KINDS[word].model_fields
    ]

    @settings(max_examples=150, deadline=None)  # a busy machine is no fault
    @given(st.dictionaries(st.sampled_from(in_headers), text, max_size=3), st.none() | address, st.none() | address)
    def attempt(words: dict[str, str], to: str | None, reply_to: str | None) -> None:
        nonlocal taken
        given_addresses = {name: one for name, one in (("to", to), ("reply_to", reply_to)) if one is not None}
        try:
            email = parse({**sample, **words, **given_addresses})
        except InvalidEmail:
            return
        taken += 1
        built(RENDERER.render(email), to=email.to, reply_to=email.reply_to, from_name=email.from_name)

    attempt()
    assert taken > 10


def test_mails_of_batches() -> None:
    taken = 0
    subjects = st.sampled_from(["{{ a }}", "News: {{ a }}{{ b }}", "{{ a }} {{ name }}"]) | text.map(
        "{{{{ a }}}}{}".format
    )

    @settings(max_examples=400, deadline=None)
    @given(subjects, text, text, st.none() | text, st.none() | address, st.none() | text)
    def attempt(subject: str, a: str, b: str, name: str | None, reply_to: str | None, from_name: str | None) -> None:
        nonlocal taken
        shared = {"subject": subject, "text": "{{ a }} {{ b }}", "reply_to": reply_to, "from_name": from_name}
        try:
            mailing = Mailing.parse(shared)
            recipient = mailing.recipient({"to": "ada@example.com", "name": name or "Ada", "data": {"a": a, "b": b}})
            email = mailing.email(recipient)
        except InvalidEmail:
            return
        taken += 1
        rendered = RENDERER.prepare(mailing).render(recipient)
        built(rendered, to=recipient.to, reply_to=email.reply_to, from_name=email.from_name)

    attempt()
    assert taken > 10

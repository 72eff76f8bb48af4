"""MIME messages, read back with the standard library's parsers: what went in comes out, whatever it was."""

import re
from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.header import decode_header, make_header
from email.message import EmailMessage
from email.utils import parseaddr, parsedate_to_datetime
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mail.message import LINE, Message, Sender, ascii_domain, build
from mail.rendering import Rendered

DATE = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SENDER = Sender("no-reply@lms.example.com", "Example Academy")
ID = "3f1c7a52-1111-4222-8333-444455556666"


def made(
    subject: str = "Hello",
    html: str | None = "<p>Hello</p>\n",
    text: str = "Hello\n",
    *,
    to: str = "ada@example.com",
    sender: Sender = SENDER,
    email_id: str = ID,
    **more: Any,
) -> Message:
    message = build(Rendered(subject, html, text), email_id=email_id, to=to, sender=sender, date=DATE, **more)
    well_formed(message.data)
    return message


def well_formed(data: bytes) -> None:
    """RFC 5322: CRLF only, no line over 998 octets, each header once."""
    lines = data.split(b"\r\n")
    assert lines[-1] == b""
    assert max(len(line) for line in lines) <= 998
    assert not [line for line in lines if b"\r" in line or b"\n" in line]
    names = [line.partition(b":")[0].lower() for line in head(data) if not line.startswith((b" ", b"\t"))]
    assert len(names) == len(set(names))
    assert b"" not in names


def head(data: bytes) -> list[bytes]:
    return data.partition(b"\r\n\r\n")[0].split(b"\r\n")


def read(message: Message) -> EmailMessage:
    """As Python's modern parser has it, which must find nothing to complain about."""
    parsed = message_from_bytes(message.data, policy=policy.default)
    for part in parsed.walk():
        assert not part.defects
    for name, value in parsed.items():
        assert not value.defects, (name, value, value.defects)
    return parsed


def bodies(message: Message) -> list[str]:
    parsed = read(message)
    parts = list(parsed.iter_parts()) or [parsed]
    return [part.get_content().replace("\r\n", "\n") for part in parts]


def display_name(message: Message, header: str = "From") -> str:
    """By RFC 2047 section 6.2. (Python 3.11's modern parser puts spaces between encoded words of a phrase.)"""
    raw = message_from_bytes(message.data)[header]
    return str(make_header(decode_header(parseaddr(raw)[0])))


# Any text


encodable = st.text(st.characters(codec="utf-8"), max_size=250)
awkward = st.text(st.sampled_from("ab \"\\,;:<>@()[]=?_.'éß李م😀\t"), max_size=120)
one_line = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zl", "Zp"]), max_size=200) | awkward


def squeezed(text: str) -> str:
    """Header text as readers see it: line breaks, control characters and runs of spaces are one space."""
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text).split())


@settings(deadline=None)  # a busy machine is no fault
@given(one_line, one_line)
def test_any_header_text_comes_back(subject: str, name: str) -> None:
    message = made(subject, from_name=name)
    assert read(message)["Subject"] == squeezed(subject)
    assert display_name(message) == squeezed(name or SENDER.name)
    assert read(message)["From"].addresses[0].addr_spec == SENDER.address
    for line in head(message.data):
        # A quoted string is one word, and stays on one line.
        assert len(line) <= LINE or line.startswith(b'From: "') or (line.startswith(b"From: ") and b"=?" not in line)


def test_control_characters_are_spaces_in_a_header() -> None:
    message = made("a\0b\x1bc\x7fd\x9fe", from_name="x\x08y\tz")
    assert read(message)["Subject"] == "a b c d e"
    assert read(message)["From"].addresses[0].display_name == "x y z"
    assert not re.search(rb"[\0-\x09\x0b\x0c\x0e-\x1f\x7f-\x9f]", b"".join(head(message.data)))


@settings(deadline=None)
@given(encodable, encodable, encodable)
def test_header_injection_is_impossible(subject: str, name: str, other: str) -> None:
    """Whatever the fields let through: values with line breaks stay values."""
    attack = f"{other}\r\nBcc: evil@example.com\r\n\r\nbody"
    message = made(
        subject + attack,
        to=f"ada@example.com{attack}",
        from_name=name + attack,
        reply_to=f"desk@example.com{attack}",
        email_id=ID + attack,
        sender=Sender("no-reply@lms.example.com", name + attack, f"all@example.com{attack}", "X-Key"),
    )
    names = [line.partition(b":")[0] for line in head(message.data) if not line.startswith(b" ")]
    assert names == [
        b"Date",
        b"From",
        b"To",
        b"Message-ID",
        b"Subject",
        b"Auto-Submitted",
        b"X-Auto-Response-Suppress",
        b"MIME-Version",
        b"Reply-To",
        b"X-Original-To",
        b"X-Key",
        b"Content-Type",
    ]


@settings(deadline=None)
@given(encodable, encodable, st.booleans())
def test_any_body_comes_back(text: str, html: str, with_html: bool) -> None:
    message = made(text=text, html=html if with_html else None)
    found = bodies(message)
    for body, given_ in zip(found, (text, html), strict=False):
        expected = given_.replace("\r\n", "\n").replace("\r", "\n")
        assert body == expected + ("" if expected.endswith("\n") else "\n")
    assert len(found) == 1 + with_html
    # Seven bits all through, for servers without 8BITMIME.
    assert message.data.isascii()


@pytest.mark.parametrize(
    "text",
    [
        "x" * 5000,
        "é" * 3000,
        "x" * 76 + "\n" + "y" * 77 + "\n",
        ".\n..\n.hidden\n",
        "From the start\n>From\n",
        "trailing space \nand tab\t\n",
        "= =3D =\n",
        "\n\n\n",
        "a\rb\r\nc\nd",
        "\0\x01\x7f",
        "https://lms.example.com/reset?token=" + "a=b&" * 300,
    ],
    ids=lambda text: repr(text[:20]),
)
def test_awkward_bodies(text: str) -> None:
    [plain, html] = bodies(made(text=text, html=text))
    expected = text.replace("\r\n", "\n").replace("\r", "\n")
    assert plain == html == expected + ("" if expected.endswith("\n") else "\n")


# Names


NAMES = [
    "Ada",
    "Zoë O'Brien",
    "李雷",
    "مريم",
    "Ada 😀",
    'Ada "the Countess" Lovelace',
    "back\\slash",
    "Lovelace, Ada",
    "Ada (Lady)",
    "a@b.example",
    "Dr. Ada",
    "=?utf-8?q?x?=",
    "Ada =?utf-8?b?eA==?= L",
    "<ada>",
    ":;,.",
    "x" * 60,
    "Anna-Lena Müller-Lüdenscheidt",
]


@pytest.mark.parametrize("name", NAMES)
def test_names(name: str) -> None:
    message = made(f"Hello {name}", from_name=name, reply_to="desk@example.com")
    parsed = read(message)
    [address] = parsed["From"].addresses
    assert (address.display_name, address.addr_spec) == (name, SENDER.address)
    assert display_name(message) == name
    assert parsed["Subject"] == f"Hello {name}"
    assert parsed["Reply-To"] == "desk@example.com"
    for line in head(message.data):
        assert len(line) <= LINE


@pytest.mark.parametrize("name", ["Abteilung für Fernunterricht " * 6, "学习管理系统" * 15, "😀" * 40, "word " * 39])
def test_long_names_and_subjects(name: str) -> None:
    name = name.strip()
    message = made(name, from_name=name)
    assert read(message)["Subject"] == name
    assert display_name(message) == name
    for line in head(message.data):
        assert len(line) <= LINE or name.isascii()
        for word in re.findall(rb"=\?[^ ]+\?=", line):
            assert len(word) <= 75


def test_a_subject_is_readable_without_need_to_encode() -> None:
    assert b"Subject: Reset your Example Academy password\r\n" in made("Reset your Example Academy password").data


# Addresses


@pytest.mark.parametrize(
    ("address", "written", "smtputf8"),
    [
        ("ada@example.com", "ada@example.com", False),
        ("ada@exämple.com", "ada@xn--exmple-cua.com", False),
        ("ada@例え.テスト", "ada@xn--r8jz45g.xn--zckzah", False),
        ("ada@faß.de", "ada@xn--fa-hia.de", False),
        ("zoë@example.com", "zoë@example.com", True),
        ("李雷@例え.テスト", "李雷@xn--r8jz45g.xn--zckzah", True),
        ("x" * 64 + "@example.com", "x" * 64 + "@example.com", False),
        ("o'brien+tag!#$%&*/=?^_`{|}~-@example.com", "o'brien+tag!#$%&*/=?^_`{|}~-@example.com", False),
    ],
)
def test_recipient(address: str, written: str, smtputf8: bool) -> None:
    message = made(to=address)
    assert (message.recipient, message.smtputf8) == (written, smtputf8)
    assert f"\r\nTo: {written}\r\n" in message.data.decode()
    if not smtputf8:
        [found] = read(message)["To"].addresses
        assert (found.addr_spec, found.display_name) == (written, "")


@pytest.mark.parametrize("place", ["sender", "reply_to", "redirected"])
def test_smtputf8_for_any_address_in_the_mail(place: str) -> None:
    message = {
        "sender": lambda: made(sender=Sender("zoë@lms.example.com")),
        "reply_to": lambda: made(reply_to="zoë@example.com"),
        "redirected": lambda: made(to="zoë@example.com", sender=Sender("a@lms.example.com", redirect_to="b@b.co")),
    }[place]()
    assert message.smtputf8
    assert "zoë@" in message.data.decode()


def test_the_domain_of_the_sender_is_ours() -> None:
    message = made(sender=Sender("no-reply@exämple.com", "Ä"))
    assert message.sender == "no-reply@xn--exmple-cua.com"
    assert message.message_id == f"<{ID}@xn--exmple-cua.com>"


@given(st.emails())
def test_an_ascii_address_is_left_alone(address: str) -> None:
    assume(address.isascii())
    assert ascii_domain(address) == address


# Headers


def test_headers() -> None:
    parsed = read(made())
    assert dict(parsed.items()) == {
        "Date": "Fri, 02 Jan 2026 03:04:05 +0000",
        "From": "Example Academy <no-reply@lms.example.com>",
        "To": "ada@example.com",
        "Message-ID": f"<{ID}@lms.example.com>",
        "Subject": "Hello",
        "Auto-Submitted": "auto-generated",
        "X-Auto-Response-Suppress": "All",
        "MIME-Version": "1.0",
        "Content-Type": f'multipart/alternative; boundary="=_{ID}"',
    }
    assert parsedate_to_datetime(parsed["Date"]) == DATE
    text, html = parsed.iter_parts()
    assert [part.get_content_type() for part in (text, html)] == ["text/plain", "text/html"]
    for part in (text, html):
        assert part.get_content_charset() == "utf-8"
        assert part["Content-Transfer-Encoding"] == "quoted-printable"


def test_without_html_it_is_plain_text() -> None:
    parsed = read(made(html=None))
    assert parsed.get_content_type() == "text/plain"
    assert not parsed.is_multipart()


def test_the_same_id_makes_the_same_message() -> None:
    assert made() == made()
    assert made().message_id != made(email_id="another").message_id


def test_from_name_replaces_the_name_and_never_the_address() -> None:
    message = made(from_name="Registry", reply_to="desk@example.com")
    parsed = read(message)
    assert parsed["From"] == "Registry <no-reply@lms.example.com>"
    assert parsed["Reply-To"] == "desk@example.com"
    assert message.sender == SENDER.address


def test_a_sender_without_a_name() -> None:
    assert read(made(sender=Sender("no-reply@lms.example.com")))["From"] == "no-reply@lms.example.com"


def test_redirect() -> None:
    sender = Sender("no-reply@lms.example.com", redirect_to="staging@example.com")
    message = made(to="ada@example.com", sender=sender)
    assert message.recipient == "staging@example.com"
    parsed = read(message)
    assert parsed["To"] == "staging@example.com"
    assert parsed["X-Original-To"] == "ada@example.com"
    assert "X-Original-To" not in read(made())


def test_idempotency_header() -> None:
    sender = Sender("no-reply@lms.example.com", idempotency_header="Resend-Idempotency-Key")
    assert read(made(sender=sender))["Resend-Idempotency-Key"] == ID
    assert "Resend-Idempotency-Key" not in read(made())


def test_a_body_cannot_end_its_part() -> None:
    text = f"--=_{ID}--\n\n--=_{ID}\nContent-Type: text/html\n\n<p>evil</p>\n"
    assert bodies(made(text=text, html=text)) == [text, text]


def test_no_secret_in_the_repr() -> None:
    assert "s3cr3t" not in repr(made(text="https://lms.example.com/?token=s3cr3t"))

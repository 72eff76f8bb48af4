"""Fields and kinds: what is taken, what is refused, what is shown."""

import json
from typing import Any

import pytest
from email_validator import validate_email
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from mail.errors import InvalidEmail
from mail.fields import Address, Body, HeaderText, Link, Name, host_of, is_plain, is_visible, mailbox_of, mask_address
from mail.kinds import (
    KINDS,
    Category,
    CertificateEmail,
    CourseEnrollmentEmail,
    CustomEmail,
    EmailVerificationEmail,
    Lane,
    PasswordResetEmail,
    WelcomeEmail,
    new,
    parse,
)

NAME = TypeAdapter(Name)
ADDRESS = TypeAdapter(Address)
LINK = TypeAdapter(Link)
BODY = TypeAdapter(Body)
HEADER = TypeAdapter(HeaderText)
TOKEN = "s3cr3t-t0ken"


def refused(adapter: TypeAdapter[Any], value: str) -> str:
    with pytest.raises(ValidationError) as caught:
        adapter.validate_python(value)
    [fault] = caught.value.errors()
    return str(fault["msg"])


class TestName:
    @pytest.mark.parametrize(
        "name",
        [
            "A",
            "x" * 100,
            "Zoë O'Brien",
            "李雷",
            "مريم",
            "नेहा",
            "Ada 👩‍🎓",
            "Dr. med. Ada Lovelace",
            "J.R.R. Tolkien",
            "Müller & Söhne GmbH",
            "ASP.NET in Practice",
            "C# / .NET: an introduction",
            "Node.js for beginners",
            "Physics 1.01",
            "He/him",
            "{{ name }}",
            "<b>Ada</b>",
            "=?utf-8?q?x?=",
        ],
    )
    def test_taken_as_it_is(self, name: str) -> None:
        assert NAME.validate_python(name) == name

    def test_normalised(self) -> None:
        assert NAME.validate_python("  Zoe\u0308 ") == "Zoë"

    @pytest.mark.parametrize("name", ["https://x.example", "www.x.example", "go to EVIL.com", "x.xyz/y", "HTTP://X"])
    def test_spam_through_a_name(self, name: str) -> None:
        assert "web address" in refused(NAME, name)

    @pytest.mark.parametrize("name", ["", " ", "\u00a0", "\u200b", "\u2060\ufeff"])
    def test_blank(self, name: str) -> None:
        assert "blank" in refused(NAME, name)

    @pytest.mark.parametrize(
        "character", ["\n", "\r", "\0", "\t", "\x1b", "\x85", "\u2028", "\u202e", "\u2066", "\ud800"]
    )
    def test_characters_that_do_harm(self, character: str) -> None:
        for adapter in (NAME, HEADER):
            refused(adapter, f"Ada{character}Lovelace")


_LABEL = st.from_regex(r"[a-z0-9-]{1,64}", fullmatch=True)
_LOCAL = st.from_regex(r"[A-Za-z0-9_+.-]{1,66}", fullmatch=True)
_TLD = st.one_of(st.sampled_from(["com", "de", "test", "local", "example", "invalid", "xn--p1ai", "c0m"]), _LABEL)


@given(_LOCAL, st.lists(_LABEL, min_size=0, max_size=5), _TLD)
@settings(max_examples=500, deadline=None)
def test_a_look_finds_an_address_plain_only_where_the_parser_does(local: str, labels: list[str], tld: str) -> None:
    address = f"{local}@{'.'.join([*labels, tld])}"
    if is_plain(address):
        found = validate_email(address, strict=True, check_deliverability=False, test_environment=True)
        assert found.normalized == address


def test_most_addresses_are_plain() -> None:
    for address in ("ada@example.com", "Ada.Lovelace+news@mail.uni-heidelberg.de", "a_b-c.1@x.co.uk"):
        assert is_plain(address)
    for address in ("ada@example", "ada@EXAMPLE.com", "ada@host.test", "a..b@example.com", "ä@example.com"):
        assert not is_plain(address)


class TestAddress:
    @pytest.mark.parametrize(
        ("address", "normalised"),
        [
            ("ada@example.com", "ada@example.com"),
            ("Ada.Lovelace+lms@EXAMPLE.Com", "Ada.Lovelace+lms@example.com"),
            ("x" * 64 + "@example.com", "x" * 64 + "@example.com"),
            ("o'brien@example.co.uk", "o'brien@example.co.uk"),
            ("ada@exämple.com", "ada@exämple.com"),
            ("ada@xn--exmple-cua.com", "ada@exämple.com"),
            ("zoë@example.com", "zoë@example.com"),
            ("李雷@例え.テスト", "李雷@例え.テスト"),
            ("ada@lms.test", "ada@lms.test"),
        ],
    )
    def test_taken(self, address: str, normalised: str) -> None:
        assert ADDRESS.validate_python(address) == normalised

    @pytest.mark.parametrize("address", ["x" * 65 + "@example.com", "ada", "ada@localhost", "Ada <ada@example.com>"])
    def test_refused_without_an_echo(self, address: str) -> None:
        assert refused(ADDRESS, address) == "Value error, must be one email address, such as ada@example.com"

    @pytest.mark.parametrize(
        ("address", "masked"),
        [("ada@example.com", "a***@example.com"), ("李雷@例え.テスト", "李***@例え.テスト"), ("@x", "***@x")],
    )
    def test_masked(self, address: str, masked: str) -> None:
        assert mask_address(address) == masked

    @pytest.mark.parametrize(
        "spellings",
        [
            ["ada@example.com", "ADA@Example.COM", "ada+1@example.com", "ada+a+b@example.com", "ａda@example.com"],
            ["ada@gmail.com", "a.d.a@gmail.com", "A.d.a+x@googlemail.com", "ada@GMAIL.com"],
            ["ada@bücher.example", "ada@xn--bcher-kva.example", "ada@BÜCHER.example", "ada@bu\u0308cher.example"],
            ["zoë@example.com", "zoe\u0308@example.com", "ZOË@example.com"],
            ["a.da@example.com"],
            ["+ada@example.com"],
        ],
    )
    def test_spellings_of_one_mailbox(self, spellings: list[str]) -> None:
        assert {mailbox_of(ADDRESS.validate_python(address)) for address in spellings} == {mailbox_of(spellings[0])}

    def test_other_mailboxes(self) -> None:
        others = ["ada@example.com", "a.da@example.com", "ada@example.org", "+ada@example.com", "ada@gmail.com"]
        assert len({mailbox_of(address) for address in others}) == len(others)


class TestLink:
    @pytest.mark.parametrize(
        "link",
        [
            "https://lms.example.com",
            "http://lms.example.com:8080/a/b?c=d&e=f#g",
            "HTTPS://LMS.EXAMPLE.COM/",
            "https://lms.example.com/?next=https%3A%2F%2Flms.example.com%2F",
            "https://lms.example.com/a@b",
            "https://127.0.0.1/x",
            "https://[::1]:8000/x",
            "https://lms.example.com/" + "x" * 2024,
        ],
    )
    def test_kept_to_the_letter(self, link: str) -> None:
        """A signed link must not change."""
        assert LINK.validate_python(link) == link

    @pytest.mark.parametrize(
        ("link", "as_browsers_read_it"),
        [
            ("https://exämple.com/ü", "https://xn--exmple-cua.com/%C3%BC"),
            ("https://lms.example.com\\@evil.example", "https://lms.example.com/@evil.example"),
            ("https://evil.example\\@lms.example.com", "https://evil.example/@lms.example.com"),
            ("https:lms.example.com", "https://lms.example.com/"),
            ('https://lms.example.com/"onclick="', "https://lms.example.com/%22onclick=%22"),
        ],
    )
    def test_made_plain(self, link: str, as_browsers_read_it: str) -> None:
        assert LINK.validate_python(link) == as_browsers_read_it

    @pytest.mark.parametrize(
        "link", ["javascript:alert(1)", "ftp://x.example", "data:,x", "x.example", "//x.example", ""]
    )
    def test_refused(self, link: str) -> None:
        refused(LINK, link)

    def test_user_names_mislead(self) -> None:
        assert "user name" in refused(LINK, "https://lms.example.com@evil.example/")

    @pytest.mark.parametrize(
        ("link", "host"),
        [
            ("https://LMS.example.com:443/x", "lms.example.com"),
            ("ftp://lms.example.com", "lms.example.com"),
            ("https://exämple.com", "xn--exmple-cua.com"),
            ("https://lms.example.com\u200b.evil.example", "lms.example.com.evil.example"),
            ("https://evil.example\\@lms.example.com", None),
            ("https://lms.example.com@evil.example", None),
            ("https://[lms", None),
            ("mailto:ada@example.com", None),
            ("lms.example.com", None),
        ],
    )
    def test_host_of(self, link: str, host: str | None) -> None:
        assert host_of(link) == host


class TestBody:
    @pytest.mark.parametrize(
        "body", ["x", " x ", "one\r\ntwo\n\tthree", "مرحبا\u200f", "\u202babc\u202c", "<p></p>", "👩‍🎓"]
    )
    def test_taken_as_it_is(self, body: str) -> None:
        assert BODY.validate_python(body) == body

    @pytest.mark.parametrize("body", ["", " ", "\n\r\t", "\u00a0\u3000", "\u200b\u200e"])
    def test_blank(self, body: str) -> None:
        refused(BODY, body)

    @pytest.mark.parametrize("character", ["\0", "\x0b", "\x1b", "\x7f", "\x85"])
    def test_control_characters(self, character: str) -> None:
        assert "control" in refused(BODY, f"a{character}b")

    def test_visible(self) -> None:
        assert is_visible(" x ")
        assert is_visible("\u0301")
        assert not is_visible(" \n\t\u200b\u202e\u2028\xad")


# Kinds


def test_lanes_and_lives() -> None:
    table = {
        kind: (kind.lane, kind.category, kind.valid_for is not None, kind.supersedes, kind.limited, kind.scope)
        for kind in KINDS.values()
    }
    critical = (Lane.CRITICAL, Category.TRANSACTIONAL, True, True, True, "send")
    course = (Lane.STANDARD, Category.COURSE, False, False, False, "send")
    assert table == {
        WelcomeEmail: (Lane.STANDARD, Category.TRANSACTIONAL, False, False, False, "send"),
        PasswordResetEmail: critical,
        EmailVerificationEmail: critical,
        CourseEnrollmentEmail: course,
        CertificateEmail: course,
        CustomEmail: (Lane.STANDARD, Category.TRANSACTIONAL, False, False, False, "custom"),
    }
    assert list(KINDS) == [
        "welcome",
        "password_reset",
        "email_verification",
        "course_enrollment",
        "certificate",
        "custom",
    ]


def test_public_names() -> None:
    assert [kind.noun() for kind in KINDS.values()] == [
        "welcome_email",
        "password_reset_email",
        "email_verification",
        "course_enrollment_email",
        "certificate_email",
        "custom_email",
    ]


def test_frozen() -> None:
    with pytest.raises(ValidationError):
        WelcomeEmail.sample().name = "Bob"


@pytest.mark.parametrize(
    ("email", "field"),
    [
        (
            PasswordResetEmail(to="ada@example.com", name="Ada", reset_url=f"https://lms.example.com/?token={TOKEN}"),
            "reset_url",
        ),
        (
            EmailVerificationEmail(
                to="ada@example.com", name="Ada", verification_url=f"https://lms.example.com/{TOKEN}/verify"
            ),
            "verification_url",
        ),
    ],
)
class TestSecrets:
    def test_not_shown(self, email: Any, field: str) -> None:
        assert email.secret_fields() == (field,)
        assert email.redacted() == {"kind": email.kind, "to": "a***@example.com", "name": "Ada", field: "***"}
        for shown in (repr(email), str(email), f"{email}", f"{[email]}", json.dumps(email.redacted())):
            assert TOKEN not in shown
            assert "ada@" not in shown

    @pytest.mark.parametrize("words", ["554 spam: {}", "550 <{}>, {}", "{}"])
    def test_scrubbed_from_foreign_words(self, email: Any, field: str, words: str) -> None:
        for quoted in (getattr(email, field), TOKEN):
            scrubbed = email.scrub(words.format(quoted, quoted))
            assert TOKEN not in scrubbed
            assert "***" in scrubbed
        assert email.scrub("550 no such user") == "550 no such user"


def test_a_validation_error_does_not_quote_its_input() -> None:
    with pytest.raises(ValidationError) as caught:
        PasswordResetEmail(to="ada@example.com", name="Ada", reset_url=f"ftp://{TOKEN}")
    assert TOKEN not in str(caught.value)


class TestErrors:
    @pytest.mark.parametrize(
        ("data", "field", "message"),
        [
            ({}, "kind", "must be one of welcome"),
            ({"kind": "spam"}, "kind", "must be one of welcome"),
            ({"kind": ["welcome"]}, "kind", "must be one of welcome"),
            ({"kind": "welcome", "to": "ada@example.com"}, "name", "required"),
            (
                {"kind": "welcome", "to": "ada@example.com", "name": "Ada", "cc": "x"},
                "cc",
                "unknown field; remove it",
            ),
            ({"kind": "welcome", "to": "ada", "name": "Ada"}, "to", "must be one email address"),
            ({"kind": "welcome", "to": "ada@example.com", "name": 1}, "name", "string"),
            ({"kind": "custom", "to": "ada@example.com", "subject": "x"}, "html", "html or text is required"),
        ],
    )
    def test_parse(self, data: dict[str, Any], field: str, message: str) -> None:
        with pytest.raises(InvalidEmail) as caught:
            parse(data)
        [error] = caught.value.errors
        assert error.field == field
        assert message in error.message
        assert str(caught.value) == f"{error.field}: {error.message}"

    def test_new_names_every_field(self) -> None:
        with pytest.raises(InvalidEmail) as caught:
            new(CourseEnrollmentEmail, to="x", name="", course_name="Maths", course_url="ftp://x")
        assert [error.field for error in caught.value.errors] == ["to", "name", "course_url"]
        assert isinstance(caught.value, ValueError)


@settings(deadline=None)  # a busy machine is no fault
@given(
    st.dictionaries(st.sampled_from(["kind", "to", "name", "subject", "html", "x"]), st.text(max_size=9) | st.none())
)
def test_parse_knows_one_error_only(data: dict[str, Any]) -> None:
    with pytest.raises(InvalidEmail) as caught:
        parse({**data, "to": "nobody"})
    assert caught.value.errors
    assert all(one.field and one.message for one in caught.value.errors)

"""Mailings: what recipients share, what each brings, and what of it is refused."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mail.content import Content
from mail.errors import InvalidEmail
from mail.kinds import KINDS, CertificateEmail, CustomEmail, WelcomeEmail
from mail.mailing import Mailing, Recipient
from mail.placeholders import Template

ADA = {"to": "ada@example.com", "name": "Ada", "data": {"grade": "A"}}
SECRET = [word for word, kind in KINDS.items() if kind.secret_fields()]


def mailing(subject: str = "News", html: str | None = None, text: str | None = None, **more: Any) -> Mailing:
    if html is None and text is None:
        text = "Hello"
    return Mailing.parse({"subject": subject, "html": html, "text": text, **more})


def to(**data: Any) -> dict[str, Any]:
    return {"to": "ada@example.com", "data": data}


def custom(mailing: Mailing, raw: object) -> CustomEmail:
    email = mailing.email(mailing.recipient(raw))
    assert isinstance(email, CustomEmail)
    return email


def faults(call: Any, *arguments: Any) -> dict[str, str]:
    with pytest.raises(InvalidEmail) as caught:
        call(*arguments)
    return {error.field: error.message for error in caught.value.errors}


# Placeholders


def test_every_field_is_filled() -> None:
    email = custom(mailing("For {{ name }}", "<p>{{name}}: {{ grade }}</p>", "{{  grade}} to {{ to }}"), ADA)
    assert email.subject == "For Ada"
    assert email.html == "<p>Ada: A</p>"
    assert email.text == "A to ada@example.com"


def test_a_value_is_filled_in_once() -> None:
    email = custom(
        mailing("{{ a }}{{ b }}", "<p>{{ a }}{{ b }}</p>", "{{ a }}{{ b }}"), to(a="{{ b }}", b="{% if x %}{{ 7*7 }}")
    )
    assert email.subject == email.text == "{{ b }}{% if x %}{{ 7*7 }}"
    assert email.html == "<p>{{ b }}{% if x %}{{ 7*7 }}</p>"


def test_values_are_escaped_in_html_only() -> None:
    value = """<b title="x">'&amp;\xa0</b>"""
    email = custom(mailing("{{ x }}", '<p title="{{ x }}">{{ x }}</p>', "{{ x }}"), to(x=value))
    assert email.subject == email.text == value
    assert email.html == (
        '<p title="&lt;b title=&quot;x&quot;&gt;\'&amp;amp;&nbsp;&lt;/b&gt;">'
        '&lt;b title="x"&gt;\'&amp;amp;&nbsp;&lt;/b&gt;</p>'
    )


@pytest.mark.parametrize("text", ["{ name }", "{{ name", "name }}", "}} {{", "{", "{% name %}", "{{ name }"])
def test_other_braces_stay(text: str) -> None:
    assert custom(mailing(text, None, text), "ada@example.com").text == text


@pytest.mark.parametrize(
    "text",
    [
        "{{ user.name }}",
        "{{}}",
        "{{ }}",
        "{{ <b>x</b> }}",
        "{{ a b }}",
        "{{{ name }}}",
        "{{ a|upper }}",
        "{{&nbsp;a}}",
    ],
)
def test_braces_around_no_name(text: str) -> None:
    for field in ("subject", "html", "text"):
        found = faults(mailing, *(text if name == field else "x" for name in ("subject", "html", "text")))
        assert found == {
            field: "between {{ and }} there must be one name of letters, digits and _, such as {{ name }}"
        }


def test_half_a_megabyte_of_braces_is_looked_through_in_no_time() -> None:
    assert custom(mailing(text="{{" * 249_000), "ada@example.com").text == "{{" * 249_000
    assert set(faults(mailing, "x", None, "{{ a }}" * 1_001)) == {"text"}


def test_names_in_other_scripts() -> None:
    assert custom(mailing(text="{{ Größe_1 }} {{ имя }}"), to(Größe_1="L", имя="Анна")).text == "L Анна"


# HTML


@pytest.mark.parametrize(
    ("html", "filled"),
    [
        ("<a title={{ x }}>y</a>", '<a title="A B" style="color:inherit">y</a>'),
        ("<p>y<!-- {{ x }} --></p>", "<p>y</p>"),
        ("<p style='color:{{ x }}' onclick='{{ x }}'>y</p>", "<p>y</p>"),
        ("<script>{{ x }}</script>y", "y"),
        ("<{{ x }}>y</{{ x }}>", "y"),
        ("<p {{ x }}>y</p>", "<p>y</p>"),
        ("<table>{{ x }}</table>", "A B<table></table>"),
        ("&{{ x }};y", "&amp;A B;y"),
        ("<p>{{ x }}", "<p>A B</p>"),
        ('<a href="https://lms.example.com/{{ x }}?q={{x}}">y</a>', None),
        ('<a href="{{ x }}">y</a>', None),
        ("<a href={{ x }}>y</a>", None),
        ('<a href="{{ x }}{{ x }}:80%20">y</a>', None),
        ('<a href="https://{{ x }}.example.com/">y</a>', None),
        ('<a href="mailto:{{ x }}">y</a>', None),
        ('<img src="{{ x }}" alt="{{ x }}">', None),
        ('<!-- <a href="/{{ x }}"> --><p>y</p>', "<p>y</p>"),
    ],
)
def test_where_placeholders_stand(html: str, filled: str | None) -> None:
    found = custom(mailing(html=html, text="x"), to(x="A B")).html or ""
    if filled is None:
        assert "A B" in found
        assert found.count("A B") == html.count("{{")
    else:
        assert found == filled


@pytest.mark.parametrize(
    "html",
    [
        '<a href="javascript:{{ x }}">y</a>',
        '<a href="/courses/{{ x }}">y</a>',
        "<A HREF = '?id={{ x }}'>y</A>",
        "<a class=b href=#{{ x }}>y</a>",
        '<a href="//{{ x }}">y</a>',
        '<img alt="" src="mailto:{{ x }}">',
        '<img alt="" src="data:image/png;base64,{{ x }}">',
    ],
)
def test_a_link_that_would_be_lost(html: str) -> None:
    found = faults(mailing, "News", f"<p>y</p>{html}")
    assert set(found) == {"html"}
    assert found["html"].startswith("the link or picture with {{ x }} has no address that a mail may have")


def test_html_that_never_nests_the_same() -> None:
    email = custom(mailing(html="<p><button><p>{{ x }}</p></button></p>"), to(x="1"))
    assert email.html == "<p></p><p>1</p><p></p>"


def test_the_text_is_made_of_the_html_once() -> None:
    html = '<h1>{{ x }}</h1><p><a href="{{ url }}">{{ url }}</a>, <a href="{{ url }}">look</a></p>'
    email = custom(mailing(html=html), to(x="<b>1 &amp; 2</b>", url="https://lms.example.com/?a=1&b=2"))
    link = "https://lms.example.com/?a=1&b=2"
    assert email.text == f"<b>1 &amp; 2</b>\n\n{link}, look ({link})"
    rows = "<table><tr><th>Course</th><th>Grade</th></tr><tr><td>{{ a }}</td><td>{{ b }}</td></tr></table>"
    assert custom(mailing(html=rows), to(a="x" * 100, b="A")).text == f"Course    Grade\n{'x' * 100}  A"


# Data


@pytest.mark.parametrize(
    ("value", "text"), [("", ""), (7, "7"), (-1.5, "-1.5"), ("a\r\nb\rc", "a\nb\nc"), ("\ufeffx", "x")]
)
def test_values(value: object, text: str) -> None:
    assert mailing().recipient(to(x=value)).data == {"x": text}


@pytest.mark.parametrize(
    "value",
    [True, None, [], {}, ["x"], float("nan"), float("inf"), 10**400, "x" * 2_049, "\x00", "\x1b", "\x85", "\ud800"],
)
def test_values_that_are_refused(value: object) -> None:
    assert set(faults(mailing().recipient, to(x=value, y="1"))) == {"data.x"}


@pytest.mark.parametrize("key", ["", "a b", "a.b", "<b>", "x" * 65, 1])
def test_keys_that_are_refused(key: Any) -> None:
    assert set(faults(mailing().recipient, {"to": "ada@example.com", "data": {key: "x"}})) == {"data"}


def test_keys_that_stand_elsewhere() -> None:
    found = faults(mailing().recipient, to(to="x@example.com", name="x"))
    assert found == {"to": "give to beside data, not in it", "name": "give name beside data, not in it"}


def test_too_many_keys() -> None:
    mailing().recipient(to(**{f"k{n}": "" for n in range(50)}))
    assert set(faults(mailing().recipient, to(**{f"k{n}": "" for n in range(51)}))) == {"data"}


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        (None, "body"),
        (7, "body"),
        (["ada@example.com"], "body"),
        ({}, "to"),
        ({"to": 7}, "to"),
        ("Ada <ada@example.com>", "to"),
        ({"to": "ada@example.com", "name": 7}, "name"),
        ({"to": "ada@example.com", "name": "www.evil.example"}, "name"),
        ({"to": "ada@example.com", "name": "a\nb"}, "name"),
        ({"to": "ada@example.com", "data": ["x"]}, "data"),
        ({"to": "ada@example.com", "cc": "x"}, "cc"),
    ],
)
def test_recipients_that_are_refused(raw: object, field: str) -> None:
    assert set(faults(mailing().recipient, raw)) == {field}


def test_every_fault_at_once_and_none_of_the_input() -> None:
    raw = {"to": "s3cret", "name": "s3cret\n", "data": {"a": "s3cret\x00", "b": None}}
    with pytest.raises(InvalidEmail) as caught:
        mailing().recipient(raw)
    assert {error.field for error in caught.value.errors} == {"to", "name", "data.a", "data.b"}
    assert "s3cret" not in str(caught.value)


def test_a_placeholder_without_a_value() -> None:
    one = mailing("{{ name }}", "<p title='{{ a }}'>{{ b }}</p>", "{{ a }}")
    assert faults(one.recipient, to(c="")) == {
        "data.a": "required: {{ a }} is in html and text",
        "data.b": "required: {{ b }} is in html",
        "name": "required: {{ name }} is in subject",
    }
    assert faults(one.email, Recipient("ada@example.com", "Ada", {"a": "1"})).keys() == {"data.b"}


@pytest.mark.parametrize("value", ["a\nb", "a\r\nb", "\t", "\u2028", "\u202e"])
def test_a_value_that_breaks_the_subject(value: str) -> None:
    found = faults(mailing("{{ x }} {{ y }}").recipient, to(x=value, y="1"))
    assert set(found) == {"data.x"}
    assert found["data.x"].endswith("the subject uses it")
    mailing(text="{{ x }}!").recipient(to(x=value))


@pytest.mark.parametrize("value", ["", " ", "x" * 201])
def test_a_subject_that_is_wrong_when_filled(value: str) -> None:
    assert set(faults(mailing("{{ x }}").recipient, to(x=value))) == {"subject"}


def test_the_subject_is_normalised_when_filled() -> None:
    assert custom(mailing("e{{ x }}"), to(x="\u0301 ")).subject == "\u00e9"


def test_a_text_that_is_blank_when_filled() -> None:
    assert set(faults(mailing(text="{{ x }}").recipient, to(x=" "))) == {"text"}
    email = custom(mailing(html='<p>{{ x }}</p><img src="https://x.example/x" alt="">'), to(x=""))
    assert email.text is None


@pytest.mark.parametrize("field", ["html", "text"])
def test_bodies_that_are_too_long_when_filled(field: str) -> None:
    one = mailing(**{field: "{{ x }}" * 250})
    assert len(str(getattr(custom(one, to(x="x" * 2_000)), field))) == 500_000
    assert set(faults(one.recipient, to(x="x" * 2_001))) == {field}


def test_html_that_is_too_long_when_sanitised() -> None:
    assert faults(mailing, "x", "<hr>" * 10_000) == {"html": "must have at most 500,000 characters when sanitised"}


# Kinds


def test_a_kind_with_shared_fields() -> None:
    one = Mailing.parse(
        {"kind": "certificate", "course_name": "Maths", "certificate_url": "https://x.example", "name": None}
    )
    recipient = one.recipient({"to": "Ada@EXAMPLE.com", "name": " Ada ", "data": {"course_name": "Algebra"}})
    assert recipient == Recipient("Ada@example.com", "Ada", {"course_name": "Algebra"})
    assert one.email(recipient) == CertificateEmail(
        to="Ada@example.com", name="Ada", course_name="Algebra", certificate_url="https://x.example"
    )


def test_a_name_for_all() -> None:
    one = Mailing.parse({"kind": "welcome", "name": "learner", "from_name": "Registry"})
    assert one.email(one.recipient("ada@example.com")) == WelcomeEmail(
        to="ada@example.com", name="learner", from_name="Registry"
    )


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        (
            "ada@example.com",
            {
                "name": "required, here or for all recipients",
                "data.course_url": "required, here or for all recipients",
            },
        ),
        (
            {"to": "x", "name": "www.evil.example", "data": {"course_url": "javascript:x"}},
            {
                "to": "must be one email address, such as ada@example.com",
                "name": "must not contain a web address",
                "data.course_url": "must be a web address that begins with https:// or http://",
            },
        ),
        (
            to(grade="A", reply_to="x@example.com"),
            {
                "data.grade": "unknown; remove it: course_enrollment has course_name, course_url",
                "data.reply_to": "unknown; remove it: course_enrollment has course_name, course_url",
            },
        ),
    ],
)
def test_recipients_of_a_kind_that_are_refused(raw: object, found: Mapping[str, str]) -> None:
    one = Mailing.parse({"kind": "course_enrollment", "course_name": "Maths"})
    assert faults(one.recipient, raw) == found


@pytest.mark.parametrize(
    ("data", "fields"),
    [
        ({}, {"subject", "html"}),
        ({"subject": "x"}, {"html"}),
        ({"kind": "custom", "subject": "", "text": "x"}, {"subject"}),
        ({"subject": "x", "text": "x", "cc": "x", "reply_to": "x"}, {"cc", "reply_to"}),
        ({"subject": "x", "text": "x", "to": "ada@example.com"}, {"to"}),
        ({"kind": "newsletter"}, {"kind"}),
        ({"kind": ["welcome"]}, {"kind"}),
        ({"kind": "welcome", "course_name": "x", "name": "www.evil.example"}, {"course_name", "name"}),
        *(({"kind": word}, {"kind"}) for word in SECRET),
    ],
)
def test_shared_fields_that_are_refused(data: Mapping[str, Any], fields: set[str]) -> None:
    found = faults(Mailing.parse, data)
    assert set(found) <= fields
    assert found


def test_a_kind_with_a_secret_says_why() -> None:
    [message] = faults(Mailing.parse, {"kind": "password_reset"}).values()
    assert message == (
        "password_reset carries a link that is meant for one person, so send it one by one; must be one of "
        "welcome, course_enrollment, certificate, custom, or absent for free content"
    )


# Kept and shown


def test_what_is_stored_comes_back() -> None:
    for one in (
        mailing("{{ x }}", "<p>{{ x }}</p>"),
        Mailing.parse({"kind": "welcome", "reply_to": "a@example.com"}),
    ):
        assert Mailing.restored(json.loads(json.dumps(one.stored()))) == one
    for recipient in (Recipient("a@b.de"), Recipient("a@b.de", "A"), Recipient("a@b.de", None, {"x": "1"})):
        assert Recipient.restored(json.loads(json.dumps(recipient.stored()))) == recipient
    assert [Recipient("a@b.de").stored(), Recipient("a@b.de", "A").stored()] == [["a@b.de"], ["a@b.de", "A"]]


@pytest.mark.parametrize(
    ("data", "subject"),
    [
        ({"subject": "Hello {{ name }}", "text": "x"}, "Hello {{ name }}"),
        ({"kind": "course_enrollment", "course_name": "Maths"}, "You are enrolled in Maths"),
        ({"kind": "course_enrollment"}, ""),
        ({"kind": "welcome", "name": "Ada"}, ""),
    ],
)
def test_the_subject_for_display(data: Mapping[str, Any], subject: str) -> None:
    assert Mailing.parse(data).subject == subject


@settings(deadline=None)  # a busy machine is no fault
@given(st.text(st.sampled_from("{} ab_<.\n"), max_size=40), st.text(max_size=20))
def test_one_pass_fills_all_and_nothing_else(text: str, value: str) -> None:
    template = Template.of(text)
    values = dict.fromkeys(template.names, value)
    assert template.fill(dict.fromkeys(template.names, "")) == "".join(template.parts[::2])
    assert template.fill(values).count(value) >= len(template.names)
    try:
        content = Content.of("x", None, text)
    except InvalidEmail:
        return
    assert content.names() == set(template.names)


@pytest.mark.parametrize(
    "given",
    [
        {"subject": "News", "text": "Open.", "from_name": "{{ name }}"},
        {"kind": "course_enrollment", "course_name": "{{ course }}"},
    ],
)
def test_what_is_the_same_for_all_takes_no_placeholders(given: dict[str, str]) -> None:
    with pytest.raises(InvalidEmail, match="takes no"):
        Mailing.parse(given)

"""The fast ways of a batch: what Check refuses, and that prepared mails are those that rendering one by one makes."""

import logging
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mail.bodies import sanitise
from mail.brand import Brand
from mail.check import Check
from mail.errors import InvalidEmail
from mail.kinds import KINDS
from mail.mailing import Mailing, Recipient
from mail.policy import Policy
from mail.rendering import Renderer

TEMPLATES = Path(__file__).resolve().parents[2] / "backend" / "templates" / "emails"
BRAND = Brand("Example Academy", "https://lms.example.com", "support@lms.example.com", "1 Example Street", "#1f5eff")
RENDERER = Renderer(TEMPLATES, BRAND)
OPEN = Policy(test_domains=True)
STRICT = Policy(link_hosts=("lms.example.com", "*.cdn.example.com"))
BATCHABLE = [word for word, kind in KINDS.items() if not kind.secret_fields() and word != "custom"]


def free(subject: str = "News", html: str | None = None, text: str | None = None) -> Mailing:
    return Mailing.parse({"subject": subject, "html": html, "text": text})


def check(mailing: Mailing, policy: Policy = STRICT) -> Check:
    return Check(mailing, policy, RENDERER.prepare(mailing))


def to(**data: Any) -> dict[str, Any]:
    return {"to": "ada@example.com", "data": data}


def faults(call: Any, *arguments: Any) -> dict[str, str]:
    try:
        call(*arguments)
    except InvalidEmail as error:
        return {fault.field: fault.message for fault in error.errors}
    return {}


# What all recipients share


@pytest.mark.parametrize(
    ("mailing", "field"),
    [
        (free("See www.evil.example", text="x"), "subject"),
        (free(text="{{ x }} https://evil.example"), "text"),
        (free(html='{{ x }}<a href="https://evil.example">x</a>'), "html"),
        (free(html="{{ x }}<p>www.<b>evil.example</b></p>"), "html"),
        (free(html='<img src="https://evil.example/x.png" alt="">', text="x"), "html"),
        (free(html="<p></p>", text="x"), "html"),
        (Mailing.parse({"kind": "certificate", "certificate_url": "https://evil.example"}), "certificate_url"),
    ],
)
def test_shared_faults(mailing: Mailing, field: str) -> None:
    assert set(faults(check(mailing).mailing)) == {field}


def test_nothing_wrong_with_what_is_shared() -> None:
    check(free("{{ x }}", '<p>{{ x }}</p><a href="{{ x }}">https://lms.example.com</a>', "{{ x }}")).mailing()
    check(free(html="<p>{{ x }}</p>")).mailing()
    check(Mailing.parse({"kind": "certificate"})).mailing()
    check(free("www.evil.example", text="https://evil.example"), OPEN).mailing()


# What each recipient brings


def test_recipients_under_test() -> None:
    mailing = free(text="x")
    assert set(faults(check(mailing).recipient, "ada@lms.test")) == {"to"}
    assert faults(check(mailing, OPEN).recipient, "ada@lms.test") == {}


@pytest.mark.parametrize(
    ("url", "works"),
    [
        ("https://lms.example.com/courses/1?a=1&b=2#x", True),
        ("HTTP://a.cdn.example.com", True),
        ("https://lms.example.com/a b", True),
        ("mailto:ada@other.example", True),
        ("https://evil.example", False),
        ("https://lms.example.com@evil.example", False),
        ("https://evil.example\\@lms.example.com", False),
        ("javascript:alert(1)", False),
        ("JaVaScRiPt:alert(1)", False),
        ("&#106;avascript:alert(1)", False),
        ("java\nscript:alert(1)", False),
        ("data:text/html,x", False),
        ("/relative", False),
        ("//evil.example", False),
        ("", False),
        (" https://lms.example.com", False),
        ("https://lms.example.com/\n", False),
        ("https://lms.exam\tple.com/", False),
        ("https://", False),
        ("https://a b/", False),
        ("https://lms.example.com\u3000", False),
    ],
)
def test_a_value_that_is_a_link(url: str, works: bool) -> None:
    mailing = free(html='<p>x</p><a href="{{ url }}">Open</a>')
    found = faults(check(mailing).recipient, to(url=url))
    assert (found == {}) == works
    if works:
        html = RENDERER.render(mailing.email(mailing.recipient(to(url=url)))).html or ""
        assert Links(html).all.count(url) == 1
    elif "evil" not in url:
        assert "data.url" in found
        assert "in html" in found["data.url"]


@pytest.mark.parametrize(
    ("fields", "data", "field"),
    [
        ({"html": '<a href="https://{{ host }}/x">x</a>'}, {"host": "evil.example"}, "html"),
        ({"html": '<a href="https://{{ host }}/x">x</a>'}, {"host": "lms.example.com"}, None),
        ({"html": '<a href="https://lms.example.com{{ x }}">x</a>'}, {"x": ".evil.example"}, "html"),
        ({"html": '<a href="https://lms.example.com{{ x }}">x</a>'}, {"x": "@evil.example"}, "data.x"),
        ({"html": '<a href="{{ x }}://lms.example.com">x</a>'}, {"x": "https"}, None),
        ({"html": '<a href="{{ x }}://lms.example.com">x</a>'}, {"x": "ftp"}, "data.x"),
        ({"html": '<a href="{{ x }}{{ y }}">x</a>'}, {"x": "java", "y": "script:x"}, "html"),
        ({"html": '<img src="{{ x }}" alt="">'}, {"x": "mailto:ada@example.com"}, "data.x"),
        ({"html": '<img src="{{ x }}" alt="">'}, {"x": "https://lms.example.com/x.png"}, None),
        ({"html": '<p>x</p><a href="mailto:{{ x }}">x</a>'}, {"x": "a b@x.example?subject=<x>"}, None),
        ({"html": '<p>x</p><a href="mailto:{{ x }}">x</a>'}, {"x": "//<x>"}, "data.x"),
        ({"html": "<p>x</p><p>www.{{ x }}</p>"}, {"x": "evil.example"}, "html"),
        ({"html": "<p>x</p><p>www.{{ x }}</p>"}, {"x": " evil.example"}, None),
        ({"html": "<p>https<b>{{ x }}</b>//evil.example</p>"}, {"x": ":"}, "html"),
        ({"html": "<p>{{ x }}</p>"}, {"x": "https://lms.example.com"}, None),
        ({"html": "<p>{{ x }}</p>", "text": "x"}, {"x": "https://evil.example"}, "html"),
        (
            {"html": 'https://lms.example.com<img src="https://lms.example.com/x" alt="{{ x }}">.evil.example'},
            {"x": ""},
            "html",
        ),
        ({"html": '<p title="{{ x }}">x</p>'}, {"x": "https://evil.example"}, None),
        ({"text": "https://{{ x }}"}, {"x": "evil.example"}, "text"),
        ({"text": "{{ x }}evil.example"}, {"x": "www."}, "text"),
        ({"text": "x", "subject": "{{ x }}"}, {"x": "www.evil.example"}, "subject"),
        ({"html": "<p>{{ x }}</p>", "text": "x"}, {"x": " \u200b"}, "html"),
        ({"html": '<img alt="{{ x }}">', "text": "x"}, {"x": ""}, "html"),
        ({"html": '<img alt="{{ x }}">', "text": "x"}, {"x": "A cat"}, None),
    ],
)
def test_rules_hold_for_the_final_mail(fields: dict[str, str], data: dict[str, str], field: str | None) -> None:
    mailing = Mailing.parse({"subject": "News", **fields})
    checked = check(mailing)
    checked.mailing()
    found = faults(checked.recipient, to(**data))
    assert (field is None and not found) or field in found


def test_links_of_a_kind() -> None:
    mailing = Mailing.parse({"kind": "certificate", "name": "learner", "course_name": "Maths"})
    assert set(faults(check(mailing).recipient, to(certificate_url="https://evil.example"))) == {
        "data.certificate_url"
    }
    assert faults(check(mailing).recipient, to(certificate_url="https://lms.example.com/x")) == {}


# The fast check is the slow one


class Links(HTMLParser):
    """Where links and pictures point."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.all: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.all += [value or "" for name, value in attrs if name in ("href", "src")]


_pieces = st.sampled_from(
    [
        *(
            "{{ a }}",
            "{{ a }}",
            "{{ b }}",
            "{{ a }}{{ b }}",
            "www.",
            "evil",
            ".com",
            "https://",
            "lms.example.com",
            "/",
            " ",
            "x",
            "\n",
        ),
        *("<b>", "</b>", "<p>", "</p>", "<br>", "<pre>", "</pre>", "<table>", "<td>", "<tr>", "</table>", "<li>"),
        *("<h1>", "</h1>", "<button>", "</button>", "<!--", "-->", "<script>", "</script>", "&amp;", "&#", "&", ";"),
        *('<a href="{{ a }}">', '<a href="https://{{ a }}/{{ b }}">', "<a href={{ b }}>", "</a>", "<wbr>", "<svg>"),
        *('<img src="{{ a }}" alt="{{ b }}">', '<img alt="{{ a }}">', '<a href="mailto:{{ a }}">', "<xmp>", "<i>"),
        *("<p title='{{ a }}'>", "<p title={{ b }}>", "<{{ a }}>", "<p {{ b }}>", '<p style="color:{{ a }}">', "<"),
    ]
)
_values = st.one_of(
    st.lists(
        st.sampled_from(
            [
                *(
                    "https://",
                    "http:",
                    "//",
                    "www.",
                    "evil.example",
                    "evil.com",
                    "lms.example.com",
                    ".",
                    "@",
                    "\\",
                    "/",
                    " ",
                    "\n",
                ),
                *(
                    "<script>",
                    "</h1>",
                    "<h1>",
                    "<pre>",
                    "-->",
                    "]]>",
                    '"',
                    "'",
                    "&",
                    "&amp;",
                    "&#106;avascript:",
                    ":",
                ),
                *("javascript:", "data:", "mailto:", "{{ b }}", "\t", "\r\n", "\xa0", "\u200b", "\ufeff", "x", "\r"),
            ]
        ),
        max_size=5,
    ).map("".join),
    st.text(max_size=30),
    st.sampled_from(["", "x" * 2_048, "https://lms.example.com", "https://lms.example.com/?a=b&c=d"]),
)


def mailing_of(subject: str, html: str | None, text: str | None) -> Mailing | None:
    try:
        return Mailing.parse({"subject": subject, "html": html, "text": text})
    except InvalidEmail:
        return None


@settings(max_examples=600, deadline=None)  # a busy machine is no fault
@given(
    st.sampled_from(["News", "{{ a }}", "For {{ b }}: {{ a }}"]),
    st.lists(_pieces, max_size=10).map("".join) | st.lists(_pieces, max_size=10).map("".join) | st.none(),
    st.none() | st.lists(_pieces, max_size=8).map("".join),
    _values,
    _values,
    st.sampled_from([OPEN, STRICT]),
)
def test_what_is_accepted_is_what_the_slow_way_accepts_and_renders(
    subject: str, html: str | None, text: str | None, a: str, b: str, policy: Policy
) -> None:
    mailing = mailing_of(subject, html, text)
    if mailing is None or mailing.content is None:
        return
    try:
        recipient = mailing.recipient(to(a=a, b=b))
    except InvalidEmail:
        return
    email = mailing.email(recipient)
    slow = faults(policy.check, email)
    checked = check(mailing, policy)
    fast = faults(checked.mailing) | faults(checked.recipient, to(a=a, b=b))
    if (
        slow
        or not mailing.content.html
        or not any("href" in one or "src" in one for one in mailing.content.html.parts)
    ):
        # Of a link that the slow way drops without a word, the fast one tells.
        assert bool(fast) == bool(slow), (fast, slow)
    if not fast:
        rendered = RENDERER.render(email)
        prepared = RENDERER.prepare(mailing)
        assert prepared.render(recipient) == rendered
        assert prepared.render(recipient) == rendered
        shown = mailing.filled(recipient)
        assert shown is not None
        if shown.html is not None:
            assert sanitise(str(mailing.email(recipient).model_dump()["html"])) == shown.html
            assert Links(shown.html).all == Links(str(email.model_dump()["html"])).all


@settings(max_examples=200, deadline=None)  # a busy machine is no fault
@given(st.sampled_from(BATCHABLE), st.text(max_size=40), st.text(max_size=40), st.sampled_from([OPEN, STRICT]))
def test_kinds_are_rendered_as_one_by_one(word: str, name: str, course: str, policy: Policy) -> None:
    shared = KINDS[word].sample().model_dump(exclude={"to", "name", "reply_to", "from_name"})
    mailing = Mailing.parse(shared)
    data = {"course_name": course} if "course_name" in shared else {}
    try:
        recipient = check(mailing, policy).recipient({"to": "ada@example.com", "name": name, "data": data})
    except InvalidEmail:
        return
    prepared = RENDERER.prepare(mailing)
    prepared.render(recipient)
    assert prepared.render(recipient) == RENDERER.render(mailing.email(recipient))


@pytest.mark.parametrize("word", BATCHABLE)
def test_golden_files_hold_for_batches(word: str, golden: Path) -> None:
    sample = KINDS[word].sample()
    mailing = Mailing.parse(sample.model_dump(exclude={"to", "name", "reply_to", "from_name"}))
    prepared = Renderer(TEMPLATES, replace(BRAND, address="1 Example Street, 12345 Example City")).prepare(mailing)
    prepared.render(Recipient("bob@example.com", "Bob"))
    rendered = prepared.render(Recipient(sample.to, "Ada Lovelace"))
    assert rendered.html == (golden / f"{word}.html").read_bytes().decode()
    assert f"Subject: {rendered.subject}\n\n{rendered.text}" == (golden / f"{word}.txt").read_bytes().decode()


# Templates that do more than write a field out


class Counting(Renderer):
    """Counts how often a mail is rendered whole."""

    whole = 0

    def render(self, *arguments: Any, **more: Any) -> Any:
        self.whole += 1
        return super().render(*arguments, **more)


@pytest.mark.parametrize(
    ("source", "whole"),
    [
        ("{{ name }}", 1),
        ("{% set who = name %}{{ who }}", 1),
        ("{% macro m(x) %}<b>{{ x }}</b>{% endmacro %}{{ m(name) }}", 1),
        ("{{ name | upper }}", 3),
        ("{{ name | truncate(5) }}", 3),
        ("{{ name | replace('a', 'b') }}", 3),
        ("{{ name ~ '!' }}", 3),
        ("{{ name[0] }}", 3),
        ("{{ name.upper() }}", 3),
        ("{% if name %}x{% endif %}", 3),
        ("{% if name == 'Eve' %}x{% endif %}", 3),
        ("{% if 'E' in name %}x{% endif %}", 3),
        ("{% for letter in name %}{{ letter }}.{% endfor %}", 3),
        ("{{ name | length }}", 3),
        ("{{ name if name is string else 'nobody' }}", 3),
        ("{{ {'Eve': 'x'}[name] | default('y') }}", 3),
    ],
)
@pytest.mark.parametrize("part", ["html", "txt"])
def test_a_template_that_looks_into_a_field_is_run_for_every_mail(
    tmp_path: Path, source: str, whole: int, part: str
) -> None:
    for suffix in ("html", "txt"):
        (tmp_path / f"welcome.{suffix}").write_text(source if suffix == part else "x")
    renderer = Counting(tmp_path, BRAND)
    mailing = Mailing.parse({"kind": "welcome"})
    recipients = [Recipient("ada@example.com", name) for name in ("Ada Lovelace", "Eve", "<&>")]
    prepared = renderer.prepare(mailing)
    found = [prepared.render(recipient) for recipient in recipients]
    assert renderer.whole == whole
    assert found == [renderer.render(mailing.email(recipient)) for recipient in recipients]


def test_a_difference_is_noticed_and_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for suffix in ("html", "txt"):
        (tmp_path / f"welcome.{suffix}").write_text("{{ 1 if name is string else 2 }}")
    with caplog.at_level(logging.WARNING):
        prepared = Renderer(tmp_path, BRAND).prepare(Mailing.parse({"kind": "welcome"}))
        assert [prepared.render(Recipient("ada@example.com", "Ada")).text for _ in range(3)] == ["1", "1", "1"]
    [told] = caplog.messages
    assert told.startswith("templates.slow kind=welcome ")

"""Rendering: golden files of every kind, escaping, sanitising, and what must never happen.

After a wanted change of a template, `UPDATE_GOLDEN=1 pytest tests/mail/test_rendering.py` rewrites tests/golden/.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jinja2 import TemplateNotFound, UndefinedError

from mail.bodies import MAX_DEPTH, paragraphs, sanitise, text_of
from mail.brand import Brand
from mail.errors import InvalidEmail
from mail.fields import is_visible
from mail.kinds import (
    KINDS,
    CertificateEmail,
    CourseEnrollmentEmail,
    CustomEmail,
    EmailVerificationEmail,
    PasswordResetEmail,
    WelcomeEmail,
)
from mail.rendering import Rendered, Renderer, in_words

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = ROOT / "backend" / "templates" / "emails"
GOLDEN = ROOT / "tests" / "golden"
BRAND = Brand(
    name="Example Academy",
    url="https://lms.example.com",
    support_email="support@lms.example.com",
    address="1 Example Street, 12345 Example City",
    color="#1f5eff",
)
RENDERER = Renderer(TEMPLATES, BRAND)
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}

every_kind = pytest.mark.parametrize("kind", KINDS)


class Page(HTMLParser):
    """What a mail program sees of the HTML part. Fails on tags that are not balanced."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[tuple[str, bool]] = []
        self.feed(html)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append((tag, "display:none" in (dict(attrs).get("style") or "")))

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        opened, _ = self._open.pop()
        assert opened == tag, f"</{tag}> closes <{opened}>"

    def handle_data(self, data: str) -> None:
        place = "hidden" if any(hidden for _, hidden in self._open) else self._open[-1][0] if self._open else ""
        self.texts.append((place, data))

    def links(self) -> list[str]:
        return [value for tag, name, value in self.attributes if (tag, name) == ("a", "href")]

    def text(self) -> str:
        return "".join(data for place, data in self.texts if place not in ("style", "title", "hidden"))

    def preheader(self) -> str:
        return " ".join("".join(data for place, data in self.texts if place == "hidden").split())


def render(email: Any) -> Rendered:
    return RENDERER.render(email)


def html_of(email: Any) -> str:
    html = render(email).html
    assert html is not None
    return html


def custom(html: str | None = None, text: str | None = None, subject: str = "News") -> CustomEmail:
    return CustomEmail(to="ada@example.com", subject=subject, html=html, text=text)


def sample(kind: str) -> Any:
    return KINDS[kind].sample()


# Golden files


@every_kind
def test_golden(kind: str) -> None:
    rendered = render(sample(kind))
    found = {
        GOLDEN / f"{kind}.html": rendered.html,
        GOLDEN / f"{kind}.txt": f"Subject: {rendered.subject}\n\n{rendered.text}",
    }
    for path, content in found.items():
        assert content is not None
        if os.environ.get("UPDATE_GOLDEN") == "1":
            path.write_text(content, encoding="utf-8", newline="")
        assert content == path.read_bytes().decode(), f"{path.name} differs; see the docstring of this file"


def test_no_golden_file_outlives_its_kind() -> None:
    found = {path.name for suffix in ("html", "txt") for path in GOLDEN.glob(f"*.{suffix}")}
    assert found <= {f"{kind}.{suffix}" for kind in KINDS for suffix in ("html", "txt")}


# Every kind


@every_kind
def test_html_is_whole(kind: str) -> None:
    page = Page(html_of(sample(kind)))
    assert ("html", "lang", "en") in page.attributes
    assert ("html", "dir", "ltr") in page.attributes
    assert page.tags.count("h1") == 1
    assert page.tags.count("title") == 1
    tables = page.tags.count("table")
    assert page.attributes.count(("table", "role", "presentation")) == tables > 0
    assert BRAND.address in page.text()
    assert f"mailto:{BRAND.support_email}" in page.links()


@every_kind
def test_preheader_says_more_than_the_subject(kind: str) -> None:
    rendered = render(sample(kind))
    preheader = Page(rendered.html or "").preheader()
    assert len(preheader) >= 40
    assert preheader not in rendered.subject
    assert rendered.subject not in preheader


@every_kind
def test_lines_end_in_a_line_feed_and_texts_are_not_ragged(kind: str) -> None:
    rendered = render(sample(kind))
    for part in (rendered.html or "", rendered.text):
        assert "\r" not in part
        assert part.endswith("\n")
        assert not part.endswith("\n\n")
    assert "\n\n\n" not in rendered.text
    assert all(line == line.rstrip() for line in rendered.text.split("\n"))
    assert max(len(line) for line in rendered.text.split("\n")) <= 78


@every_kind
def test_no_phrase_that_spam_filters_count(kind: str) -> None:
    rendered = render(sample(kind))
    words = " ".join(" ".join([rendered.subject, rendered.html or "", rendered.text]).lower().split())
    for phrase in ("verify your account", "confirm your account", "email verification", "billing information"):
        assert phrase not in words


@every_kind
def test_templates_read_only_declared_fields(kind: str) -> None:
    used = RENDERER.fields_used(KINDS[kind])
    assert used
    assert used <= set(KINDS[kind].template_fields())


@pytest.mark.parametrize(
    ("email", "url"),
    [
        (WelcomeEmail.sample(), BRAND.url),
        (PasswordResetEmail.sample(), PasswordResetEmail.sample().reset_url),
        (EmailVerificationEmail.sample(), EmailVerificationEmail.sample().verification_url),
        (CourseEnrollmentEmail.sample(), CourseEnrollmentEmail.sample().course_url),
        (CertificateEmail.sample(), CertificateEmail.sample().certificate_url),
    ],
    ids=lambda value: value.kind if hasattr(value, "kind") else "",
)
def test_the_link_is_in_the_button_below_it_and_in_the_text(email: Any, url: str) -> None:
    rendered = render(email)
    page = Page(rendered.html or "")
    assert page.links().count(url) >= 2
    assert url in page.text()
    assert url in rendered.text.split("\n")


@pytest.mark.parametrize(("kind", "words"), [("password_reset", "1 hour"), ("email_verification", "24 hours")])
def test_a_link_that_expires_says_when_and_what_to_do_if_it_was_not_you(kind: str, words: str) -> None:
    rendered = render(sample(kind))
    for part in (Page(rendered.html or "").text(), rendered.text):
        assert f"works for {words}" in part
        assert "If it was not you, ignore this mail" in part


def test_brand_address_may_be_empty() -> None:
    renderer = Renderer(TEMPLATES, Brand("A & B", "https://a.example/?x=1&y=2", "help@a.example", "", "#ffd400"))
    rendered = renderer.render(WelcomeEmail.sample())
    page = Page(rendered.html or "")
    assert "https://a.example/?x=1&y=2" in page.links()
    assert "A & B\n" in page.text()
    assert rendered.text.endswith("\nA & B\nhttps://a.example/?x=1&y=2\n")
    assert rendered.subject == "Welcome to A & B, Ada Lovelace"


def test_a_logo_stands_for_the_name_and_says_it_where_pictures_are_off() -> None:
    brand = replace(BRAND, logo_url="https://cdn.example/logo.png")
    page = Page(Renderer(TEMPLATES, brand).render(WelcomeEmail.sample()).html or "")
    assert ("img", "src", "https://cdn.example/logo.png") in page.attributes
    assert ("img", "alt", "Example Academy") in page.attributes
    assert "img" not in Page(html_of(WelcomeEmail.sample())).tags


def test_a_link_with_a_life_of_its_own_says_that_life() -> None:
    rendered = RENDERER.render(sample("password_reset"), valid_for=timedelta(minutes=20, seconds=-1))
    for part in (Page(rendered.html or "").text(), rendered.text):
        assert "works for 20 minutes" in part
        assert "1 hour" not in part


# Fields are data


def test_markup_in_a_name_is_text() -> None:
    name = "<b>Zoë & O'Brien</b>"
    rendered = render(WelcomeEmail(to="ada@example.com", name=name))
    assert rendered.subject == f"Welcome to Example Academy, {name}"
    assert f"Welcome, {name}\n" in rendered.text
    page = Page(rendered.html or "")
    assert f"Welcome, {name}" in page.text()
    assert ("title", rendered.subject) in page.texts
    assert "b" not in page.tags


@pytest.mark.parametrize("name", ["Zoë O'Brien", "李雷", "مريم", "{{ 7*7 }}", "{% if %}", "{# x #}", "&amp;", "${x}"])
def test_names_arrive_as_written(name: str) -> None:
    rendered = render(
        CertificateEmail(to="a@example.com", name=name, course_name=name, certificate_url="https://x.example")
    )
    page = Page(rendered.html or "")
    assert rendered.subject == f"Your certificate for {name}"
    assert f"Congratulations, {name}!" in page.text()
    assert f"awarded to {name}\n" in page.text()
    assert f"Congratulations, {name}!\n" in rendered.text
    assert f"  {name}\n  awarded to {name}\n" in rendered.text
    assert page.attributes.count(("span", "dir", "auto")) == 3


printable = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=100)


@settings(deadline=None)  # a busy machine is no fault
@given(printable)
def test_any_printable_name_survives(name: str) -> None:
    try:
        email = WelcomeEmail(to="ada@example.com", name=name)
    except ValueError:
        assume(False)
    rendered = render(email)
    assert email.name in rendered.subject
    assert email.name in rendered.text
    assert email.name in unescape(rendered.html or "")
    assert f"Welcome, {email.name}" in Page(rendered.html or "").text()


def test_url_with_ampersands_and_quotes_survives() -> None:
    url = "https://lms.example.com/reset?token=a&copy=1&lt=2&user='ada'&next=%22home%22#top"
    email = PasswordResetEmail(to="ada@example.com", name="Ada", reset_url=url)
    assert email.reset_url == url
    rendered = render(email)
    page = Page(rendered.html or "")
    assert page.links().count(url) == 2
    assert url in page.text()
    assert url in rendered.text.split("\n")
    assert "&copy=" not in (rendered.html or "")


# Templates are ours, and strict


def written(directory: Path, **sources: str) -> Renderer:
    """A renderer over templates of the test's own: `welcome_html="..."` becomes welcome.html."""
    for name, source in sources.items():
        stem, _, suffix = name.rpartition("_")
        (directory / f"{stem}.{suffix}").write_text(source, encoding="utf-8")
    return Renderer(directory, BRAND, auto_reload=True)


def test_an_unknown_variable_raises(tmp_path: Path) -> None:
    renderer = written(tmp_path, welcome_html="{{ nobody }}", welcome_txt="")
    with pytest.raises(UndefinedError, match="nobody"):
        renderer.render(WelcomeEmail.sample())
    assert renderer.fields_used(WelcomeEmail) == {"nobody", "name"}


@pytest.mark.parametrize("variable", ["to", "kind", "reply_to", "valid_for"])
def test_only_fields_and_brand_are_in_reach(tmp_path: Path, variable: str) -> None:
    renderer = written(tmp_path, welcome_html=f"{{{{ {variable} }}}}", welcome_txt="")
    with pytest.raises(UndefinedError, match=variable):
        renderer.render(WelcomeEmail.sample())


def test_fields_used_looks_into_bases_and_parts(tmp_path: Path) -> None:
    renderer = written(
        tmp_path,
        welcome_html='{% extends "base.html" %}{% import "parts.html" as parts %}'
        "{% block a %}{{ parts.x() }}{% endblock %}",
        welcome_txt="{{ valid_for }}",
        base_html="{{ above }}{% block a %}{% endblock %}",
        parts_html="{% macro x() %}{{ aside }}{% endmacro %}",
    )
    assert renderer.fields_used(WelcomeEmail) == {"name", "above", "aside", "valid_for"}


def test_a_missing_template_raises(tmp_path: Path) -> None:
    with pytest.raises(TemplateNotFound, match=r"welcome\.txt"):
        written(tmp_path, welcome_html="").render(WelcomeEmail.sample())


@pytest.mark.parametrize("auto_reload", [True, False])
def test_a_changed_template_is_seen_with_auto_reload_only(tmp_path: Path, auto_reload: bool) -> None:
    written(tmp_path, welcome_html="", welcome_txt="old")
    renderer = Renderer(tmp_path, BRAND, auto_reload=auto_reload)
    assert renderer.render(WelcomeEmail.sample()).text == "old"
    changed = tmp_path / "welcome.txt"
    changed.write_text("new", encoding="utf-8")
    os.utime(changed, (0, 0))
    assert renderer.render(WelcomeEmail.sample()).text == ("new" if auto_reload else "old")


@pytest.mark.parametrize(
    ("period", "words"),
    [
        (timedelta(minutes=1), "1 minute"),
        (timedelta(minutes=45), "45 minutes"),
        (timedelta(minutes=90), "90 minutes"),
        (timedelta(hours=1), "1 hour"),
        (timedelta(hours=24), "24 hours"),
        (timedelta(days=3), "3 days"),
    ],
)
def test_in_words(period: timedelta, words: str) -> None:
    assert in_words(period) == words


# Custom mail


@pytest.mark.parametrize("syntax", ["{{ 7*7 }}", "{% for x in y %}", "{# gone? #}", "{{ brand.name }}", "{{ name }}"])
def test_template_syntax_in_a_custom_mail_is_text(syntax: str) -> None:
    rendered = render(custom(f"<p>{syntax}</p>", None, syntax))
    page = Page(rendered.html or "")
    assert rendered.subject == syntax
    assert ("title", syntax) in page.texts
    assert page.text().count(syntax) == 2  # heading and body
    assert f"{syntax}\n" in rendered.text
    rendered = render(custom(None, syntax))
    assert syntax in Page(rendered.html or "").text()
    assert f"{syntax}\n" in rendered.text


HOSTILE = {
    "script": "<script>alert('evil')</script>",
    "script in svg": "<svg><script>evil()</script></svg>",
    "event handler": '<img src="https://x.example/a.png" onerror="evil()" alt="A">',
    "javascript link": '<a href="javascript:evil()">x</a>',
    "disguised javascript": '<a href="jav&#x09;ascript:evil()">x</a>',
    "data link": '<a href="data:text/html,evil">x</a>',
    "data picture": '<img src="data:image/svg+xml,evil" alt="">',
    "relative link": '<a href="/evil">x</a>',
    "link without scheme": '<a href="//evil.example">x</a>',
    "picture from a mailbox": '<img src="mailto:evil@x.example" alt="">',
    "iframe": '<iframe src="https://evil.example"></iframe>',
    "iframe document": '<iframe srcdoc="evil"></iframe>',
    "object": '<object data="https://evil.example">evil</object>',
    "form": '<form action="https://evil.example"><input name="evil"></form>',
    "style element": "<style>.evil{}</style>",
    "style attribute": '<p style="background:url(https://evil.example)">x</p>',
    "class and id": '<p class="evil" id="evil">x</p>',
    "meta refresh": '<meta http-equiv="refresh" content="0;url=https://evil.example">',
    "base": '<base href="https://evil.example">',
    "link element": '<link rel="stylesheet" href="https://evil.example">',
    "comment": "<!-- evil -->",
    "conditional comment": "<!--[if mso]>evil<![endif]-->",
    "closing tags": "</div></td></tr></table></main></body><evil>",
    "unclosed": "<table><tr><td><b><evil",
    "mutation": '<noscript><p title="</noscript><img src=x onerror=evil()>">',
    "background": '<table background="https://evil.example"><tr><td>x</td></tr></table>',
}


@pytest.mark.parametrize("html", HOSTILE.values(), ids=HOSTILE)
def test_hostile_html_is_disarmed(html: str) -> None:
    rendered = render(custom(f"<p>before</p>{html}<p>after</p>"))
    page = Page(rendered.html or "")
    assert "before" in page.text()
    assert "evil" not in (rendered.html or "")
    assert "evil" not in rendered.text
    assert page.tags.count("main") == page.tags.count("body") == page.tags.count("style") == 1
    assert not {"script", "iframe", "object", "form", "input", "base", "link", "svg"} & set(page.tags)
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]


@settings(deadline=None)  # a busy machine is no fault
@given(st.text(st.sampled_from("<>/=\"'& abpimgscriptx:-!{}%\n"), max_size=200))
def test_no_input_breaks_out_of_the_custom_mail(html: str) -> None:
    page = Page(html_of(custom(f"x{html}")))
    assert page.tags.count("main") == 1
    assert not {"script", "iframe", "style"} & {tag for tag in page.tags if page.tags.count(tag) > 1}
    assert BRAND.address in page.text()


def test_harmless_html_stays() -> None:
    html = (
        '<h2 dir="auto">Sunday</h2><ul><li>one</li></ul><table><tbody><tr><td colspan="2">x</td></tr></tbody></table>'
        '<a href="mailto:help@x.example">write</a><a href="http://x.example/?a=1&amp;b=2">read</a>'
        '<img src="https://x.example/a.png" alt="A cat">'
    )
    page = Page(html_of(custom(html)))
    assert {"mailto:help@x.example", "http://x.example/?a=1&b=2"} <= set(page.links())
    assert ("img", "src", "https://x.example/a.png") in page.attributes
    assert ("img", "alt", "A cat") in page.attributes
    assert ("td", "colspan", "2") in page.attributes
    assert {"h2", "ul", "li"} <= set(page.tags)


def test_a_custom_mail_has_one_heading() -> None:
    assert Page(html_of(custom("<h1>Mine</h1>"))).tags.count("h1") == 1
    assert Page(html_of(custom("<p>&lt;h1&gt;</p>"))).tags.count("h1") == 1
    page = Page(html_of(custom('<h1 dir="rtl">Mine</h1><h1 title="a">Second</h1><p>x</p><H1>Third</H1>')))
    assert [tag for tag in page.tags if tag in ("h1", "h2")] == ["h1", "h2", "h2"]
    assert ("h2", "title", "a") in page.attributes


def test_html_only() -> None:
    rendered = render(
        custom(
            '<h2>Sunday</h2><p>We are <b>open</b>,\n see <a href="https://x.example/?a=1&amp;b=2">the  plan</a>.</p>'
            '<p>Or <a href="https://x.example/">https://x.example/</a>, <a href="mailto:a@x.example">write</a>,'
            ' <a href="mailto:a@x.example">a@x.example</a>, <a>nowhere</a>.</p><br><br><br>'
            "<p>O&#39;Brien &amp; Zoë<br>two</p><ul><li>one</li><li>two</li></ul><blockquote>said</blockquote>"
            '<img src="https://x.example/c.png" alt="A cat">'
        )
    )
    body, _, footer = rendered.text.partition("\n\n---\n")
    assert body == (
        "Sunday\n\n"
        "We are open, see the plan (https://x.example/?a=1&b=2).\n\n"
        "Or https://x.example/, write (a@x.example), a@x.example, nowhere.\n\n"
        "O'Brien & Zoë\ntwo\n\n"
        "  * one\n  * two\n\n"
        "    said\n\n"
        "[A cat]"
    )
    assert footer.startswith("This mail was sent to you by Example Academy.\n")


def test_text_only() -> None:
    rendered = render(
        custom(None, "\r\nDear <b>all</b>,\r\nO'Brien & I\r\n\r\n \r\nsee https://x.example/?a=1&b=2\rbye\n")
    )
    assert rendered.text.startswith(
        "Dear <b>all</b>,\nO'Brien & I\n\n \nsee https://x.example/?a=1&b=2\nbye\n\n---\n"
    )
    assert (
        '<p dir="auto">Dear &lt;b&gt;all&lt;/b&gt;,<br>\nO&#39;Brien &amp; I</p>\n'
        '<p dir="auto">see https://x.example/?a=1&amp;b=2<br>\nbye</p>\n'
    ) in (rendered.html or "")
    assert "b" not in Page(rendered.html or "").tags


def test_both_parts_are_kept_as_given() -> None:
    rendered = render(custom("<p>for the eye</p>", "for the ear"))
    assert "for the eye" in Page(rendered.html or "").text()
    assert "for the ear" not in Page(rendered.html or "").text()
    assert "for the ear" in rendered.text
    assert "for the eye" not in rendered.text


@settings(deadline=None)  # a busy machine is no fault
@given(
    st.text(st.characters(exclude_categories=["Cc", "Cs"], include_characters="\n\t"), min_size=1).filter(is_visible)
)
def test_any_text_is_text_in_both_parts(text: str) -> None:
    assert text.strip("\n") in render(custom("<p>x</p>", text)).text
    assert Page(paragraphs(text)).text().split() == text.split()


def test_control_characters_do_not_come_in_as_references() -> None:
    rendered = render(custom("<p>a&#1;b&#8;c&#13;d&#x7f;e&#x9f;f</p>"))
    for part in (rendered.html or "", rendered.text):
        assert not [c for c in part if ord(c) < 32 and c != "\n"]
        assert not [c for c in part if 0x7F <= ord(c) < 0xA0 and c != "Ÿ"]


def test_the_deepest_html_allowed_keeps_its_text() -> None:
    for opening in ("<div>", "<table><tr><td>", "<ul><li>", "<b>", "<blockquote><p>"):
        assert text_of(sanitise(opening * MAX_DEPTH + "kept")).endswith("kept")
    assert "kept" in sanitise("<div><p><b>x</b></p></div>" * 10_000 + "kept")
    assert "kept" in sanitise("<p>x<br><li><td>" * 10_000 + "kept")


def test_html_that_nests_too_deep_is_refused_at_once() -> None:
    for html in ("<div>" * (MAX_DEPTH + 1), "<DIV></b>" * 50_000, "<blockquote>" * 40_000):
        with pytest.raises(InvalidEmail, match="nest") as caught:
            render(custom(html))
        assert [error.field for error in caught.value.errors] == ["html"]


def test_threads_do_not_write_into_each_others_mail() -> None:
    def own(number: int) -> bool:
        words = [f"reader-{number}-{line}" for line in range(50)]
        return text_of("".join(f"<p>{word}</p>" for word in words)).split() == words

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(own, range(400)))
    finally:
        sys.setswitchinterval(interval)

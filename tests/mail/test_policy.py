"""The installation's rules: where links may lead, who may get mail, and that a custom mail shows something."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mail.bodies import sanitise, text_of
from mail.errors import InvalidEmail
from mail.fields import host_of
from mail.kinds import KINDS, AnyEmail, CertificateEmail, CustomEmail, PasswordResetEmail, WelcomeEmail
from mail.policy import Policy

HOSTS = ("lms.example.com", "*.cdn.example.com")
STRICT = Policy(link_hosts=HOSTS)


def custom(html: str | None = None, text: str | None = None, subject: str = "News") -> CustomEmail:
    return CustomEmail(to="ada@example.com", subject=subject, html=html, text=text)


def faults(policy: Policy, email: AnyEmail) -> dict[str, str]:
    try:
        policy.check(email)
    except InvalidEmail as error:
        return {one.field: one.message for one in error.errors}
    return {}


def test_all_links_where_no_hosts_are_named() -> None:
    for kind in KINDS.values():
        assert faults(Policy(), kind.sample()) == {}
    assert faults(Policy(), custom('<a href="https://other.example">x</a>', "www.other.example")) == {}


@pytest.mark.parametrize("kind", KINDS)
def test_links_of_every_kind(kind: str) -> None:
    sample = KINDS[kind].sample()
    links = {name for name in sample.template_fields() if name.endswith("_url")}
    assert faults(STRICT, sample) == {}
    assert set(faults(Policy(link_hosts=("other.example.com",)), sample)) == links


def test_the_message_names_the_hosts_and_no_link() -> None:
    email = PasswordResetEmail(to="ada@example.com", name="Ada", reset_url="https://evil.example/s3cr3t")
    assert faults(STRICT, email) == {"reset_url": "must point to one of: lms.example.com, *.cdn.example.com"}


@pytest.mark.parametrize(
    "text",
    [
        "See https://lms.example.com.",
        "(https://lms.example.com)",
        "https://lms.example.com, and http://static.cdn.example.com/x.",
        "**https://lms.example.com/**",
        "“https://lms.example.com/a?b=c#d”",
        "[x](https://lms.example.com/x)",
        "HTTPS://LMS.EXAMPLE.COM:8443/X!",
        "https://a.b.cdn.example.com",
        "Write to ada@other.example or mailto:ada@other.example",
        "and/or, 24/7, 10:30",
        "https://",
        "...://...",
        "lms.example.com and LMS.EXAMPLE.COM/courses/1.",
        "(static.cdn.example.com)",
        "Write to ada@evil.com or ada.com@other.example",
        "ASP.NET, Node.js, main.py, project.zip, v1.2.3, e.g. this",
        "On Friday.In the afternoon we meet.So come",
    ],
)
def test_our_own_links_in_text(text: str) -> None:
    for email in (custom(text=text), custom(f"<p>{text}</p>"), custom(text="x", subject=text)):
        assert faults(STRICT, email) == {}


@pytest.mark.parametrize(
    "text",
    [
        "https://evil.example",
        "see:https://evil.example",
        "1https://evil.example",
        "éhttps://evil.example",
        "www.evil.example",
        "WWW.EVIL.EXAMPLE",
        "_www.evil.example",
        "ftp://evil.example/x",
        "hxxps://evil.example",
        "//evil.example://x",
        "https://lms.example.com@evil.example",
        "https://lms.example.com:pass@evil.example",
        "https://evil.example\\@lms.example.com",
        "https://lms.example.com\\@evil.example",
        "https://lms.example.com.evil.example",
        "https://lms.example.com)evil.example",
        "https://lms.example.com\u200b.evil.example",
        "https://evil.example.",
        "https://lms.example.com https://evil.example",
        "https://cdn.example.com",
        "https://evilcdn.example.com",
        "https://xlms.example.com",
        "evil.com",
        "Go to EVIL.COM, now",
        "(evil.com/prize)",
        "lms/evil.com",
        "lms.evil.co.uk",
        "lms.example.com.evil.xyz",
        "lms.example.com.evil.unheard-of",
        "asp.net",
        "bücher.de",
        "mail ada@lms.example.com,evil.com",
        "evil.com.@",
        "evil.com@ x",
        "@evil.com",
    ],
)
def test_foreign_links_in_text(text: str) -> None:
    for field, email in {
        "text": custom(text=text),
        "html": custom(f"<p>{text}</p>"),
        "subject": custom(text="x", subject=text.replace("\u200b", ".")),
    }.items():
        assert set(faults(STRICT, email)) == {field}


@pytest.mark.parametrize(
    "html",
    [
        '<a href="https://evil.example">https://lms.example.com</a>',
        "<A HREF='https://evil.example'>x</A>",
        "<a href=https://evil.example>x</a>",
        '<a href="&#104;ttps://evil.example">x</a>',
        '<a href="ht\ntps://evil.example">x</a>',
        '<a href="https://e\tvil.example">x</a>',
        '<a href=" https://evil.example">x</a>',
        '<a href="https:\\\\evil.example">x</a>',
        '<a href="https:/evil.example">x</a>',
        '<a href="https:evil.example">x</a>',
        '<a href="https://evil.example\\@lms.example.com">x</a>',
        '<a href="https://evil.example&#92;@lms.example.com">x</a>',
        '<a href="https://lms.example.com @evil.example">x</a>',
        '<a href="https://lms.example.com@evil.example">x</a>',
        '<img src="https://evil.example/pixel.png" alt="">',
        '<img src="https://lms.example.com/x.png" alt="https://evil.example">',
        "<p>https://<b>evil.example</b></p>",
        "<p>https://lms.example.com<b>.evil.example</b></p>",
        '<p>https://lms.example.com<img src="https://lms.example.com/x.png" alt="">.evil.example</p>',
        "<p>&#119;ww.evil.example</p>",
        "<p>x<b>www.evil.example</b></p>",
        "<p>www.<wbr>evil.example</p>",
        "<p>evil.com</p>",
        "<p>evil<b>.com</b></p>",
        '<a href="https://lms.example.com">evil.com</a>',
        '<p>evil.com<a href="https://lms.example.com"></a>x</p>',
        '<p>https://<a href="https://lms.example.com">evil.example</a></p>',
    ],
)
def test_foreign_links_in_html(html: str) -> None:
    assert set(faults(STRICT, custom(f"<p>x</p>{html}"))) == {"html"}
    if "></a>" in html:
        return  # a link in the text made of it only
    assert set(faults(STRICT, custom(f"<p>x</p>{html}", "A text of its own"))) == {"html"}


@pytest.mark.parametrize(
    "html",
    [
        "<p>https://lms.example.com</p><p>Next</p>",
        "<p>https://lms.example.com<br>Next</p>",
        "<ul><li>https://lms.example.com</li><li>two</li></ul>",
        "<table><tr><td>https://lms.example.com</td><td>two</td></tr></table>",
        '<a href="mailto:ada@other.example">write</a>',
        '<a href="#top">x</a> <a href="/relative">y</a> <a href="//evil.example">loses its target</a>',
        '<a href="evil.com">x</a> <a href="www.evil.example">y</a> <a href="/\\evil.com">these too</a>',
        '<a href="javascript:evil()">loses its target</a>',
        '<p style="background:url(https://evil.example)">x</p>',
        "<p>x</p><script>location='https://evil.example'</script><!-- https://evil.example -->",
    ],
)
def test_our_own_links_in_html(html: str) -> None:
    assert faults(STRICT, custom(html)) == {}


def test_hosts_are_compared_as_browsers_do() -> None:
    policy = Policy(link_hosts=("LMS.Exämple.com", "*.Bücher.example"))
    for link in (
        "https://lms.exämple.com",
        "https://LMS.xn--exmple-cua.com",
        "https://a.bücher.example",
        "https://b.xn--bcher-kva.example",
    ):
        email = CertificateEmail(to="ada@example.com", name="Ada", course_name="Maths", certificate_url=link)
        assert faults(policy, email) == {}
        assert faults(policy, custom(text=link)) == {}
    assert set(faults(policy, custom(text="https://xbücher.example"))) == {"text"}
    assert set(faults(policy, custom(text="https://bücher.example"))) == {"text"}


_pieces = st.sampled_from(
    [
        *("https://", "http:", "//", "www.", "evil.example", "lms.example.com", ".", "@", "\\", "/", " ", "x", "\n"),
        *("evil", ".com", "-"),
        *("<b>", "</b>", "<p>", "</p>", "<br>", "<i>", "<a href='https://lms.example.com'>", "</a>", "<td>", "<sub>"),
        *("<li>", "<span>", "<img src='https://lms.example.com/x' alt='", "'>", "<wbr>", "&amp;", "&nbsp;", "&#47;"),
    ]
)


@settings(max_examples=300, deadline=None)  # a busy machine is no fault
@given(st.lists(_pieces, max_size=14).map("".join))
def test_the_text_made_of_html_holds_no_link_that_was_not_checked(html: str) -> None:
    if faults(STRICT, custom(f"x{html}")):
        return
    text = text_of(sanitise(f"x{html}"))
    for link in re.findall(
        r"(?:https?://|\bwww\.)[^\s<>\"')]*[\w/]|(?<![\w./-])(?<!\w@)[\w-]+(?:\.[\w-]+)*\.com\b(?!@)", text
    ):
        host = host_of(link if "://" in link else f"https://{link}")
        assert host in (*HOSTS, None) or (host or "").endswith(".cdn.example.com"), (link, text)


# What custom mail shows


@pytest.mark.parametrize(
    "html",
    [
        "<p></p>",
        "<p> &nbsp;\n</p><br><hr>",
        "&#8203;",
        "<script>alert(1)</script>",
        "<style>p{}</style><title>x</title>",
        "<!-- nothing -->",
        '<img src="data:image/png;base64,AAAA" alt="">',
        '<img alt="">',
        '<a href="https://lms.example.com"></a>',
        "<table><tr><td></td></tr></table>",
    ],
)
def test_html_that_shows_nothing(html: str) -> None:
    for policy in (Policy(), STRICT):
        assert set(faults(policy, custom(html))) == {"html"}
        assert set(faults(policy, custom(html, "A text of its own"))) == {"html"}


@pytest.mark.parametrize(
    "html",
    ["x", "<p>.</p>", "<script>x</script>x", "👍", '<img src="https://lms.example.com/x.png">', '<img alt="A cat">'],
)
def test_html_that_shows_something(html: str) -> None:
    for policy in (Policy(), STRICT):
        assert faults(policy, custom(html)) == {}


def test_html_that_nests_too_deep() -> None:
    deep = custom("<div>" * 100 + "x", subject="https://evil.example")
    assert "nest" in faults(Policy(), deep)["html"]
    assert set(faults(STRICT, deep)) == {"html", "subject"}


@pytest.mark.parametrize(
    "unit",
    [
        *("a", "a.", ".", "://", "www.", "www..", "a://", "é", "<br>", "&amp;", "<!--", "<a href=", "https://"),
        *("com.", "a.com@", "a-", "a.com.", "a@", "-.com"),
    ],
)
def test_half_a_megabyte_is_checked_in_seconds(unit: str) -> None:
    body = unit * (499_000 // len(unit))
    begun = time.process_time()
    for email in (custom(f"x{body}x"), custom(text=f"x{body}x")):
        faults(STRICT, email)
    assert time.process_time() - begun < 10


@pytest.mark.parametrize("unit", ["<p>x", "<li>", "<br>", "<hr>", "<table><tr><td>x</table>", "<b>x</b>", "</p>"])
def test_the_work_that_a_body_makes_is_bounded(unit: str) -> None:
    """The parsers take ten microseconds a tag: half a megabyte of <p> took eight seconds."""
    most = custom("x" + unit * (20_000 // unit.count("<")))
    begun = time.process_time()
    assert faults(STRICT, most) == {}
    assert time.process_time() - begun < 3
    begun = time.process_time()
    assert "at most 20,000 tags" in faults(STRICT, custom("x" + unit * (499_000 // len(unit))))["html"]
    assert time.process_time() - begun < 0.1


# Who may get mail


@pytest.mark.parametrize("address", ["ada@lms.test", "ada@x.LMS.Test"])
def test_recipients_under_test(address: str) -> None:
    email = WelcomeEmail(to=address, name="Ada")
    assert set(faults(Policy(), email)) == {"to"}
    assert faults(Policy(test_domains=True), email) == {}
    assert faults(Policy(), WelcomeEmail(to="ada@test.example.com", name="Ada")) == {}


def test_every_fault_at_once() -> None:
    email = CustomEmail(
        to="ada@lms.test", subject="www.evil.example", html="<p></p>", text="See https://evil.example/"
    )
    assert set(faults(STRICT, email)) == {"to", "subject", "html", "text"}

"""The scorer of the mails: a good mail keeps every limit, and each way of breaking it moves the limit it should.

The good mail is written out here and not taken from the templates, so that these tests say something about the
scorer alone. All mails are measured together, since starting the tools is most of what they cost.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from urllib.request import urlopen

import pytest

import browser
import document
import node
import score
from limits import MEANING
from mail.rendering import Rendered
from marks import MARKS, Measured, judge
from samples import Mail, as_sent
from support.needs import missing
from support.tripwire import tripwire

pytestmark = pytest.mark.timeout(300)  # the first test measures all mails, on a machine that may be busy

URL = "https://lms.example.com/reset?token=q3nTq0Vw8m2Zt7Ls"
SUBJECT = "Choose a new password"
CELL = '<td bgcolor="#1f5eff" style="background-color:#1f5eff;mso-padding-alt:14px 28px">'
LABEL = "display:inline-block;padding:12px 28px;background-color:#1f5eff;color:#ffffff;text-decoration:none"
LEAD = "<p>Someone, we hope it was you, asked for a new password for your account at the academy.</p>"
SMALL = '<p class="quiet" style="color:#525c69;font-size:14px">'
NOTE = f"{SMALL}The link works for an hour. If it was not you, ignore this mail.</p>"
# SpamAssassin suspects display:none in the first 80 characters of a style.
STYLE = "margin:0;padding:0;font-family:-apple-system,'Segoe UI',Roboto,Helvetica,Arial,sans-serif;display:none"
PREHEADER = f'<div style="{STYLE}">Someone asked for one. The link inside works for an hour.</div>'

HTML = f"""<!DOCTYPE html>
<html lang="en" dir="ltr">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{SUBJECT}</title>
<style>
@media (prefers-color-scheme: dark) {{
.page {{ background-color: #14171c !important; color: #e8eaed !important; }}
.quiet {{ color: #b3bac4 !important; }}
}}
</style>
</head>
<body class="page" style="margin:0;background-color:#ffffff;color:#1b2430">
{PREHEADER}
<main>
<table role="presentation" width="100%" cellpadding="0" cellspacing="0">
<tbody><tr><td style="font-family:sans-serif;font-size:16px;line-height:1.6;word-break:break-word">
<h1>{SUBJECT}</h1>
{LEAD}
<table role="presentation" cellpadding="0" cellspacing="0">
<tbody><tr>{CELL}
<a href="{URL}" style="{LABEL}">Choose it here</a>
</td></tr></tbody>
</table>
{SMALL}If the button does not work, copy this address into your browser:<br>
<a class="quiet" href="{URL}" style="color:#525c69">{URL}</a></p>
{NOTE}
</td></tr></tbody>
</table>
</main>
</body>
</html>
"""
TEXT = f"""{SUBJECT}

Someone, we hope it was you, asked for a new password for your account at
the academy. Choose it here, or copy this address into your browser:

{URL}

The link works for an hour. If it was not you, ignore this mail.
"""

Change = Callable[[str], str]


def swap(old: str, new: str) -> Change:
    def change(part: str) -> str:
        assert old in part, f"the good mail has no {old}"
        return part.replace(old, new)

    return change


def same(part: str) -> str:
    return part


FAR_TOO_WIDE = '<table role="presentation" width="600"><tbody><tr><td>{}</td></tr></tbody></table>'
RESCUED = "@media (max-width: 600px) { .fixed { width: 100% !important; } }\n</style>"

# What is broken, how the HTML and the text part differ, and every limit that must then fall short.
BROKEN: list[tuple[str, Change, Change, set[str]]] = [
    ("too much HTML", swap("</main>", f"</main>\n<!--{' padding' * 1500} -->"), same, {"L1"}),
    ("too much CSS", swap("</style>", ".none { color: #123456; }\n" * 160 + "</style>"), same, {"L1"}),
    (
        "CSS that many mail programs lack",
        swap(
            "line-height:1.6", "line-height:1.6;text-shadow:none;outline:0;overflow:visible;opacity:1;box-shadow:none"
        ),
        same,
        {"L2"},
    ),
    ("an id twice", lambda html: html.replace(SMALL, SMALL.replace("<p ", '<p id="small" ')), same, {"L3"}),
    ("no language", swap(' lang="en"', ""), same, {"L3", "L4", "L11"}),
    ("no direction", swap(' dir="ltr"', ""), same, {"L11"}),
    ("no main landmark", lambda html: html.replace("<main>", "").replace("</main>", ""), same, {"L4"}),
    (
        "no dark colours",
        lambda html: html[: html.index("<style>")] + html[html.index("</style>") + 8 :],
        same,
        {"L4"},
    ),
    ("dark colours that forget the small print", swap(".quiet {", ".loud {"), same, {"L4", "L6"}),
    ("dark colours that change nothing", swap("#14171c", "#ffffff"), same, {"L4", "L6"}),
    ("a fixed width", swap(LEAD, FAR_TOO_WIDE.format(LEAD)), same, {"L5"}),
    (
        "a fixed width that only a media query mends",
        lambda html: swap("</style>", RESCUED)(
            swap(LEAD, FAR_TOO_WIDE.replace(' width="600"', ' class="fixed" style="width:600px"').format(LEAD))(html)
        ),
        same,
        {"L5"},
    ),
    (
        "a word that reaches out of the window to the left",
        swap("<p>Some", '<p style="margin-left:-40px">Some'),
        same,
        {"L5"},
    ),
    (
        "an accent on which forced dark makes the label unreadable",
        lambda html: html.replace("#1f5eff", "#bc8d00").replace("color:#ffffff;text", "color:#000000;text"),
        same,
        {"L6"},
    ),
    ("small print too faint", lambda html: html.replace("color:#525c69", "color:#a8aaaf"), same, {"L4", "L7"}),
    (
        "white text on a background picture",
        swap("<p>Some", '<p style="background-image:url(https://lms.example.com/x.png);color:#ffffff">Some'),
        same,
        {"L7", "L10"},
    ),
    (
        "a picture in place of words",
        swap(NOTE, '<p><img src="https://lms.example.com/words.png" alt="" width="280" height="80"></p>'),
        same,
        {"L7", "L10"},
    ),
    # axe says nothing of text in the very colour of its background.
    ("white on white", lambda html: html.replace("#1f5eff", "#ffffff"), same, {"L6", "L7", "L8", "L10"}),
    ("a button of 39 px", swap("padding:12px 28px", "padding:6.7px 28px"), same, {"L8"}),
    ("a button without bgcolor", swap(' bgcolor="#1f5eff"', ""), same, {"L8"}),
    ("a button that is flat in Outlook", swap(";mso-padding-alt:14px 28px", ""), same, {"L8"}),
    ("a second button", swap(CELL, f'{CELL}<a href="{URL}" style="{LABEL}">Or choose here</a><br>'), same, {"L8"}),
    (
        "a plain link in place of the button",
        lambda html: swap(LABEL, "color:inherit")(swap(CELL, "<td>")(html)),
        same,
        {"L8"},
    ),
    ("no raw link under the button", swap(f">{URL}</a>", ">this address</a>"), same, {"L9"}),
    ("a text part without the link", same, swap(URL, "(the link)"), {"L9"}),
    ("a text part with another link", same, swap(URL, f"{URL}x"), {"L9"}),
    ("a text part with tags", same, swap("Choose it here", "<b>Choose it here</b>"), {"L9"}),
    ("a text part that says little", same, lambda text: f"{SUBJECT}: {URL}\n", {"L9"}),
    (
        "a label that SpamAssassin takes for hidden",
        lambda html: html.replace("background-color:#1f5eff;", ""),
        same,
        {"L10"},
    ),
    (
        "a preview text of one coloured pixel",
        swap(STYLE, "font-size:1px;line-height:1px;color:#ffffff"),
        swap("Choose it here", "Choose it inside, here"),
        {"L4", "L7", "L10", "L11"},
    ),
    ("no preview text", swap(PREHEADER, ""), same, {"L11"}),
    (
        "a short preview text",
        swap("Someone asked for one. The link inside works for an hour.", "See inside"),
        same,
        {"L11"},
    ),
    ("a preview text that repeats the subject", swap("Someone asked for one", f"{SUBJECT} now"), same, {"L11"}),
    ("another title", swap("<title>Choose", "<title>Please choose"), same, {"L11"}),
    ("two headings", swap(LEAD, f"<h1>Hello</h1>{LEAD}"), swap("Someone", "Hello. Someone"), {"L11"}),
    ("small type", swap("font-size:14px", "font-size:12px"), same, {"L11"}),
    ("a body of 15 px", swap("font-size:16px", "font-size:15px"), same, {"L11"}),
    ("a layout table without a role", swap('<table role="presentation" cell', "<table cell"), same, {"L11"}),
    (
        "a picture without alternative text",
        swap("<h1>", '<img src="https://lms.example.com/dot.png" width="8" height="8"><h1>'),
        same,
        {"L3", "L4", "L10", "L11"},
    ),
]


@pytest.fixture(scope="module")
def tools() -> None:
    """Skips where the tools are not installed, or fails; see needs.py."""
    lacks = score.missing()
    if not node.AXE.exists() and not os.environ.get("REQUIRE_ALL"):
        lacks.append("the packages of Node are not installed: run tools/mails/score.py")
    if lacks:
        missing("; ".join(lacks))


def mail(html: str = HTML, text: str = TEXT) -> Mail:
    return as_sent("password_reset", Rendered(SUBJECT, html, text))


@pytest.fixture(scope="module")
def measured(tools: None) -> Mapping[str, Measured]:
    """What was measured of the good mail, as "", and of all broken ones by what is broken."""
    mails = {"": mail()} | {what: mail(html(HTML), text(TEXT)) for what, html, text, _ in BROKEN}
    return dict(zip(mails, score.measure(list(mails.values())), strict=True))


def short(measured: Measured) -> dict[str, tuple[str, ...]]:
    return {limit: mark.faults for limit, mark in judge(measured).items() if mark.faults}


def test_a_good_mail_keeps_every_limit(measured: Mapping[str, Measured]) -> None:
    assert short(measured[""]) == {}
    assert list(judge(measured[""])) == list(MEANING) == [f"L{number}" for number in range(1, 12)]


@pytest.mark.parametrize(("what", "limits"), [(what, limits) for what, _, _, limits in BROKEN])
def test_a_broken_mail_falls_short_where_it_is_broken(
    measured: Mapping[str, Measured], what: str, limits: set[str]
) -> None:
    assert short(measured[what]).keys() == limits


def test_a_variant_is_spared_the_limits_that_it_names(measured: Mapping[str, Measured]) -> None:
    broken = measured["too much CSS"]
    spared = replace(broken, mail=replace(broken.mail, spared=frozenset({"L1"})))

    assert short(spared) == {}
    assert judge(spared)["L1"].figure == judge(broken)["L1"].figure


def test_every_limit_is_moved_by_some_break() -> None:
    assert set().union(*(limits for *_, limits in BROKEN)) == set(MARKS)


def test_the_command_says_what_falls_short_and_where_and_exits_with_1(
    measured: Mapping[str, Measured], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(score, "measure", lambda mails: [measured["small type"]])

    assert score.main([]) == 1

    out = capsys.readouterr().out
    assert "16 / 12 px ✗" in out
    assert (
        'L11 password_reset: a.quiet "https://lms.example.com/reset?token=q..." is set in 12 px, at least 13' in out
    )


def test_the_command_exits_with_0_when_nothing_falls_short(
    measured: Mapping[str, Measured], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score, "measure", lambda mails: [measured[""]])

    assert score.main([]) == 0


def test_a_missing_tool_is_named_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")

    with pytest.raises(SystemExit) as ended:
        score.main([])

    assert ended.value.code == 2
    assert "spamassassin is not installed: apt-get install spamassassin" in capsys.readouterr().err


def test_the_page_is_out_of_date_when_a_figure_or_a_picture_is(
    measured: Mapping[str, Measured],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(document, "measure", lambda mails: [measured[""]])
    monkeypatch.setattr(document, "PAGE", tmp_path / "mails.md")
    monkeypatch.setattr(document, "PICTURES", tmp_path / "mails")
    assert document.main([]) == 0
    written = document.PAGE.read_text(encoding="utf-8")
    assert document.main(["--check"]) == 0

    figure = judge(measured[""])["L8"].figure
    document.PAGE.write_text(written.replace(figure, "50.0 px, 5.1:1"), encoding="utf-8")
    assert document.main(["--check"]) == 1
    assert figure in capsys.readouterr().out

    versions = written.replace(document.MEASURED_WITH, f"{document.MEASURED_WITH}another ")
    assert versions != written
    document.PAGE.write_text(versions, encoding="utf-8")
    assert document.main(["--check"]) == 0
    (document.PICTURES / "welcome-dark.png").unlink()
    assert document.main(["--check"]) == 1
    assert "welcome-dark.png" in capsys.readouterr().out


def test_pictures_are_small_and_differ_by_view(tools: None) -> None:
    with browser.inspector() as chromium:
        pictures = {name: chromium.photograph(mail(), view) for name, view in browser.VIEWS.items()}

    assert all(picture.startswith(b"\x89PNG\r\n") and len(picture) < 60_000 for picture in pictures.values())
    assert len(set(pictures.values())) == len(pictures) - 1, "only without pictures is the good mail as it is"
    assert pictures["light"] == pictures["pictures-off"]


def test_no_request_leaves_the_browser(tools: None) -> None:
    with tripwire() as wire, browser.inspector() as chromium:
        links = f'<link rel="stylesheet" href="{wire.url}/css"><style>@import url({wire.url}/import);'
        pictures = f'<img src="{wire.url}/picture" alt=""><p style="background-image:url({wire.url}/background)"></p>'

        chromium.see(mail(HTML.replace("<style>", links).replace("<h1>", f"{pictures}<h1>")))

        assert wire.connections == 0
        with urlopen(f"{wire.url}/control") as answer:
            assert answer.status == 200
    assert wire.paths == {"/control"}

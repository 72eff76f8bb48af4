"""The cheap checks beside a mail in the gallery."""

import pytest

from api.console.looks import Look, look_over
from mail.rendering import Rendered

HEAD = b"Date: x\r\nFrom: x\r\nTo: x\r\nMessage-ID: x\r\nSubject: x\r\nMIME-Version: 1.0\r\n\r\n"
DARK = (
    "<style>\n@media (prefers-color-scheme: dark) {\n.quiet { color: #555555 !important; }\n"
    ".card { background-color: #222222 !important; }\n}\n</style>"
)


def looks(html: str, *, subject: str = "Hello", text: str = "Hello there", message: bytes = HEAD) -> dict[str, Look]:
    return {one.what: one for one in look_over(Rendered(subject, html, text), message)}


@pytest.mark.parametrize(
    ("html", "light", "dark"),
    [
        ("<p>black on white</p>", "21.0", "18.7"),
        ('<p style="color:#999999">pale</p>', "2.8", "6.6"),
        ('<div style="background-color:#999999"><b style="color:#ffffff">pale</b></div>', "2.8", "2.8"),
        ('<p style="color:#999999;display:none">hidden</p><p>seen</p>', "21.0", "18.7"),
        ('<p style="color:#999999">  </p>seen<br><img src="x">', "21.0", "18.7"),
        ('<p style="color:red">a name is not looked at</p>', "21.0", "21.0"),
        (f'{DARK}<p class="quiet card" style="color:#000000">dark in the dark</p>', "21.0", "2.1"),
        (f'{DARK}<p class="card" style="color:#000000">only its back is dark</p>', "21.0", "1.3"),
        ("</p></div>never opened", "21.0", "18.7"),
    ],
)
def test_the_least_contrast(html: str, light: str, dark: str) -> None:
    found = looks(html)
    for scheme, least in (("light", light), ("dark", dark)):
        look = found[f"Contrast, {scheme}"]
        assert (look.found, look.well) == (f"at least {least} to 1", float(least) >= 4.5)


@pytest.mark.parametrize(
    ("what", "html", "more"),
    [
        ("Links", '<a href="ftp://x.example">x</a>', {}),
        ("Pictures", '<img src="x">', {}),
        ("Language", "<p>x</p>", {}),
        ("HTML", "<p>" + "x" * 102_000, {}),
        ("Text has every link", '<a href="https://x.example/1">x</a>', {}),
        ("Text part", "<p>x</p>", {"text": " "}),
        ("Subject", "<p>x</p>", {"subject": "x" * 79}),
        ("Headers", "<p>x</p>", {"message": b"From: x\r\n\r\n"}),
    ],
)
def test_what_is_not_well(what: str, html: str, more: dict[str, str]) -> None:
    good = '<html lang="en"><img alt="" src="x"><a href="https://x.example">x</a></html>'
    well = looks(good, text="see https://x.example")
    assert all(one.well for one in well.values())
    assert not looks(html, **more)[what].well

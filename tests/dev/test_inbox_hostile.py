"""Mail that attacks its reader: in a real Chromium, with a server that notes all that gets out.

Each attack is first shown to work in an ordinary page, so that its silence in the inbox means something.
"""

from collections.abc import Iterator

import pytest
from playwright.sync_api import BrowserContext, Error, Frame, Page, expect

from support.browser import chromium_profile
from support.inbox import Inbox
from support.processes import wait_until
from support.tripwire import Tripwire, tripwire

# What a script of the mail would do: `URL` is the tripwire's, with the attack's name as its path.
ACT = "top.tripped=1;new Image().src='URL';try{alert(1)}catch{}"

SCRIPTS = {
    "script": "<script>ACT</script>",
    "script-src": "<script src='URL'></script>",
    "script-module": "<script type=module src='URL'></script>",
    "onerror": '<img src="x:" onerror="ACT">',
    "onload-svg": '<svg onload="ACT"></svg>',
    "onload-body": '<body onload="ACT">',
    "svg-script": "<svg><script>ACT</script></svg>",
    "svg-script-href": "<svg><script href='URL'></script></svg>",
    "ontoggle": '<details open ontoggle="ACT">x</details>',
    "onanimationstart": '<style>@keyframes k{}</style><p style="animation:k 1s" onanimationstart="ACT">x',
    "comment-closed-early": "<!--><script>ACT</script>-->",
    "comment-in-title": "<title><!--</title><script>ACT</script>-->",
    "noscript": '<noscript><p title="</noscript><img src=x: onerror="ACT">">',
    "frame-breakout": "</iframe></body></html><script>ACT</script>",
    "attribute-breakout": "\"'></iframe><script>ACT</script>",
    "own-policy": "<meta http-equiv=Content-Security-Policy content='script-src *'><script src='URL'></script>",
    "iframe-srcdoc": "<iframe srcdoc='<script>ACT_</script>'></iframe>",
    "iframe-javascript": '<iframe src="javascript:ACT"></iframe>',
    "object-data": "<object data=\"data:text/html,<img src='URL'>\"></object>",
    "svg-onbegin": '<svg><animate onbegin="ACT" attributeName=x dur=1s></svg>',
    "input-onfocus": '<input autofocus onfocus="ACT">',
}
LOADS = {
    "iframe-src": "<iframe src='URL'></iframe>",
    "iframe-nested": "<iframe srcdoc=\"<img src='URL'>\"></iframe>",
    "frameset": "<frameset><frame src='URL'></frameset>",
    "object": "<object data='URL'></object>",
    "embed": "<embed src='URL'>",
    "video": "<video src='URL' preload=auto></video>",
    "audio": "<audio src='URL' preload=auto></audio>",
    "video-source": "<video preload=auto><source src='URL'></video>",
    "stylesheet": "<link rel=stylesheet href='URL'>",
    "preload": "<link rel=preload as=image href='URL'>",
    "prefetch": "<link rel=prefetch href='URL'>",
    "modulepreload": "<link rel=modulepreload href='URL'>",
    "css-import": "<style>@import url('URL');</style>",
    "css-font": "<style>@font-face{font-family:f;src:url('URL')}p{font-family:f}</style><p>x",
    "svg-use": "<svg><use href='URL#x'></svg>",
    "svg-filter": "<svg style=\"filter:url('URL#x')\"><rect width=9 height=9></svg>",
    "meta-refresh": "<meta http-equiv=refresh content='0;url=URL'>",
    "meta-refresh-late": "<body>x<meta http-equiv=refresh content='0.1;url=URL'>",
    "base": "<base href='URL/'><img src='relative'>",
}
# All that asks for a picture. These are loaded when the reader says so, and only these.
IMAGES = {
    "img": "<img src='URL'>",
    "img-unquoted": "<img/src=URL>",
    "img-relative-scheme": "<img src='RELATIVE'>",
    "srcset": "<img srcset='URL 1x'>",
    "picture": "<picture><source srcset='URL'><img></picture>",
    "input-image": "<input type=image src='URL'>",
    "poster": "<video poster='URL'></video>",
    "background-attribute": "<table background='URL'><tr><td>x</table>",
    "background-body": "<body background='URL'>x",
    "css-url": "<style>p{background:url('URL')}</style><p>x",
    "css-inline": "<p style=\"background:url('URL')\">x",
    "css-image-set": "<p style=\"background:image-set('URL' 1x)\">x",
    "css-list": "<ul style=\"list-style-image:url('URL')\"><li>x</ul>",
    "css-content": "<style>p::before{content:url('URL')}</style><p>x",
    "css-mask": "<p style=\"mask-image:url('URL')\">x",
    "svg-image": "<svg><image href='URL'></svg>",
}
ATTACKS = {**SCRIPTS, **LOADS, **IMAGES}
TABS = 2  # the inbox, and the empty one that keeps Chromium alive


def armed(name: str, wire: Tripwire) -> str:
    html = ATTACKS[name].replace("ACT_", ACT.replace("'", "&quot;")).replace("ACT", ACT)
    return html.replace("URL", f"{wire.url}/{name}").replace("RELATIVE", f"{wire.url}/{name}".removeprefix("http:"))


@pytest.fixture
def wire() -> Iterator[Tripwire]:
    with tripwire() as wire:
        yield wire


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrowserContext]:
    with chromium_profile(tmp_path_factory.mktemp("profile")) as context:
        context.set_default_timeout(20_000)
        yield context


@pytest.fixture
def context(profile: BrowserContext) -> Iterator[BrowserContext]:
    """Without tabs at the end, but for the empty one that keeps Chromium alive."""
    yield profile
    for page in profile.pages[1:]:
        page.close()


@pytest.fixture
def page(context: BrowserContext, inbox: Inbox) -> Iterator[Page]:
    """The inbox page. It must end as it began: at the same place, with no dialog and no trace of a script."""
    page = context.new_page()
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    page.goto(inbox.url)
    page.evaluate("window.untouched = true")
    yield page
    assert page.evaluate("window.untouched && !window.tripped && document.cookie === ''")
    assert page.url.startswith(f"{inbox.url}/")
    assert dialogs == []


def send_html(inbox: Inbox, html: str, head: str = "") -> str:
    """The id of the mail."""
    inbox.send(f"{head}Content-Type: text/html; charset=utf-8\r\n\r\n{html}\r\n".encode())
    return str(inbox.listing()["messages"][0]["ID"])


def open_mail(page: Page, mail_id: str) -> Frame:
    """The frame with its HTML, once it and all that it holds is loaded."""
    page.evaluate("id => { location.hash = id }", mail_id)
    return loaded_frame(page, f"/view/{mail_id}.html")


def loaded_frame(page: Page, path: str) -> Frame:
    handle = page.wait_for_selector(f'#canvas iframe[src="{path}"]')
    assert handle is not None
    frame = handle.content_frame()
    assert frame is not None
    frame.wait_for_url(f"**{path}", wait_until="load")
    return frame


def show_all(page: Page, inbox: Inbox, wire: Tripwire, *, remote: bool) -> None:
    """Open a mail of every attack, and at last one that may reach the tripwire: what came before is there by then."""
    for name in ATTACKS:
        mail_id = send_html(inbox, armed(name, wire))
        open_mail(page, mail_id)
        if remote:
            page.evaluate("document.getElementById('load').click()")  # also where the page sees nothing to load
            loaded_frame(page, f"/view/{mail_id}.html?remote=1")
    frame = open_mail(page, send_html(inbox, f"<a href='{wire.url}/last'>last</a>"))
    with page.context.expect_page() as opened:
        frame.click("a")
    opened.value.wait_for_load_state()
    opened.value.close()
    wait_until(lambda: "/last" in wire.paths)


def test_every_attack_works_in_an_ordinary_page(context: BrowserContext, wire: Tripwire) -> None:
    for name in ATTACKS:
        # No dialogs: one of many at once would block all the others.
        wire.pages[f"/page/{name}"] = "<!doctype html>" + armed(name, wire).replace("alert(1)", "")
    wire.pages["/all"] = "".join(f"<iframe src='/page/{name}'></iframe>" for name in ATTACKS)
    context.new_page().goto(f"{wire.url}/all", wait_until="commit")
    # `base` has something behind the name.
    wait_until(lambda: {path.split("/")[1] for path in wire.paths} == set(ATTACKS), what="every attack to act")


def test_no_mail_acts(page: Page, inbox: Inbox, wire: Tripwire) -> None:
    show_all(page, inbox, wire, remote=False)
    assert wire.paths == {"/last"}
    assert len(page.context.pages) == TABS


def test_once_asked_for_images_are_loaded_and_nothing_else(page: Page, inbox: Inbox, wire: Tripwire) -> None:
    show_all(page, inbox, wire, remote=True)
    assert wire.paths == {"/last", *(f"/{name}" for name in IMAGES)}
    assert not any("referer" in headers for path, headers in wire.requests if path != "/favicon.ico")
    assert len(page.context.pages) == TABS


@pytest.mark.parametrize(
    "html",
    [
        "<link rel=preconnect href='URL'>",
        "<LINK\nrel='preconnect' href='URL'>",
        "<link/rel=preconnect href='URL'>",
        "<iframe srcdoc=\"&lt;link rel=preconnect href='URL'&gt;\"></iframe>",
    ],
)
def test_no_connection_is_opened_ahead(
    page: Page, context: BrowserContext, inbox: Inbox, wire: Tripwire, html: str
) -> None:
    with tripwire() as control:
        control.pages["/"] = f"<!doctype html>{html.replace('URL', wire.url)}"
        other = context.new_page()
        other.goto(f"{control.url}/")
        wait_until(lambda: wire.connections, what="an ordinary page to connect")
        other.close()
    with tripwire() as fresh:  # to a server already connected to, no second connection is needed
        frame = open_mail(
            page, send_html(inbox, html.replace("URL", fresh.url) + f"<a href='{wire.url}/last'>last</a>")
        )
        with context.expect_page() as opened:
            frame.click("a")
        opened.value.wait_for_load_state()
        opened.value.close()
        assert fresh.connections == 0


def test_a_mail_cannot_use_the_inbox_itself(page: Page, inbox: Inbox) -> None:
    other = send_html(inbox, "<p>unread")
    address = f"/api/v1/message/{other}"
    mail_id = send_html(inbox, f"<img src='{address}'><img src='{inbox.url}{address}'><iframe src='/'></iframe>")
    open_mail(page, mail_id)
    page.get_by_role("button", name="Load images").click()
    loaded_frame(page, f"/view/{mail_id}.html?remote=1")
    assert {mail["ID"]: mail["Read"] for mail in inbox.listing()["messages"]} == {other: False, mail_id: True}


LINKS = {
    "plain": "<a href='URL'>x</a>",
    "with-opener": "<a href='URL' rel=opener target=_blank referrerpolicy=unsafe-url>x</a>",
    "named": "<a href='URL' target=other>x</a>",
    "top": "<a href='URL' target=_top>x</a>",
    "self": "<a target=\"_self\" href='URL'>x</a>",
    "parent": "<a class=a TARGET = '_parent' href='URL'>x</a>",
    "referrer": "<meta name=referrer content=unsafe-url><a href='URL'>x</a>",
    "base-target": "<base target=_top><a href='URL'>x</a>",
}


@pytest.mark.parametrize("name", LINKS)
def test_a_link_opens_a_tab_that_knows_nothing_of_the_inbox(
    page: Page, inbox: Inbox, wire: Tripwire, name: str
) -> None:
    wire.pages[f"/{name}"] = "<title>there</title>"
    frame = open_mail(page, send_html(inbox, LINKS[name].replace("URL", f"{wire.url}/{name}")))
    with page.context.expect_page() as opened:
        frame.click("a")
    there = opened.value
    expect(there).to_have_title("there")
    assert there.evaluate("[window.opener, document.referrer, window.name]") == [None, "", ""]
    ((_, headers),) = [request for request in wire.requests if request[0] == f"/{name}"]
    assert "referer" not in headers
    there.close()


DEAD = {
    "javascript": '<a href="javascript:ACT">x</a>',
    "javascript-broken": '<a href="java&#10;script:ACT">x</a>',
    "javascript-svg": '<svg><a xlink:href="javascript:ACT"><text y=20>x</text></a></svg>',
    "data": "<a href=\"data:text/html,<script>top.tripped=1;new Image().src='URL'</script>\">x</a>",
    "form": "<form action='URL'><a><button>x</button></a></form>",
    "form-post": "<form action='URL' method=post target=_blank><button><a>x</a></button></form>",
    "form-top": "<form action='URL' target=_top><a><input type=submit></a></form>",
    "formaction": "<form><a><button formaction='URL'>x</button></a></form>",
    "form-javascript": '<form action="javascript:ACT"><a><button>x</button></a></form>',
    "onclick": '<a onclick="ACT">x</a>',
}


@pytest.mark.parametrize("name", DEAD)
def test_a_click_or_a_key_starts_no_script_and_sends_no_form(
    page: Page, inbox: Inbox, wire: Tripwire, name: str
) -> None:
    html = DEAD[name].replace("ACT", ACT).replace("URL", f"{wire.url}/{name}")
    frame = open_mail(page, send_html(inbox, f"{html}<p><a id=last href='{wire.url}/last'>last</a>"))
    target = frame.locator("a, button, input").first
    target.click()
    target.click(modifiers=["Control"])
    target.click(button="middle")
    frame.locator("button, input, a").first.press("Enter")
    with page.context.expect_page(lambda opened: opened.url.startswith(wire.url)) as opened:
        frame.click("#last")
    opened.value.wait_for_load_state()
    assert wire.paths == {"/last"}
    for other in page.context.pages[TABS:]:
        assert other.url in {f"{wire.url}/last", "about:blank", f"{inbox.url}/view/about:blank"}
        assert not other.evaluate("window.tripped")


def test_a_ping_is_not_sent(page: Page, inbox: Inbox, wire: Tripwire) -> None:
    frame = open_mail(page, send_html(inbox, f"<a ping='{wire.url}/ping' href='{wire.url}/last'>x</a>"))
    with page.context.expect_page() as opened:
        frame.click("a")
    opened.value.wait_for_load_state()
    assert wire.paths == {"/last"}


def test_markup_outside_the_html_is_text(page: Page, inbox: Inbox, wire: Tripwire) -> None:
    evil = f"<img src={wire.url}/markup onerror=top.tripped=1><script>top.tripped=1</script>"
    mail = (
        f'From: "{evil}" <a@example.com>\r\nTo: "{evil}" <b@example.com>\r\nReply-To: "{evil}" <c@example.com>\r\n'
        f"Subject: {evil}\r\nX-Tags: {evil}\r\nX-Evil: {evil}\r\nDate: {evil}\r\n"
        "Content-Type: multipart/mixed; boundary=b\r\n\r\n"
        f"--b\r\nContent-Type: text/plain\r\n\r\n{evil} javascript:alert(1) data:text/html,x\r\n"
        f'--b\r\nContent-Type: {evil}; name="{evil}"\r\nContent-Disposition: attachment\r\n\r\nx\r\n--b--\r\n'
    )
    inbox.send(mail.encode())
    page.locator("#mails a").click()
    expect(page.locator("#subject")).to_have_text(evil)
    expect(page.locator("#mails .subject")).to_have_text(evil)
    expect(page.locator("#facts")).to_contain_text(f"{evil} <a@example.com>")
    expect(page.locator("#attachments a")).to_contain_text(evil)
    for tab in ("Text", "Headers", "Source"):
        page.get_by_role("tab", name=tab).click()
        expect(page.get_by_role("tabpanel", name=tab)).to_contain_text(evil)
    assert page.locator("main :is(img, script, iframe)").count() == 0
    assert page.locator("#panel-text a").evaluate_all("links => links.map((link) => link.protocol)") == ["http:"]
    page.fill("#query", evil)
    expect(page.locator("#status")).to_have_text("1 of 1 mail")
    page.fill("#query", f"{evil} nowhere")
    expect(page.locator("#sought")).to_have_text(f"{evil} nowhere")
    assert wire.paths == set()


@pytest.mark.parametrize("subtype", ["html", "xhtml+xml", "svg+xml", "javascript"])
def test_an_attachment_is_saved_and_never_shown(page: Page, inbox: Inbox, wire: Tripwire, subtype: str) -> None:
    script = f"<script>top.tripped=1;new Image().src='{wire.url}/x'</script>"
    content = f"<html xmlns='http://www.w3.org/1999/xhtml'>{script}</html>"
    inbox.send(
        "Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nhello\r\n"
        f"--b\r\nContent-Type: text/{subtype}\r\nContent-Disposition: attachment; filename=../../page.html\r\n\r\n"
        f"{content}\r\n--b--\r\n".encode()
    )
    page.locator("#mails a").click()
    link = page.locator("#attachments a")
    with page.expect_download() as saved:
        link.click()
    assert saved.value.suggested_filename == "-..-page.html"
    assert saved.value.path().read_text() == content
    other = page.context.new_page()
    with pytest.raises(Error, match="Download is starting"):
        other.goto(f"{inbox.url}{link.get_attribute('href')}")
    other.goto(f"{inbox.url}/api/v1/message/latest/raw")
    assert other.evaluate("document.contentType") == "text/plain"
    assert wire.paths == set()

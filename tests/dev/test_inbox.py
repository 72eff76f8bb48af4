"""The development inbox as its users meet it: a real process, spoken to over SMTP and HTTP."""

import hashlib
import re
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from email.message import EmailMessage
from email.policy import SMTP, SMTPUTF8
from urllib.parse import quote

import pytest

from support.inbox import Inbox, run, running

# What Mailpit answers, from its structs MessagesSummary, MessageSummary and Message.
LISTING_FIELDS = {
    *("total", "unread", "count", "messages_count", "messages_unread", "start", "tags", "messages"),
}
COMMON_FIELDS = {
    *("ID", "MessageID", "From", "To", "Cc", "Bcc", "ReplyTo", "Subject", "Username", "Tags", "Size", "Attachments"),
}
SUMMARY_FIELDS = COMMON_FIELDS | {"Read", "Created", "Snippet"}
MESSAGE_FIELDS = COMMON_FIELDS | {"ReturnPath", "ListUnsubscribe", "Date", "Text", "HTML", "Inline"}

PLAIN = b"From: a@example.com\r\nTo: b@example.com\r\nSubject: plain\r\n\r\nhello\r\n"


@pytest.fixture
def start_inbox() -> Iterator[Callable[..., Inbox]]:
    with ExitStack() as stack:
        yield lambda *options: stack.enter_context(running(*options))


def rich_mail() -> EmailMessage:
    mail = EmailMessage(policy=SMTP)
    mail["From"] = "LMS Academy <noreply@lms.example.com>"
    mail["To"] = "Zoë O'Brien <zoe@example.com>, bob@example.com"
    mail["Cc"] = '"Doe, Jane" <jane@example.com>'
    mail["Reply-To"] = "help@lms.example.com"
    mail["Subject"] = "Willkommen, Zoë – 欢迎"
    mail["Date"] = "Mon, 24 Nov 2025 10:00:00 +0100"
    mail["Message-ID"] = "<rich@lms.example.com>"
    mail["List-Unsubscribe"] = "<https://lms.example.com/u>, <mailto:u@lms.example.com>"
    mail["List-Unsubscribe-Post"] = "List-Unsubscribe=One-Click"
    mail.set_content("Guten Tag, Zoë\n")
    mail.add_alternative("<style>p{}</style><!-- x --><p>Guten&nbsp;Tag, <b>Zoë</b></p>", subtype="html")
    html = mail.get_payload()[1]
    html.add_related(b"\x89PNG", maintype="image", subtype="png", cid="<logo@lms>")
    mail.add_attachment(b"%PDF-1.7", maintype="application", subtype="pdf", filename="Zertifikat ü.pdf")
    return mail


# --- SMTP ----------------------------------------------------------------------------------------------------


def test_it_offers_what_the_sender_uses_and_no_more(inbox: Inbox) -> None:
    with inbox.smtp() as smtp:
        smtp.ehlo()
        assert set(smtp.esmtp_features) == {"size", "8bitmime", "smtputf8", "pipelining", "help"}
        assert smtp.esmtp_features["size"] == str(25 * 1024 * 1024)


def test_the_raw_bytes_are_those_that_were_sent(inbox: Inbox) -> None:
    raw = b"Subject: raw\r\nX-Odd:  two  spaces\t\r\n\r\n.\r\n..dots\r\n" + bytes(range(128, 256)) + b"\r\n\r\n \r\n"
    inbox.send(raw)
    mail = inbox.listing()["messages"][0]
    response = inbox.http.get(f"/api/v1/message/{mail['ID']}/raw")
    assert response.content == raw
    assert response.headers["content-type"].startswith("text/plain")
    assert mail["Size"] == len(raw)


def test_international_addresses_and_subject(inbox: Inbox) -> None:
    mail = EmailMessage(policy=SMTPUTF8)
    mail["From"] = "Zoë <zoë@exämple.com>"
    mail["To"] = "李雷 <李雷@例え.jp>"
    mail["Subject"] = "مرحبا 李雷"
    mail.set_content("你好\n")
    with inbox.smtp() as smtp:
        smtp.send_message(mail)
    message = inbox.get("/api/v1/message/latest")
    assert message["To"] == [{"Name": "李雷", "Address": "李雷@例え.jp"}]
    assert message["From"] == {"Name": "Zoë", "Address": "zoë@exämple.com"}
    assert message["ReturnPath"] == "zoë@exämple.com"
    assert message["Bcc"] == []
    assert message["Subject"] == "مرحبا 李雷"
    assert message["Text"].strip() == "你好"


@pytest.mark.parametrize("piece_size", [1, 7, 1_000_000])
def test_a_flight_of_two_mails_in_one_go(inbox: Inbox, piece_size: int) -> None:
    envelope = b"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.com>\r\nRCPT TO:<c@example.com>\r\nDATA\r\n"
    flight = (
        b"EHLO client.example.com\r\n"
        + b"".join(envelope + b"Subject: %d\r\n\r\nbody %d\r\n.\r\n" % (n, n) for n in (1, 2))
        + b"QUIT\r\n"
    )
    with socket.create_connection(("127.0.0.1", inbox.smtp_port), timeout=20) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for position in range(0, len(flight), piece_size):
            connection.sendall(flight[position : position + piece_size])
        with connection.makefile("r", encoding="utf-8") as replies:
            codes = [line[:3] for line in replies if line[3] == " "]
    assert codes == ["220", "250", *["250", "250", "250", "354", "250"] * 2, "221"]
    assert inbox.subjects() == ["2", "1"]
    assert inbox.get("/api/v1/message/latest")["Text"] == "body 2\r\n"


def test_recipients_whom_no_header_names_are_blind_copies(inbox: Inbox) -> None:
    inbox.send(PLAIN, to=["b@example.com", "hidden@example.com", "B@Example.com"])
    for shown in (inbox.listing()["messages"][0], inbox.get("/api/v1/message/latest")):
        assert shown["To"] == [{"Name": "", "Address": "b@example.com"}]
        assert shown["Bcc"] == [{"Name": "", "Address": "hidden@example.com"}]


def test_a_bounce_has_no_sender(inbox: Inbox) -> None:
    inbox.send(PLAIN, sender="")
    assert inbox.get("/api/v1/message/latest")["ReturnPath"] == ""


def test_too_large_a_mail_is_refused_and_the_session_goes_on(start_inbox: Callable[..., Inbox]) -> None:
    inbox = start_inbox("--max-message-bytes", "2000")
    with inbox.smtp() as smtp:
        smtp.ehlo()
        assert smtp.esmtp_features["size"] == "2000"
        assert smtp.mail("a@example.com", ["size=2001"])[0] == 552
        assert smtp.mail("a@example.com")[0] == 250
        assert smtp.rcpt("b@example.com")[0] == 250
        assert smtp.data(b"Subject: big\r\n\r\n" + (b"x" * 70 + b"\r\n") * 30)[0] == 552
        smtp.sendmail("a@example.com", "b@example.com", PLAIN)
    assert inbox.subjects() == ["plain"]


def test_many_connections_at_once(inbox: Inbox) -> None:
    with ExitStack() as stack:
        connections = [stack.enter_context(inbox.smtp()) for _ in range(60)]
        for number, smtp in enumerate(connections):
            smtp.sendmail("a@example.com", "b@example.com", b"Subject: %d\r\n\r\nx\r\n" % number)
    assert sorted(map(int, inbox.subjects(limit=100))) == list(range(60))


# --- REST ----------------------------------------------------------------------------------------------------


def test_an_empty_inbox(inbox: Inbox) -> None:
    assert inbox.listing() == {
        "total": 0,
        "unread": 0,
        "count": 0,
        "messages_count": 0,
        "messages_unread": 0,
        "start": 0,
        "tags": [],
        "messages": [],
    }
    assert inbox.http.get("/api/v1/message/latest").status_code == 404


def test_the_list_has_mailpits_shape(inbox: Inbox) -> None:
    inbox.send(rich_mail().as_bytes(), to=["zoe@example.com", "bob@example.com", "jane@example.com"])
    listing = inbox.listing()
    assert set(listing) == LISTING_FIELDS
    (mail,) = listing["messages"]
    assert set(mail) == SUMMARY_FIELDS
    assert mail["MessageID"] == "rich@lms.example.com"
    assert mail["Read"] is False
    assert mail["From"] == {"Name": "LMS Academy", "Address": "noreply@lms.example.com"}
    assert mail["To"] == [
        {"Name": "Zoë O'Brien", "Address": "zoe@example.com"},
        {"Name": "", "Address": "bob@example.com"},
    ]
    assert mail["Cc"] == [{"Name": "Doe, Jane", "Address": "jane@example.com"}]
    assert mail["Bcc"] == []
    assert mail["ReplyTo"] == [{"Name": "", "Address": "help@lms.example.com"}]
    assert mail["Subject"] == "Willkommen, Zoë – 欢迎"
    assert mail["Attachments"] == 1
    assert mail["Snippet"] == "Guten Tag, Zoë"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+\+00:00", mail["Created"])


def test_a_message_has_mailpits_shape(inbox: Inbox) -> None:
    inbox.send(rich_mail().as_bytes(), sender="bounces@lms.example.com")
    message = inbox.get(f"/api/v1/message/{inbox.listing()['messages'][0]['ID']}")
    assert set(message) == MESSAGE_FIELDS
    assert message["ReturnPath"] == "bounces@lms.example.com"
    assert message["Date"] == "2025-11-24T10:00:00+01:00"
    assert message["Text"] == "Guten Tag, Zoë\r\n"
    assert message["HTML"].strip() == "<style>p{}</style><!-- x --><p>Guten&nbsp;Tag, <b>Zoë</b></p>"
    assert message["ListUnsubscribe"] == {
        "Header": "<https://lms.example.com/u>, <mailto:u@lms.example.com>",
        "Links": ["https://lms.example.com/u", "mailto:u@lms.example.com"],
        "Errors": "",
        "HeaderPost": "List-Unsubscribe=One-Click",
    }
    assert message["Attachments"] == [
        {
            "PartID": "2",
            "FileName": "Zertifikat ü.pdf",
            "ContentType": "application/pdf",
            "ContentID": "",
            "Size": 8,
            "Checksums": {
                "MD5": hashlib.md5(b"%PDF-1.7").hexdigest(),
                "SHA1": hashlib.sha1(b"%PDF-1.7").hexdigest(),
                "SHA256": hashlib.sha256(b"%PDF-1.7").hexdigest(),
            },
        }
    ]
    (image,) = message["Inline"]
    assert (image["PartID"], image["ContentID"], image["FileName"]) == ("1.2.2", "logo@lms", "logo@lms")


def test_a_mail_without_a_text_part_has_no_text(inbox: Inbox) -> None:
    inbox.send(b"Content-Type: text/html\r\n\r\n<p>only html</p>\r\n")
    message = inbox.get("/api/v1/message/latest")
    assert (message["Text"], message["HTML"]) == ("", "<p>only html</p>\r\n")


def test_a_part_that_html_refers_to_is_inline(inbox: Inbox) -> None:
    head = b"Content-Type: multipart/related; boundary=b\r\n\r\n--b\r\nContent-Type: text/html\r\n\r\n<p>\r\n"
    inbox.send(head + b"--b\r\nContent-Type: image/png\r\nContent-ID: <logo>\r\n\r\nx\r\n--b--\r\n")
    message = inbox.get("/api/v1/message/latest")
    assert [part["ContentID"] for part in message["Inline"]] == ["logo"]
    assert message["Attachments"] == []


def test_reading_a_mail_marks_it_read(inbox: Inbox) -> None:
    inbox.send(b"Subject: first\r\n\r\n")
    inbox.send(b"Subject: second\r\n\r\n")
    assert inbox.listing()["unread"] == 2
    assert inbox.get("/api/v1/message/latest")["Subject"] == "second"
    listing = inbox.listing()
    assert (listing["unread"], listing["messages_unread"]) == (1, 1)
    assert [mail["Read"] for mail in listing["messages"]] == [True, False]


def test_paging(inbox: Inbox) -> None:
    with inbox.smtp() as smtp:
        for number in range(60):
            smtp.sendmail("a@example.com", "b@example.com", b"Subject: %d\r\n\r\n" % number)
    newest_first = [str(number) for number in reversed(range(60))]
    assert inbox.subjects() == newest_first[:50]
    assert inbox.subjects(start=2, limit=3) == newest_first[2:5]
    assert inbox.subjects(limit=0) == newest_first
    assert inbox.subjects(start="x", limit="-1") == newest_first[:50]
    page = inbox.listing(start=58)
    assert (page["start"], page["count"], page["total"], page["messages_count"]) == (58, 2, 60, 60)


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("zoe@", ["one"]),
        ("EXAMPLE.com", ["two", "one"]),
        ("to:bob", ["two"]),
        ("from:bob", []),
        ("bcc:hidden subject:tw", ["two"]),
        ('to:"Zoë O\'B"', ["one"]),
        ("bob one", []),
        ("in a body", ["two", "one"]),
        ('"the words"', ["one"]),
        ('"the words in', ["one"]),
        ("über-file", ["two"]),
        ("hidden words", []),
        ("-zoe@", ["two"]),
        ("!to:bob body", ["one"]),
        ("addressed:hidden", ["two"]),
        ("reply-to:help", ["one"]),
        ("cc:jane", ["one"]),
        ("message-id:1@lms", ["one"]),
        ("tag:WELC", ["one"]),
        ("welcome", ["one"]),
        ("is:tagged", ["one"]),
        ("is:unread", ["two", "one"]),
        ("is:read", []),
        ("has:attachment", ["two"]),
        ("-has:attachments", ["one"]),
        ("from:", ["two", "one"]),
        ("is:", ["two", "one"]),
        ("is:odd", []),
        ("http://x.test/path", ["one"]),
    ],
)
def test_search(inbox: Inbox, query: str, found: list[str]) -> None:
    inbox.send(
        "From: a@example.com\r\nTo: Zoë O'Brien <zoe@example.com>\r\nCc: jane@example.com\r\nSubject: one\r\n"
        "Message-ID: <1@lms.example.com>\r\nReply-To: help@example.com\r\nX-Tags: welcome, lms\r\n"
        "Content-Type: text/html\r\n\r\n<style>hidden</style><p>The <b>words</b> in a body, HTTP://x.test/path".encode()
    )
    inbox.send(
        "To: bob@example.com\r\nSubject: two\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
        "--b\r\n\r\nin a body\r\n"
        '--b\r\nContent-Disposition: attachment; filename="Über-File.pdf"\r\n\r\nx\r\n--b--'.encode(),
        to=["bob@example.com", "hidden@example.com"],
    )
    listing = inbox.get("/api/v1/search", query=query)
    assert [mail["Subject"] for mail in listing["messages"]] == found
    assert (listing["messages_count"], listing["total"]) == (len(found), 2)


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_a_search_needs_a_query(inbox: Inbox, method: str) -> None:
    inbox.send(PLAIN)
    assert inbox.http.request(method, "/api/v1/search", params={"query": " "}).status_code == 400
    assert inbox.listing()["total"] == 1


def test_deleting_what_a_search_finds(inbox: Inbox) -> None:
    for subject in (b"a1", b"b2", b"a3"):
        inbox.send(b"Subject: " + subject + b"\r\n\r\n")
    assert inbox.http.delete("/api/v1/search", params={"query": "subject:a"}).text == "ok"
    assert inbox.subjects() == ["b2"]


def test_tags_come_from_the_header_that_mailpit_reads(inbox: Inbox) -> None:
    inbox.send(b"X-Tags: welcome, =?utf-8?q?gr=C3=BCn?= ,,\r\n\r\n")
    assert inbox.listing()["messages"][0]["Tags"] == ["welcome", "grün"]
    assert inbox.get("/api/v1/message/latest")["Tags"] == ["welcome", "grün"]


NO_PART = ("/api/v1/message/latest/part/1", "/api/v1/message/latest/part/9", "/view/latest.html", "/view/nope.html")


@pytest.mark.parametrize("path", ["/api/v1/message/nope", "/api/v1/message/nope/raw", *NO_PART, "/nope"])
def test_what_is_not_there_is_a_404(inbox: Inbox, path: str) -> None:
    inbox.send(PLAIN)
    response = inbox.http.get(path)
    assert response.status_code == 404
    assert set(response.json()) == {"Error"}


def test_deleting_some(inbox: Inbox) -> None:
    for subject in (b"1", b"2", b"3"):
        inbox.send(b"Subject: " + subject + b"\r\n\r\n")
    ids = {mail["Subject"]: mail["ID"] for mail in inbox.listing()["messages"]}
    response = inbox.http.request("DELETE", "/api/v1/messages", json={"IDs": [ids["1"], ids["3"], "unknown"]})
    assert (response.status_code, response.text) == (200, "ok")
    assert inbox.subjects() == ["2"]
    assert inbox.http.get(f"/api/v1/message/{ids['1']}").status_code == 404


@pytest.mark.parametrize("body", [b"", b"{}", b'{"IDs": []}'])
def test_deleting_all(inbox: Inbox, body: bytes) -> None:
    inbox.send(PLAIN)
    assert inbox.http.request("DELETE", "/api/v1/messages", content=body).text == "ok"
    assert inbox.listing()["total"] == 0


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"IDs": "x"}', b"\xff"])
def test_an_unreadable_deletion_deletes_nothing(inbox: Inbox, body: bytes) -> None:
    inbox.send(PLAIN)
    response = inbox.http.request("DELETE", "/api/v1/messages", content=body)
    assert (response.status_code, set(response.json())) == (400, {"Error"})
    assert inbox.listing()["total"] == 1


# --- bounds --------------------------------------------------------------------------------------------------


def test_the_oldest_go_when_there_are_too_many(start_inbox: Callable[..., Inbox]) -> None:
    inbox = start_inbox("--max-messages", "5")
    with inbox.smtp() as smtp:
        for number in range(8):
            smtp.sendmail("a@example.com", "b@example.com", b"Subject: %d\r\n\r\n" % number)
    assert inbox.subjects() == ["7", "6", "5", "4", "3"]
    assert inbox.listing()["total"] == 5


def test_the_oldest_go_when_there_is_too_much(start_inbox: Callable[..., Inbox]) -> None:
    inbox = start_inbox("--max-bytes", "1000", "--max-message-bytes", "1000")
    for number in range(4):
        inbox.send(b"Subject: %d\r\n\r\n" % number + (b"x" * 98 + b"\r\n") * 4)
    assert inbox.subjects() == ["3", "2"]
    # What was deleted no longer counts.
    latest = inbox.get("/api/v1/message/latest")["ID"]
    inbox.http.request("DELETE", "/api/v1/messages", json={"IDs": [latest]})
    inbox.send(b"Subject: 4\r\n\r\n" + (b"x" * 98 + b"\r\n") * 4)
    assert inbox.subjects() == ["4", "2"]


def test_one_mail_must_fit_into_the_whole() -> None:
    ended = run("--max-bytes", "10", "--max-message-bytes", "11")
    assert ended.returncode == 2
    assert "--max-message-bytes must not be larger than --max-bytes" in ended.stderr


# --- mail that is broken -------------------------------------------------------------------------------------

BROKEN = {
    "empty": b"",
    "no headers": b"just a line",
    "unknown charset": b"Content-Type: text/plain; charset=klingon\r\n\r\nnuq\xffneH",
    "charset that is no text": b"Content-Type: text/html; charset=hex\r\n\r\nzz",
    "charset with NUL": b'Content-Type: text/plain; charset="u\0tf"\r\n\r\n\xff\xfe',
    "charset that makes surrogates": b"Content-Type: text/plain; charset=raw_unicode_escape\r\n\r\n\\ud800\\udc80",
    "wrong charset": b"Content-Type: text/plain; charset=utf-8\r\n\r\nGr\xfc\xdfe",
    "NUL": b"Subject: a\0b\r\nFrom: \0\r\n\r\na\0b",
    "8-bit headers": b"Subject: Gr\xfc\xdfe \xe6\x9d\x8e\r\nFrom: \xff <a@\xff>\r\nTo: <\xff\r\n\r\n",
    "encoded words": b"Subject: =?utf-8?b?abcde?=\r\nFrom: =?no?q?=FF?= =?unicode_escape?q?=5Cud800?=\r\n\r\n",
    "no boundary": b"Content-Type: multipart/mixed\r\n\r\n--x\r\n\r\npart\r\n",
    "boundary that never comes": b"Content-Type: multipart/mixed; boundary=b\r\n\r\nx",
    "not base64": b"Content-Type: text/html\r\nContent-Transfer-Encoding: base64\r\n\r\n*&^%\xff",
    "not uuencoded": b"Content-Transfer-Encoding: x-uuencode\r\n\r\nbegin 666 f\r\n\xff\r\n",
    "parameters": b"Content-Disposition: inline; filename*0*=utf-8''%ff; filename*=x\0''y; filename*1=a\r\n\r\n",
    "content type": b"Content-Type: \xff/;;=\r\n\r\nx",
    "dates": b"Date: Mon, 99 Foo 99999 99:99:99 +9999\r\n\r\n",
    "comments without end": b"To: " + b"\r\n ".join([b"(" * 900] * 3) + b"\r\n\r\n",
    "deeply nested": b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (n, n) for n in range(1100)
    ),
    "forwarded": b"Content-Type: message/rfc822\r\n\r\n" * 2000,
    "forwarded, unwritable": b"Content-Type: message/rfc822\r\n\r\nContent-Type: multipart/mixed\r\n\r\n\xff",
    "a great many parts": b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"--b\r\n" * 50_000,
    "a great many encoded words": b"Subject: " + b"=?utf-8?q?a?=\r\n " * 50_000 + b"\r\n\r\n",
    "markup": b"Content-Type: text/html\r\n\r\n<![foo[<!--<style>&#xd800;&#99999999999;<",
}


@pytest.mark.parametrize("raw", BROKEN.values(), ids=BROKEN)
def test_broken_mail_is_shown_all_the_same(inbox: Inbox, raw: bytes) -> None:
    inbox.send(PLAIN)
    with inbox.smtp() as smtp:
        smtp.ehlo()
        assert [smtp.mail("a@example.com")[0], smtp.rcpt("b@example.com")[0]] == [250, 250]
        assert smtp.data(raw)[0] == 250
    assert inbox.listing()["count"] == 2
    assert set(inbox.get("/api/v1/message/latest")) == MESSAGE_FIELDS
    assert inbox.http.get("/api/v1/message/latest/raw").content.startswith(raw)
    assert inbox.get("/api/v1/search", query="plain")["messages_count"] == 1


def test_a_header_beyond_reason_is_cut(inbox: Inbox) -> None:
    inbox.send(BROKEN["a great many encoded words"])
    assert 0 < len(inbox.subjects()[0]) < 50_000


def test_what_can_be_read_of_broken_mail_is_read(inbox: Inbox) -> None:
    inbox.send(b"Subject: Gr\xfc\xdfe \xe6\x9d\x8e\r\nFrom: nobody\r\n\r\nx\xffy")
    message = inbox.get("/api/v1/message/latest")
    assert message["Subject"] == "Gr��e 李"
    assert message["Text"] == "x�y\r\n"
    inbox.send(b"Content-Type: multipart/mixed\r\n\r\n--x\r\n\r\npart")
    assert "part" in inbox.get("/api/v1/message/latest")["Text"]


# --- other web sites -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["evil.example.com", "127.0.0.1.evil.example.com", "10.0.0.1:80", "[::1", ""])
def test_a_foreign_host_is_refused(inbox: Inbox, host: str) -> None:
    for path in ("/", "/api/v1/messages"):
        assert inbox.http.get(path, headers={"Host": host}).status_code == 400


@pytest.mark.parametrize("host", ["localhost:8025", "LOCALHOST", "127.0.0.1", "[::1]:8025"])
def test_loopback_hosts_are_accepted(inbox: Inbox, host: str) -> None:
    assert inbox.http.get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example.com", "null", "http://127.0.0.1:1", "http://[", ""])
def test_another_site_cannot_delete(inbox: Inbox, origin: str) -> None:
    inbox.send(PLAIN)
    response = inbox.http.delete("/api/v1/messages", headers={"Origin": origin})
    assert (response.status_code, set(response.json())) == (403, {"Error"})
    assert inbox.listing()["total"] == 1


def test_the_page_itself_may_delete(inbox: Inbox) -> None:
    inbox.send(PLAIN)
    assert inbox.http.delete("/api/v1/messages", headers={"Origin": inbox.url}).status_code == 200
    assert inbox.listing()["total"] == 0


def test_the_page_may_load_only_what_is_its_own(inbox: Inbox) -> None:
    page = inbox.http.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert '<html lang="en">' in page.text
    assert "<title>Inbox</title>" in page.text
    policy = page.headers["content-security-policy"].split("; ")
    assert {"default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"} <= set(policy)
    assert {"require-trusted-types-for 'script'", "trusted-types 'none'"} <= set(policy)
    assert not any("unsafe" in part for part in policy)
    assert page.headers["cross-origin-opener-policy"] == "same-origin"
    assert page.headers["x-content-type-options"] == "nosniff"
    assets = re.findall(r'(?:href|src)="([\w.]+)"', page.text)
    assert set(assets) == {"chaos.js", "icon.svg", "inbox.css", "inbox.js"}
    for asset in assets:
        assert inbox.http.get(f"/{asset}").status_code == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_page_of_another_site_may_only_link_here(inbox: Inbox, site: str) -> None:
    inbox.send(PLAIN)
    path = f"/api/v1/message/{inbox.listing()['messages'][0]['ID']}"
    for dest in ("image", "script", "empty", "iframe"):
        assert inbox.http.get(path, headers={"Sec-Fetch-Site": site, "Sec-Fetch-Dest": dest}).status_code == 403
    assert inbox.listing()["unread"] == 1
    linked = inbox.http.get("/", headers={"Sec-Fetch-Site": site, "Sec-Fetch-Dest": "document"})
    assert linked.status_code == 200


def test_the_source_of_a_mail_is_never_taken_for_a_page(inbox: Inbox) -> None:
    inbox.send(b"<script>alert(1)</script>")
    headers = inbox.http.get("/api/v1/message/latest/raw").headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-type"].startswith("text/plain")


def test_the_html_of_a_mail_is_a_document_in_a_sandbox(inbox: Inbox) -> None:
    inbox.send(b"Content-Type: text/html; charset=latin1\r\n\r\n<!DOCTYPE html>\n<p>Gr\xfc\xdfe")
    shown = inbox.http.get("/view/latest.html")
    assert shown.text == '<!DOCTYPE html><base target="_blank">\n<p>Grüße\r\n'
    assert shown.headers["content-type"] == "text/html; charset=utf-8"
    policy = shown.headers["content-security-policy"].split("; ")
    sandbox = "sandbox allow-popups allow-popups-to-escape-sandbox"
    assert {"default-src 'none'", "img-src data:", "frame-ancestors 'self'", sandbox} <= set(policy)
    asked = inbox.http.get("/view/latest.html", params={"remote": "1"}).headers["content-security-policy"]
    assert set(asked.split("; ")) - set(policy) == {"img-src data: http: https:"}
    assert inbox.listing()["unread"] == 1


def test_an_image_shown_very_often_does_not_fill_the_memory(inbox: Inbox) -> None:
    head = b"Content-Type: multipart/related; boundary=b\r\n\r\n--b\r\nContent-Type: text/html\r\n\r\n"
    image = b"--b\r\nContent-Type: image/png\r\nContent-ID: <i>\r\n\r\n" + (b"x" * 998 + b"\r\n") * 1000
    inbox.send(head + b"<img src=cid:i>\r\n" * 1000 + image + b"--b--\r\n")
    size = len(inbox.http.get("/view/latest.html").content)
    assert 10_000_000 < size < 70_000_000


def test_parts_and_mails_are_handed_out_as_files(inbox: Inbox) -> None:
    inbox.send(rich_mail().as_bytes())
    part = inbox.http.get("/api/v1/message/latest/part/2")
    assert (part.content, part.headers["content-type"]) == (b"%PDF-1.7", "application/pdf")
    assert part.headers["content-disposition"] == "attachment; filename*=utf-8''Zertifikat%20%C3%BC.pdf"
    assert inbox.http.get("/api/v1/message/latest/part/1.2.2").content == b"\x89PNG"
    saved = inbox.http.get("/api/v1/message/latest/raw", params={"dl": "1"})
    assert saved.content == inbox.http.get("/api/v1/message/latest/raw").content
    name = "Willkommen%2C%20Zo%C3%AB%20%E2%80%93%20%E6%AC%A2%E8%BF%8E.eml"
    assert saved.headers["content-disposition"] == f"attachment; filename*=utf-8''{name}"


@pytest.mark.parametrize(
    ("filename", "saved_as"),
    [
        ("../../etc/passwd", "-..-etc-passwd"),
        ("a\u202egpj.exe", "a-gpj.exe"),
        ('"><script>', "-script-"),
        ("...", "unnamed"),
        ("a\tb\x7f\x80", "a-b-"),
    ],
)
def test_a_file_name_holds_nothing_that_misleads(inbox: Inbox, filename: str, saved_as: str) -> None:
    encoded = quote(filename, safe="")
    inbox.send(
        f"Content-Type: \xff/;x\r\nContent-Disposition: attachment; filename*=utf-8''{encoded}\r\n\r\nx".encode()
    )
    headers = inbox.http.get("/api/v1/message/latest/part/0").headers
    assert headers["content-disposition"] == f"attachment; filename*=utf-8''{quote(saved_as)}"


# --- live ----------------------------------------------------------------------------------------------------


def test_every_change_is_told_to_those_who_listen(inbox: Inbox) -> None:
    with inbox.http.stream("GET", "/api/events") as events:
        assert events.headers["content-type"].startswith("text/event-stream")
        told = (line for line in events.iter_lines() if line.startswith("data:"))
        assert next(told) == "data: changed"
        for change in (
            lambda: inbox.send(PLAIN),
            lambda: inbox.get("/api/v1/message/latest"),
            lambda: inbox.http.delete("/api/v1/search", params={"query": "plain"}),
            lambda: inbox.http.delete("/api/v1/messages"),
        ):
            change()
            assert next(told) == "data: changed"


def test_those_who_listen_do_not_hold_up_the_end(start_inbox: Callable[..., Inbox]) -> None:
    inbox = start_inbox()
    with inbox.http.stream("GET", "/api/events") as events:
        lines = events.iter_lines()
        assert next(lines).startswith("retry:")
        inbox.process.terminate()
        assert "data: changed" in list(lines)  # had it been cut off, reading to the end would raise


# --- the process ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_clients_connected(start_inbox: Callable[..., Inbox], number: signal.Signals) -> None:
    inbox = start_inbox()
    inbox.send(b"Subject: big\r\n\r\n" + (b"x" * 998 + b"\r\n") * 20_000)
    stalled = socket.create_connection(("127.0.0.1", int(inbox.url.rpartition(":")[2])), timeout=20)
    with stalled, inbox.smtp() as smtp:
        inbox.listing()  # leaves a connection that is kept alive
        stalled.sendall(b"GET /api/v1/message/latest/raw HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert stalled.recv(12) == b"HTTP/1.1 200"  # and reads no further
        smtp.ehlo()
        smtp.mail("a@example.com")
        smtp.rcpt("b@example.com")
        assert smtp.docmd("DATA")[0] == 354
        smtp.send("half a ma")
        inbox.process.send_signal(number)
        assert inbox.process.wait(timeout=5) == 0
        smtp.close()


@pytest.mark.parametrize("option", ["--smtp-port", "--http-port"])
def test_a_taken_port_is_named_in_one_line(option: str) -> None:
    other = {"--smtp-port": "--http-port", "--http-port": "--smtp-port"}[option]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = run(option, port, other, "0")
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (1, "", 1)
    for word in ("Address already in use", port, option):
        assert word in ended.stderr

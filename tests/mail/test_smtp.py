"""The SMTP transport over sockets: every protection, the message as it is, the pool."""

import os
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Literal

import pytest
import trustme

from mail.errors import (
    ServerBusy,
    ServerUnavailable,
    TransientError,
)
from mail.smtp import Envelope, Security
from mail.smtp_replies import Reply
from support.smtp_client import ADA, MESSAGE, PASSWORD, USER, Connect
from support.smtp_server import SmtpServer

# The main way.


@pytest.mark.parametrize("auth", [None, (USER, PASSWORD)], ids=["no auth", "auth"])
@pytest.mark.parametrize(
    ("tls", "security"),
    [
        (None, Security.NONE),
        (None, Security.AUTO),
        ("starttls", Security.STARTTLS),
        ("starttls", Security.AUTO),
        ("tls", Security.TLS),
    ],
)
def test_sends(
    connect: Connect,
    certificate: trustme.LeafCert,
    tls: Literal["starttls", "tls"] | None,
    security: Security,
    auth: tuple[str, str] | None,
) -> None:
    with SmtpServer(tls=tls, auth=auth, certificate=certificate) as server:
        reply = connect(server, security=security).send(ADA, MESSAGE)
        assert reply == Reply(250, "2.0.0 taken")
        [received] = server.messages
    assert received.data == MESSAGE
    assert (received.sender, received.recipients) == (ADA.sender, (ADA.recipient,))
    assert received.encrypted == (tls is not None and security is not Security.NONE)
    assert received.user == (USER if auth else None)


def test_auto_uses_tls_from_the_start_on_port_465(
    connect: Connect, certificate: trustme.LeafCert, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Port 465 needs root; the socket is led to the server's own port.
    real = socket.create_connection
    with SmtpServer(tls="tls", certificate=certificate) as server:
        monkeypatch.setattr(
            socket, "create_connection", lambda address, *rest: real((address[0], server.port), *rest)
        )
        connect(server, port=465).send(ADA, MESSAGE)
        assert server.messages[0].encrypted
        monkeypatch.undo()


def test_none_leaves_starttls_alone(connect: Connect, certificate: trustme.LeafCert) -> None:
    with SmtpServer(tls="starttls", certificate=certificate) as server:
        connect(server, security=Security.NONE).send(ADA, MESSAGE)
        assert not server.messages[0].encrypted


def test_auth_login_where_plain_is_not_offered(connect: Connect) -> None:
    with SmtpServer(auth=(USER, PASSWORD), mechanisms=("CRAM-MD5", "LOGIN")) as server:
        connect(server).send(ADA, MESSAGE)
        assert server.messages[0].user == USER


def test_a_password_from_an_environment_that_is_not_utf8(connect: Connect) -> None:
    password = os.fsdecode(b"caf\xe9")
    with SmtpServer(auth=(USER, password)) as server:
        connect(server, password=password).send(ADA, MESSAGE)
        assert server.messages[0].user == USER


def test_a_multi_line_reply_becomes_one_clean_line(connect: Connect, server: SmtpServer) -> None:
    server.reply("dot", "250-2.0.0 first\r\n250-\x1b[31mr\xe9d\tand\r\n250 " + 600 * "x")
    reply = connect(server).send(ADA, MESSAGE)
    assert reply.code == 250
    assert reply.text.startswith("2.0.0 first [31mréd and xxx")
    assert len(reply.text) == 500


def test_says_one_name_in_every_ehlo(connect: Connect, server: SmtpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    connect(server, helo_name="mail.lms.example").send(ADA, MESSAGE)
    assert server.commands[0] == (1, "ehlo mail.lms.example")
    transport = connect(server, max_messages=1)
    transport.send(ADA, MESSAGE)

    def no_dns() -> str:
        raise AssertionError("looked its own name up again")

    monkeypatch.setattr(socket, "getfqdn", no_dns)
    transport.send(ADA, MESSAGE)
    names = [line for _, line in server.commands if line.startswith("ehlo")]
    assert names[1] == names[2]


# The message arrives as it is.


@pytest.mark.parametrize(
    "body",
    [
        b".\r\n..\r\n...\r\n.hidden\r\n",
        b".",
        b"a\r\n.\r\nMAIL FROM:<eve@example.com>\r\nRCPT TO:<eve@example.com>\r\nDATA\r\n",
        b"bare\n.\nline feeds\n.\r\n",
        b"x" * 998 + b"\r\n",
        b"8 bits: \xc3\xa9 \xff\r\n",
        b"0123456789abcdef\r\n." * 50_000,
        b"",
    ],
    ids=["dots", "only a dot", "smuggled mail", "bare LF", "long line", "8bit", "950 kB", "empty"],
)
@pytest.mark.parametrize("headers", [b"Subject: x\r\n\r\n", b""], ids=["headers", "no headers"])
def test_the_message_arrives_intact(connect: Connect, server: SmtpServer, headers: bytes, body: bytes) -> None:
    transport = connect(server)
    transport.send(ADA, headers + body)
    transport.send(ADA, MESSAGE)
    sent = headers + body
    assert [received.data for received in server.messages] == [
        sent if sent.endswith(b"\r\n") else sent + b"\r\n",
        MESSAGE,
    ]
    assert server.connections == 1


def test_smtputf8_recipient_and_8bit_body_are_declared(connect: Connect, server: SmtpServer) -> None:
    transport = connect(server)
    message = "Subject: ü\r\n\r\n".encode()
    transport.send(Envelope("noreply@example.com", "zoë@exämple.com"), message)
    transport.send(Envelope("noreply@example.com", "ada@example.com", smtputf8=True), MESSAGE)
    transport.send(ADA, MESSAGE)
    first, second, third = server.messages
    assert first.recipients == ("zoë@exämple.com",)
    assert set(first.mail_options) == {f"SIZE={len(message)}", "BODY=8BITMIME", "SMTPUTF8"}
    assert "SMTPUTF8" in second.mail_options
    assert third.mail_options == (f"SIZE={len(MESSAGE)}",)


@pytest.mark.parametrize(
    "recipient",
    ["a" * 64 + "@example.com", '"quoted, with > and space"@example.com', "o'brien+tag@xn--exmple-cua.com"],
)
def test_unusual_recipients_arrive_unchanged(connect: Connect, server: SmtpServer, recipient: str) -> None:
    connect(server).send(Envelope("noreply@example.com", recipient), MESSAGE)
    assert server.messages[0].recipients == (recipient,)


EVIL = "eve@example.com>\r\nRCPT TO:<bob@example.com"


@pytest.mark.parametrize("envelope", [replace(ADA, sender=EVIL), replace(ADA, recipient=EVIL)])
def test_an_address_cannot_carry_a_command(connect: Connect, server: SmtpServer, envelope: Envelope) -> None:
    with pytest.raises(ValueError, match="newline"):
        connect(server).send(envelope, MESSAGE)
    server.wait_until(lambda: server.open_connections == 0)
    assert server.messages == []
    assert not any("bob" in line for _, line in server.commands)


# The pool.


def test_ten_mails_take_one_connection(connect: Connect, server: SmtpServer) -> None:
    transport = connect(server)
    for _ in range(10):
        transport.send(ADA, MESSAGE)
    assert [received.session for received in server.messages] == [1] * 10
    assert server.verbs() == ["EHLO", *["MAIL", "RCPT", "DATA"] * 10]
    transport.close()
    server.wait_until(lambda: server.open_connections == 0)
    assert server.verbs()[-1] == "QUIT"


def test_recycles_by_count(connect: Connect, server: SmtpServer) -> None:
    transport = connect(server, max_messages=3)
    for _ in range(7):
        transport.send(ADA, MESSAGE)
    assert [received.session for received in server.messages] == [1, 1, 1, 2, 2, 2, 3]
    server.wait_until(lambda: server.open_connections == 1)
    assert server.verbs(1)[-1] == server.verbs(2)[-1] == "QUIT"


def test_recycles_by_age(connect: Connect, server: SmtpServer) -> None:
    transport = connect(server, max_age=0.0)
    for _ in range(3):
        transport.send(ADA, MESSAGE)
    assert [received.session for received in server.messages] == [1, 2, 3]
    server.wait_until(lambda: server.open_connections == 0)


def test_closes_what_was_idle_for_too_long(connect: Connect, server: SmtpServer) -> None:
    transport = connect(server, max_idle=0.0)
    for _ in range(2):
        transport.send(ADA, MESSAGE)
    assert [received.session for received in server.messages] == [1, 2]
    server.wait_until(lambda: server.open_connections == 1)
    assert server.verbs(1)[-1] == "QUIT"


def test_proves_an_idle_connection_alive(connect: Connect, server: SmtpServer) -> None:
    transport = connect(server, idle_check=0.0)
    transport.send(ADA, MESSAGE)
    transport.send(ADA, MESSAGE)
    assert server.connections == 1
    assert server.verbs()[-4:] == ["NOOP", "MAIL", "RCPT", "DATA"]


IDLE = pytest.mark.parametrize("idle_check", [0.0, 60.0], ids=["found by NOOP", "found by MAIL"])


@IDLE
@pytest.mark.parametrize("farewell", [None, "421 4.4.2 idle for too long"])
def test_a_connection_closed_while_idle_is_no_error(
    connect: Connect, server: SmtpServer, idle_check: float, farewell: str | None
) -> None:
    transport = connect(server, idle_check=idle_check)
    transport.send(ADA, MESSAGE)
    server.close_sessions(farewell)
    server.wait_until(lambda: server.open_connections == 0)
    transport.send(ADA, MESSAGE)
    assert [received.session for received in server.messages] == [1, 2]


@IDLE
def test_a_restarted_server_is_no_error(connect: Connect, server: SmtpServer, idle_check: float) -> None:
    transport = connect(server, idle_check=idle_check)
    transport.send(ADA, MESSAGE)
    server.stop()
    server.start()
    transport.send(ADA, MESSAGE)
    assert [received.session for received in server.messages] == [1, 2]


@pytest.mark.parametrize("text", ["421 4.7.0 too many mails in this session", "500 5.5.1 unknown"])
def test_a_kept_connection_that_is_refused_is_replaced(connect: Connect, server: SmtpServer, text: str) -> None:
    transport = connect(server, idle_check=0.0)
    transport.send(ADA, MESSAGE)
    server.reply("mail" if text.startswith("421") else "noop", text, times=1)
    transport.send(ADA, MESSAGE)
    assert [received.session for received in server.messages] == [1, 2]


def test_a_dead_connection_is_replaced_only_once(connect: Connect, server: SmtpServer) -> None:
    transport = connect(server)
    transport.send(ADA, MESSAGE)
    server.reply("mail", "421 4.3.2 shutting down")
    with pytest.raises(ServerBusy):
        transport.send(ADA, MESSAGE)
    assert server.connections == 2
    server.clear()
    server.cut("mail")
    with pytest.raises(ServerUnavailable):
        transport.send(ADA, MESSAGE)
    assert server.connections == 3


@pytest.mark.parametrize("stage", ["rcpt", "data", "dot-before-store", "dot-after-store"])
def test_a_kept_connection_lost_after_mail_is_an_attempt(connect: Connect, server: SmtpServer, stage: Any) -> None:
    server.pipelining = False
    transport = connect(server)
    transport.send(ADA, MESSAGE)
    server.cut(stage, times=1)
    with pytest.raises(TransientError):
        transport.send(ADA, MESSAGE)
    assert server.connections == 1


@pytest.mark.parametrize(
    ("stage", "text"), [("mail", "451 4.7.1 slow down"), ("rcpt", "421 4.3.2 down"), ("dot", "421 4.3.2 down")]
)
def test_a_busy_server_is_not_asked_twice(connect: Connect, server: SmtpServer, stage: Any, text: str) -> None:
    transport = connect(server)
    transport.send(ADA, MESSAGE)
    server.reply(stage, text, times=1)
    with pytest.raises(ServerBusy):
        transport.send(ADA, MESSAGE)
    assert server.connections == 1


def test_a_connection_in_steady_use_is_not_idle(connect: Connect, server: SmtpServer) -> None:
    transport = connect(server, idle_check=0.5, max_idle=0.5)
    server.delay("dot", 0.3)
    for _ in range(3):
        transport.send(ADA, MESSAGE)
    assert server.connections == 1
    assert "NOOP" not in server.verbs()


def test_eight_threads_share_a_transport(connect: Connect, server: SmtpServer) -> None:
    transport = connect(server, max_messages=7)
    server.delay("dot", 0.002)
    numbers = range(160)

    def send(number: int) -> Reply:
        body = f"Subject: {number}\r\n\r\n{number}\r\n".encode()
        return transport.send(Envelope(ADA.sender, f"user{number}@example.com"), body)

    with ThreadPoolExecutor(8) as pool:
        assert {reply.code for reply in pool.map(send, numbers)} == {250}
    assert sorted(received.recipients for received in server.messages) == sorted(
        (f"user{number}@example.com",) for number in numbers
    )
    for received in server.messages:
        assert received.recipients == (f"user{received.message['Subject']}@example.com",)
    assert server.open_connections <= 8
    assert -(-160 // 7) <= server.connections <= -(-160 // 7) + 8
    transport.close()
    server.wait_until(lambda: server.open_connections == 0)


def test_close_lets_a_mail_under_way_finish(connect: Connect, server: SmtpServer) -> None:
    transport = connect(server)
    server.delay("dot", 0.2)
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(transport.send, ADA, MESSAGE)
        server.wait_until(lambda: "DATA" in server.verbs())
        transport.close()
        assert sending.result().code == 250
    server.wait_until(lambda: server.open_connections == 0)
    assert server.verbs()[-1] == "QUIT"


def test_the_tls_context_is_made_once(
    connect: Connect, tls_server: SmtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    real = ssl.create_default_context

    def create_default_context() -> ssl.SSLContext:
        made.append(real())
        return made[-1]

    monkeypatch.setattr(ssl, "create_default_context", create_default_context)
    transport = connect(tls_server, max_messages=1)
    for _ in range(3):
        transport.send(ADA, MESSAGE)
    assert tls_server.connections == 3
    assert len(made) == 1

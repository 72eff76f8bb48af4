"""How the SMTP transport fails: every reply, break and silence at every stage, TLS faults, the password."""

import logging
import socket
import ssl
import traceback
from base64 import b64encode
from typing import Any, Literal

import pytest
import trustme

from mail.errors import (
    DeliveryError,
    OutcomeUnknown,
    PermanentError,
    ServerBusy,
    ServerRefuses,
    ServerUnavailable,
    TransientError,
)
from mail.smtp import Envelope, Security, SmtpConfig, SmtpTransport
from mail.smtp_replies import Reply, Stage, refusal
from mail.smtp_session import may_auth_in_clear
from support.smtp_client import ADA, MESSAGE, PASSWORD, USER, Connect
from support.smtp_server import Authority, SmtpServer

# Replies: which error, and what becomes of the connection.

REPLIES = [
    ("connect", "421 4.3.2 closing", ServerBusy),
    ("connect", "450 4.7.1 greylisted", ServerBusy),
    ("connect", "554 5.7.1 blocked", ServerRefuses),
    ("connect", "SSH-2.0-OpenSSH_9.2", ServerRefuses),
    ("ehlo", "421 4.3.2 closing", ServerBusy),
    ("ehlo", "451 4.3.0 later", ServerBusy),
    ("ehlo", "550 5.7.1 bad name", ServerRefuses),
    ("starttls", "454 4.7.0 TLS not available", ServerBusy),
    ("starttls", "502 5.5.1 no", ServerRefuses),
    ("auth", "421 4.7.0 too many logins", ServerBusy),
    ("auth", "454 4.7.0 backend down", ServerBusy),
    ("auth", "432 4.7.12 password transition needed", ServerBusy),
    ("auth", "535 5.7.8 wrong", ServerRefuses),
    ("auth", "534 5.7.9 too weak", ServerRefuses),
    ("auth", "538 5.7.11 encryption required", ServerRefuses),
    ("mail", "421 4.7.0 slow down", ServerBusy),
    ("mail", "454 4.7.0 throttled", ServerBusy),
    ("mail", "451 4.7.1 slow down", ServerBusy),
    ("mail", "452 4.3.1 no space", ServerBusy),
    ("mail", "530 5.7.0 log in", ServerRefuses),
    ("mail", "535 5.7.8 log in", ServerRefuses),
    ("mail", "550 5.7.1 sender refused", ServerRefuses),
    ("mail", "553 5.7.1 not your address", ServerRefuses),
    ("mail", "354 what", ServerRefuses),
    ("mail", "552 5.3.4 too large", PermanentError),
    ("rcpt", "421 4.7.0 slow down", ServerBusy),
    ("rcpt", "454 4.7.1 throttled", ServerBusy),
    ("rcpt", "450 4.2.1 greylisted", TransientError),
    ("rcpt", "451 4.3.0 later", TransientError),
    ("rcpt", "452 4.2.2 mailbox full", TransientError),
    ("rcpt", "530 5.7.0 log in", ServerRefuses),
    ("rcpt", "550 5.1.1 no such user", PermanentError),
    ("rcpt", "552 5.2.2 mailbox full", PermanentError),
    ("rcpt", "553 5.1.3 bad address", PermanentError),
    ("rcpt", "554 5.7.1 refused", PermanentError),
    ("rcpt", "354 what", TransientError),
    ("rcpt", "hello", TransientError),
    ("data", "421 4.7.0 slow down", ServerBusy),
    ("data", "451 4.3.0 later", TransientError),
    ("data", "530 5.7.0 log in", ServerRefuses),
    ("data", "554 5.5.1 no", PermanentError),
    ("data", "250 what", TransientError),
    ("dot", "421 4.3.2 shutting down", ServerBusy),
    ("dot", "454 4.7.0 throttled", ServerBusy),
    ("dot", "451 4.3.0 later", TransientError),
    ("dot", "452 4.3.1 no space", TransientError),
    ("dot", "530 5.7.0 log in", ServerRefuses),
    ("dot", "550 5.7.1 spam", PermanentError),
    ("dot", "552 5.3.4 too large", PermanentError),
    ("dot", "354 more", OutcomeUnknown),
    ("dot", "hello", OutcomeUnknown),
]


@pytest.mark.parametrize("pipelining", [True, False])
@pytest.mark.parametrize(("stage", "text", "error"), REPLIES, ids=[f"{row[0]} {row[1]}" for row in REPLIES])
def test_what_a_reply_means(
    connect: Connect,
    certificate: trustme.LeafCert,
    stage: Any,
    text: str,
    error: type[DeliveryError],
    pipelining: bool,
) -> None:
    tls: Literal["starttls"] | None = "starttls" if stage == "starttls" else None
    with SmtpServer(tls=tls, auth=(USER, PASSWORD), certificate=certificate, pipelining=pipelining) as server:
        transport = connect(server)
        server.reply(stage, text)
        with pytest.raises(DeliveryError) as caught:
            transport.send(ADA, MESSAGE)
        assert type(caught.value) is error
        assert caught.value.stage == stage
        if text[0].isdigit():
            assert caught.value.code == int(text[:3])
            assert caught.value.reply == text[4:]
            assert text in str(caught.value)
        else:
            assert caught.value.code is None
            assert "not SMTP" in str(caught.value)
        assert f"127.0.0.1:{server.port}" in str(caught.value)
        assert server.messages == []

        # A refused mail leaves the connection fit for the next one; where the server is busy or refuses us, or
        # the reply fits no command, a new one is made.
        server.clear()
        transport.send(ADA, MESSAGE)
        kept = error in {PermanentError, TransientError} and text[0] in "45"
        # Where the server seems to have lost the order of a flight, the mail is tried once more step by step.
        doubted = pipelining and stage in {"mail", "rcpt", "data"} and text[:3] in {"354", "250", "hel"}
        assert server.connections == (1 if kept else 2) + doubted
        assert ("RSET" in server.verbs()) == kept


def test_a_connection_that_cannot_be_reset_is_dropped(connect: Connect, server: SmtpServer) -> None:
    transport = connect(server)
    server.reply("rcpt", "550 5.1.1 no such user", times=1)
    server.reply("rset", "500 5.5.1 what")
    with pytest.raises(PermanentError):
        transport.send(ADA, MESSAGE)
    transport.send(ADA, MESSAGE)
    assert server.messages[0].session == 2
    server.clear()
    server.reply("rcpt", "450 4.2.1 later", times=1)
    server.cut("rset")
    with pytest.raises(TransientError):
        transport.send(ADA, MESSAGE)
    transport.send(ADA, MESSAGE)
    assert server.messages[1].session == 3


def test_messages_are_readable() -> None:
    error = refusal("SMTP server mx:25", Stage.RCPT, Reply(550, "5.1.1 no such user"))
    assert str(error) == "SMTP server mx:25 answered RCPT with 550 5.1.1 no such user"
    assert SmtpConfig(host="::1", port=25).server == "SMTP server [::1]:25"


# Breaks and silence at every stage.

CUTS = [
    ("connect", ServerUnavailable),
    ("tls", ServerUnavailable),
    ("ehlo", ServerUnavailable),
    ("starttls", ServerUnavailable),
    ("auth", ServerUnavailable),
    ("mail", ServerUnavailable),
    ("rcpt", TransientError),
    ("data", TransientError),
    ("dot-before-store", OutcomeUnknown),
    ("dot-after-store", OutcomeUnknown),
]


@pytest.mark.parametrize(
    ("stage", "error", "reset"),
    # No RST before the handshake: there CPython's wrap_socket leaves the socket to the garbage collector.
    [(*row, reset) for row in CUTS for reset in (False, True) if not (reset and row[0] == "tls")],
)
def test_a_cut_line(
    connect: Connect, tls_server: SmtpServer, stage: Any, error: type[DeliveryError], reset: bool
) -> None:
    tls_server.pipelining = False
    transport = connect(tls_server)
    tls_server.cut(stage, times=1, reset=reset)
    with pytest.raises(DeliveryError) as caught:
        transport.send(ADA, MESSAGE)
    assert type(caught.value) is error
    assert caught.value.stage == stage.partition("-")[0]
    assert caught.value.code is None
    assert len(tls_server.messages) == (stage == "dot-after-store")
    transport.send(ADA, MESSAGE)
    assert tls_server.messages[-1].session == 2


@pytest.mark.parametrize(("stage", "error"), CUTS)
def test_silence(connect: Connect, tls_server: SmtpServer, stage: Any, error: type[DeliveryError]) -> None:
    patience = {"data_timeout": 0.2} if stage.startswith("dot") else {"timeout": 0.4}
    tls_server.pipelining = False
    transport = connect(tls_server, **patience)
    tls_server.delay(stage, 60, times=1)
    with pytest.raises(DeliveryError) as caught:
        transport.send(ADA, MESSAGE)
    assert type(caught.value) is error
    assert caught.value.stage == stage.partition("-")[0]
    assert f"no answer within {min(patience.values())} s" in str(caught.value)


def test_the_final_dot_has_a_patience_of_its_own(connect: Connect, server: SmtpServer) -> None:
    server.pipelining = False
    transport = connect(server, timeout=0.4)
    server.delay("dot", 0.7, times=1)
    assert transport.send(ADA, MESSAGE).code == 250
    server.delay("rcpt", 60, times=1)
    with pytest.raises(TransientError, match=r"within 0\.4 s"):
        transport.send(ADA, MESSAGE)


@pytest.mark.parametrize("tls", [None, "starttls"])
@pytest.mark.parametrize("how", ["cut", "stall"])
def test_a_break_in_the_middle_of_the_message_is_known_not_to_be_taken(
    connect: Connect, certificate: trustme.LeafCert, tls: Literal["starttls"] | None, how: str
) -> None:
    with SmtpServer(tls=tls, certificate=certificate) as server:
        transport = connect(server, timeout=0.5)
        if how == "cut":
            server.cut("body", times=1, reset=True)
        else:
            server.delay("body", 60, times=1)
        with pytest.raises(TransientError) as caught:
            transport.send(ADA, MESSAGE + 400_000 * (b"x" * 40 + b"\r\n"))
        assert type(caught.value) is TransientError
        assert caught.value.stage == "data"
        transport.send(ADA, MESSAGE)
        assert [received.data for received in server.messages] == [MESSAGE]


def test_nobody_listens(connect: Connect, server: SmtpServer) -> None:
    server.stop()
    with pytest.raises(ServerUnavailable) as caught:
        connect(server).send(ADA, MESSAGE)
    assert str(caught.value) == f"SMTP server 127.0.0.1:{server.port} cannot be reached: connection refused"
    assert caught.value.stage == "connect"


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 64 + ".example"])
def test_an_unknown_host(host: str) -> None:
    with pytest.raises(ServerUnavailable, match="host name cannot be resolved"):
        SmtpTransport(SmtpConfig(host=host, port=25)).send(ADA, MESSAGE)


def test_a_connection_that_is_never_accepted() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        port = listener.getsockname()[1]
        filler: list[socket.socket] = []
        try:
            while len(filler) < 8:  # until the kernel's queue is full
                try:
                    filler.append(socket.create_connection(("127.0.0.1", port), 0.1))
                except TimeoutError:
                    break
            with pytest.raises(ServerUnavailable, match=r"no answer within 0\.2 s"):
                SmtpTransport(SmtpConfig(host="127.0.0.1", port=port, timeout=0.2)).send(ADA, MESSAGE)
        finally:
            for sock in filler:
                sock.close()


# What the server does not offer.


def test_a_message_larger_than_the_size_offered_is_not_even_begun(connect: Connect) -> None:
    with SmtpServer(size=100) as server:
        transport = connect(server)
        with pytest.raises(PermanentError, match="takes at most 100 bytes, and the message has 126"):
            transport.send(ADA, MESSAGE + 100 * b"x")
        assert "MAIL" not in server.verbs()
        transport.send(ADA, MESSAGE + (100 - len(MESSAGE) - 2) * b"x" + b"\r\n")
        assert server.connections == 1


@pytest.mark.parametrize("envelope", [Envelope(ADA.sender, "zoë@example.com"), Envelope("a@b.c", "d@e.f", True)])
def test_smtputf8_that_is_not_offered(connect: Connect, envelope: Envelope) -> None:
    with SmtpServer(smtputf8=False) as server:
        transport = connect(server)
        with pytest.raises(PermanentError, match="SMTPUTF8"):
            transport.send(envelope, MESSAGE)
        assert "MAIL" not in server.verbs()
        transport.send(ADA, MESSAGE)
        assert server.connections == 1


def test_a_server_without_auth_though_a_user_is_set(connect: Connect, server: SmtpServer) -> None:
    with pytest.raises(ServerRefuses, match="neither AUTH PLAIN nor LOGIN") as caught:
        connect(server, username=USER, password=PASSWORD).send(ADA, MESSAGE)
    assert caught.value.stage == "auth"


def test_a_wrong_password_is_tried_once(connect: Connect) -> None:
    with SmtpServer(auth=(USER, "other")) as server:
        with pytest.raises(ServerRefuses) as caught:
            connect(server).send(ADA, MESSAGE)
        assert (caught.value.code, caught.value.stage) == (535, "auth")
        server.wait_until(lambda: server.open_connections == 0)
        assert server.verbs() == ["EHLO", "AUTH", "QUIT"]


def test_a_server_that_wants_a_login_and_gets_none(connect: Connect) -> None:
    with SmtpServer(auth=(USER, PASSWORD)) as server, pytest.raises(ServerRefuses) as caught:
        connect(server, username="").send(ADA, MESSAGE)
    assert (caught.value.code, caught.value.stage) == (530, "mail")


# TLS.


def test_starttls_that_is_not_offered(connect: Connect, server: SmtpServer) -> None:
    with pytest.raises(ServerRefuses, match="does not offer STARTTLS") as caught:
        connect(server, security=Security.STARTTLS).send(ADA, MESSAGE)
    assert caught.value.stage == "starttls"
    assert server.messages == []


def test_a_plain_port_asked_for_tls(connect: Connect, server: SmtpServer) -> None:
    with pytest.raises(ServerRefuses, match="does not speak TLS from the start") as caught:
        connect(server, security=Security.TLS).send(ADA, MESSAGE)
    assert caught.value.stage == "tls"


def test_a_tls_port_spoken_to_in_clear(connect: Connect, certificate: trustme.LeafCert) -> None:
    with (
        SmtpServer(tls="tls", certificate=certificate) as server,
        pytest.raises(ServerUnavailable, match="set SMTP_SECURITY=tls"),
    ):
        connect(server, timeout=0.2).send(ADA, MESSAGE)


@pytest.mark.parametrize("tls", ["starttls", "tls"])
@pytest.mark.parametrize("fault", ["certificate has expired", "not valid for '127.0.0.1'", "certificate"])
def test_a_certificate_that_is_not_good(
    connect: Connect, authority: Authority, tls: Literal["starttls", "tls"], fault: str
) -> None:
    names = ("mail.example.org",) if fault.startswith("not valid") else ()
    certificate = authority.certificate(*names, expired="expired" in fault)
    trust = {"ca_file": None} if fault == "certificate" else {}
    with SmtpServer(tls=tls, certificate=certificate, auth=(USER, PASSWORD)) as server:
        security = Security.TLS if tls == "tls" else Security.AUTO
        with pytest.raises(ServerRefuses, match=f"its certificate is not trusted: .*{fault}") as caught:
            connect(server, security=security, **trust).send(ADA, MESSAGE)
        assert caught.value.stage == "tls"
        server.wait_until(lambda: server.open_connections == 0)
        assert "AUTH" not in server.verbs()


def test_the_certificate_is_checked_against_the_configured_host(
    connect: Connect, authority: Authority, named_host: str
) -> None:
    certificate = authority.certificate(named_host)
    with SmtpServer(tls="starttls", certificate=certificate) as server:
        connect(server, host=named_host).send(ADA, MESSAGE)
        with pytest.raises(ServerRefuses, match="not valid for 'localhost'"):
            connect(server, host="localhost").send(ADA, MESSAGE)


def test_a_server_that_wants_a_client_certificate(connect: Connect, certificate: trustme.LeafCert) -> None:
    # TLS 1.3 tells the client only after its own handshake is done, at the first read.
    with SmtpServer(tls="tls", certificate=certificate) as server:
        assert server.ssl_context is not None
        server.ssl_context.verify_mode = ssl.CERT_REQUIRED
        with pytest.raises(ServerRefuses, match="certificate required"):
            connect(server, security=Security.TLS).send(ADA, MESSAGE)


def test_replies_slipped_in_before_tls_are_forgotten(connect: Connect, tls_server: SmtpServer) -> None:
    tls_server.reply("starttls", "220 2.0.0 go ahead\r\n250-evil\r\n250 AUTH LOGIN")
    connect(tls_server).send(ADA, MESSAGE)
    assert tls_server.messages[0].encrypted


def test_an_unusable_ca_file(connect: Connect, tls_server: SmtpServer, tmp_path: Any) -> None:
    (tmp_path / "empty.pem").touch()
    for name in ("empty.pem", "missing.pem"):
        with pytest.raises(ServerRefuses, match=rf"the CA file .*{name} cannot be used: \S"):
            connect(tls_server, ca_file=str(tmp_path / name)).send(ADA, MESSAGE)


# The password.


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "127.8.9.1", "::1"])
def test_may_auth_in_clear_within_this_machine(host: str) -> None:
    assert may_auth_in_clear(host, Security.AUTO)


@pytest.mark.parametrize("host", ["mail.example.com", "10.0.0.1", "localhost.example.com", "127.0.0.1.nip.io", ""])
def test_may_not_auth_in_clear_elsewhere_unless_told_so(host: str) -> None:
    assert not may_auth_in_clear(host, Security.AUTO)
    assert may_auth_in_clear(host, Security.NONE)


def test_the_password_does_not_cross_a_network_in_clear(
    connect: Connect, named_host: str, caplog: pytest.LogCaptureFixture
) -> None:
    with SmtpServer(auth=(USER, PASSWORD)) as server:
        with pytest.raises(ServerRefuses, match="SMTP_SECURITY=none") as caught:
            connect(server, host=named_host).send(ADA, MESSAGE)
        assert caught.value.stage == "auth"
        assert "AUTH" not in server.verbs()
        assert caplog.records == []

        transport = connect(server, host=named_host, security=Security.NONE)
        transport.send(ADA, MESSAGE)
        transport.send(ADA, MESSAGE)
        assert len(server.messages) == 2
    [warning] = caplog.records
    assert warning.levelno == logging.WARNING
    assert warning.getMessage().startswith("smtp.password_in_clear ")


def test_the_password_shows_nowhere(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    spoken = b64encode(f"\0{USER}\0{PASSWORD}".encode()).decode()
    config = SmtpConfig(host="127.0.0.1", port=1, username=USER, password=PASSWORD, security=Security.NONE)
    shown = [repr(config), str(config)]
    for mechanism in ("PLAIN", "LOGIN"):
        with SmtpServer(auth=(USER, PASSWORD), mechanisms=(mechanism,)) as server:
            transport = connect(server, security=Security.NONE, timeout=5.0)
            shown.append(repr(transport))
            server.reply("auth", f"535 5.7.8 refused: {spoken} {b64encode(PASSWORD.encode()).decode()} {PASSWORD}")
            for spoil in (None, lambda: server.cut("auth"), lambda: server.reply("mail", "550 5.7.1 no")):
                if spoil is not None:
                    server.clear()
                    spoil()
                with pytest.raises(DeliveryError) as caught:
                    transport.send(ADA, MESSAGE)
                shown += [repr(caught.value), str(caught.value), caught.value.reply]
                shown += traceback.format_exception(caught.value)
    assert any("refused: ***" in text for text in shown)
    everything = "\n".join([*shown, caplog.text, *(repr(record.args) for record in caplog.records)])
    for secret in (PASSWORD, repr(PASSWORD)[1:-1], b64encode(PASSWORD.encode()).decode(), spoken):
        assert secret not in everything

"""The SMTP check, fault by fault: which step it names, which cause and which fix."""

import errno
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import trustme

from mail.errors import OutcomeUnknown, ServerUnavailable
from mail.message import Sender
from mail.smtp import Security, SmtpConfig
from mail.smtp_causes import host_that_is_none, mismatches
from mail.smtp_check import Result, SmtpCheck, Step
from support.smtp_client import PASSWORD, USER
from support.smtp_server import Authority, SmtpServer

SENDER = Sender("no-reply@school.org", "School")
LOGIN = {"username": USER, "password": PASSWORD}


def walk(server: SmtpServer, *, to: str | None = None, sender: Sender = SENDER, **changes: Any) -> list[Result]:
    config = SmtpConfig(host=server.host, port=server.port, timeout=5.0)
    return list(SmtpCheck(replace(config, **changes), sender, to=to).run())


def failure(results: list[Result]) -> tuple[Step, str]:
    """The step that failed, and all that is said of it."""
    *before, last = results
    assert all(result.failure is None for result in before)
    assert last.failure is not None, f"nothing failed: {results}"
    return last.step, " | ".join(last.failure)


def fails(results: list[Result], step: Step, *phrases: str) -> None:
    found, words = failure(results)
    missing = [phrase for phrase in phrases if phrase not in words]
    assert (found, missing) == (step, []), words


# Replies.

REPLIES = [
    ("connect", "421 4.7.0 too many", Step.GREETING, "busy", "WORKER_CONCURRENCY"),
    ("connect", "554 5.7.1 blocked", Step.GREETING, "blocklist", "postmaster"),
    ("ehlo", "550 5.7.1 bad name", Step.EHLO, "name that this machine gives in EHLO", "hostname -f"),
    ("ehlo", "530 Please login with USER and PASS.", Step.EHLO, "FTP", "SMTP_PORT=587"),
    ("ehlo", "451 4.3.0 later", Step.EHLO, "busy", "some minutes"),
    ("starttls", "454 4.7.0 no certificate", Step.TLS, "offers STARTTLS and cannot do it", "server's log"),
    ("auth", "535 5.7.8 wrong", Step.AUTH, "password is wrong", "backend/.env"),
    ("auth", "535-5.7.8 see\r\n535 5.7.8 https://support.google.com/mail", Step.AUTH, "wrong", "app password"),
    ("auth", "535 5.7.139 SmtpClientAuthentication is disabled", Step.AUTH, "", "Authenticated SMTP"),
    ("auth", "534 5.7.9 Application-specific password required", Step.AUTH, "app password", "SMTP_PASSWORD=<"),
    ("auth", "454 4.7.0 backend down", Step.AUTH, "cannot check logins now", "some minutes"),
    ("auth", "538 5.7.11 encryption required", Step.AUTH, "wants TLS first", "SMTP_SECURITY=tls"),
    ("auth", "550 5.7.1 account suspended", Step.AUTH, "reason in its reply", f"{USER} may send"),
    ("mail", "530 5.7.0 authentication required", Step.MAIL, f"{USER} has logged in and may not", "SMTP_USERNAME"),
    ("mail", "553 5.7.1 not yours", Step.MAIL, "no-reply@school.org: it (or school.org)", "SMTP_MAIL_FROM=<"),
    ("mail", "552 5.3.4 too large", Step.MAIL, "larger than the server takes", "limit"),
    ("mail", "451 4.7.1 slow down", Step.MAIL, "busy", "some minutes"),
    ("rcpt", "550 5.1.1 no such user", Step.RCPT, "sender's own address", "--to"),
    ("rcpt", "554 5.7.1 relay access denied", Step.RCPT, f"{USER} may not send to school.org", "verified addresses"),
    ("rcpt", "450 4.2.0 greylisted", Step.RCPT, "greylisting", "Nothing to set"),
    ("rcpt", "hello", Step.RCPT, "Not an SMTP server", "SMTP_PORT"),
]


@pytest.mark.parametrize(
    ("stage", "reply", "step", "cause", "fix"), REPLIES, ids=[f"{row[0]} {row[1]}" for row in REPLIES]
)
def test_what_a_reply_most_likely_means(
    authority: Authority, certificate: trustme.LeafCert, stage: Any, reply: str, step: Step, cause: str, fix: str
) -> None:
    tls: Any = "starttls" if stage == "starttls" else None
    with SmtpServer(tls=tls, auth=(USER, PASSWORD), certificate=certificate) as server:
        server.reply(stage, reply)
        results = walk(server, ca_file=authority.ca_file, **LOGIN)
        server.wait_until(lambda: server.open_connections == 0)  # it said QUIT
    fails(results, step, cause, fix, reply.rpartition("\r\n")[2][4:])


@pytest.mark.parametrize(
    ("reply", "cause", "fix"),
    [
        ("550 5.1.1 no such user", "mail for ada@example.com: no such mailbox", "another address"),
        ("550 5.7.1 relaying denied", "without a login this server takes mail for its own domains", "SMTP_USERNAME"),
        ("550 authentication required", "wants a login, and none is set", "SMTP_USERNAME and SMTP_PASSWORD"),
        ("530 Must issue a STARTTLS command first", "wants TLS first", "SMTP_PORT"),
    ],
)
def test_a_recipient_refused_without_a_login(server: SmtpServer, reply: str, cause: str, fix: str) -> None:
    server.reply("rcpt", reply)
    fails(walk(server, to="ada@example.com"), Step.RCPT, cause, fix)


@pytest.mark.parametrize(
    ("host", "hint"),
    [
        ("email-smtp.eu-west-1.amazonaws.com", "SMTP credentials in the SES console"),
        ("smtp.office365.com", "Authenticated SMTP"),
        ("smtp.sendgrid.net", "SMTP_USERNAME=apikey"),
    ],
)
def test_a_wrong_password_at_a_known_provider(monkeypatch: pytest.MonkeyPatch, host: str, hint: str) -> None:
    lead(monkeypatch, host, "127.0.0.1")
    with SmtpServer(auth=(USER, "other")) as server:
        fails(walk(server, host=host, security=Security.NONE, **LOGIN), Step.AUTH, "535", hint)


def lead(monkeypatch: pytest.MonkeyPatch, name: str, *addresses: str) -> None:
    """The resolver leads `name` to these addresses."""
    ask(monkeypatch, name, lambda: addresses)


def ask(monkeypatch: pytest.MonkeyPatch, name: str, answer: Callable[[], Any] | Exception) -> None:
    """The resolver, asked for `name`, has this answer; all other names are looked up as ever."""
    real = socket.getaddrinfo

    def getaddrinfo(host: str, *args: Any, **kwargs: Any) -> Any:
        if host != name:
            return real(host, *args, **kwargs)
        if isinstance(answer, Exception):
            raise answer
        return [entry for address in answer() for entry in real(address, *args, **kwargs)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


# Breaks and silence.


@pytest.mark.parametrize(
    ("stage", "step"),
    [
        ("connect", Step.GREETING), ("ehlo", Step.EHLO), ("starttls", Step.TLS), ("tls", Step.TLS),
        ("auth", Step.AUTH), ("mail", Step.MAIL), ("rcpt", Step.RCPT),
    ],
)  # fmt: skip
@pytest.mark.parametrize("how", ["cut", "silence"])
def test_a_line_that_breaks_is_blamed_on_its_step(
    authority: Authority, certificate: trustme.LeafCert, stage: Any, step: Step, how: str
) -> None:
    with SmtpServer(tls="starttls", auth=(USER, PASSWORD), certificate=certificate) as server:
        if how == "cut":
            server.cut(stage)
        else:
            server.delay(stage, 60)
        results = walk(server, ca_file=authority.ca_file, timeout=0.4, **LOGIN)
    fails(results, step, "connection closed" if how == "cut" and stage != "tls" else "", "server's log")
    if how == "silence":
        fails(results, step, "no answer within 0.4 s")


# The way to the server.


def test_a_silent_address_before_one_that_answers_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, server: SmtpServer
) -> None:
    # The silence is made here: no address is silent on every machine.
    lead(monkeypatch, "mail.school.org", "127.0.0.9", "127.0.0.1")
    real = socket.create_connection

    def create_connection(address: tuple[str, int], *rest: Any) -> socket.socket:
        if address[0] == "127.0.0.9":
            assert rest[0] == pytest.approx(2.5, abs=0.3)  # half of the five seconds, for both addresses
            raise TimeoutError("timed out")
        return real(address, *rest)

    monkeypatch.setattr(socket, "create_connection", create_connection)
    results = walk(server, host="mail.school.org")
    [dns] = [result for result in results if result.step is Step.DNS]
    [tcp] = [result for result in results if result.step is Step.TCP]
    assert dns.found == ("mail.school.org is 127.0.0.9, 127.0.0.1",)
    assert tcp.found == ("connected to 127.0.0.1", "not to 127.0.0.9: no answer within 2.5 s")
    assert "SMTP_TIMEOUT" in tcp.warnings[0]
    assert results[-1].failure is None


def test_all_addresses_are_named_when_none_answers(monkeypatch: pytest.MonkeyPatch, server: SmtpServer) -> None:
    lead(monkeypatch, "mail.school.org", "127.0.0.8", "127.0.0.9")
    fails(
        walk(server, host="mail.school.org"),
        Step.TCP,
        "127.0.0.8: connection refused; 127.0.0.9: connection refused",
        "Closed: the machine is there",
        "If the server is yours: start it",
    )


def test_a_network_without_a_way_there(monkeypatch: pytest.MonkeyPatch, server: SmtpServer) -> None:
    real = socket.create_connection

    def create_connection(address: tuple[str, int], *rest: Any) -> socket.socket:
        if address[0] == "192.0.2.1":
            raise OSError(errno.ENETUNREACH, "Network is unreachable")
        return real(address, *rest)

    monkeypatch.setattr(socket, "create_connection", create_connection)
    fails(walk(server, host="192.0.2.1"), Step.TCP, "network is unreachable", "No way leads from this machine")


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "No such name"),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), "does not answer"),
    ],
)
def test_a_name_that_leads_nowhere(
    monkeypatch: pytest.MonkeyPatch, server: SmtpServer, error: OSError, cause: str
) -> None:
    ask(monkeypatch, "mail.school.org", error)
    fails(
        walk(server, host="mail.school.org"), Step.DNS, cause, str(error.strerror), "SMTP_HOST (now mail.school.org)"
    )


def test_a_name_server_that_is_silent_is_not_waited_for_longer_than_the_timeout(
    monkeypatch: pytest.MonkeyPatch, server: SmtpServer
) -> None:
    done = threading.Event()
    ask(monkeypatch, "mail.school.org", lambda: ["127.0.0.1"] if done.wait(60) else [])
    results = walk(server, host="mail.school.org", timeout=0.2)
    done.set()
    fails(results, Step.DNS, "does not answer")
    assert results[-1].seconds < 5


@pytest.mark.parametrize(
    ("host", "fix"),
    [
        ("smtps://mail.school.org:465", "SMTP_HOST=mail.school.org and SMTP_PORT=465"),
        ("mail.school.org:587", "SMTP_HOST=mail.school.org and SMTP_PORT=587"),
        ("user@mail.school.org", "SMTP_HOST=mail.school.org"),
        ("mail.school.org ", "SMTP_HOST=smtp.example.com"),
        ("mail.school.org:port", None),
        ("mail.school.org", None),
        ("192.0.2.1", None),
        ("::1", None),
        ("fe80::1:2", None),
        ("localhost", None),
    ],
)
def test_a_host_that_is_none(host: str, fix: str | None) -> None:
    found = host_that_is_none(host)
    assert (found.fix if found else None) == fix


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"port": 465, "security": Security.STARTTLS}, "port 465 speaks TLS from the start"),
        ({"port": 465, "security": Security.NONE}, "port 465 speaks TLS from the start"),
        ({"port": 587, "security": Security.TLS}, "port 587 begins without TLS"),
        ({"port": 25, "security": Security.TLS}, "port 25 begins without TLS"),
        ({"port": 993, "security": Security.TLS}, "IMAP"),
        ({"username": "u"}, "SMTP_PASSWORD is empty"),
        ({"password": "p"}, "SMTP_USERNAME is empty"),
        ({"username": "u", "password": "p", "security": Security.NONE}, "in clear"),
        ({"port": 465, "security": Security.AUTO}, ""),
        ({"port": 465, "security": Security.TLS}, ""),
        ({"username": "u", "password": "p", "security": Security.STARTTLS}, ""),
    ],
)
def test_settings_that_do_not_fit_together(changes: dict[str, Any], word: str) -> None:
    found = mismatches(replace(SmtpConfig(host="mail.school.org", port=587), **changes), SENDER)
    assert len(found) == bool(word)
    assert word in "".join(found)


# TLS.


def test_a_certificate_that_ends_soon_is_a_warning(authority: Authority) -> None:
    for ends, warned in ((13, True), (16, False)):
        with SmtpServer(tls="starttls", certificate=authority.certificate(ends=ends)) as server:
            results = walk(server, ca_file=authority.ca_file)
        [tls] = [result for result in results if result.step is Step.TLS]
        assert f"{ends - 1} days from now" in " ".join(tls.found)
        assert any("ends soon" in warning for warning in tls.warnings) == warned
        assert results[-1].failure is None


def test_a_certificate_that_is_not_valid_yet(authority: Authority) -> None:
    with SmtpServer(tls="starttls", certificate=authority.certificate(begins=1, ends=2)) as server:
        fails(walk(server, ca_file=authority.ca_file), Step.TLS, "not valid before 2", "clock")


def test_a_server_that_wants_a_client_certificate(authority: Authority, certificate: trustme.LeafCert) -> None:
    # TLS 1.3 tells the client only at its first read, which is the greeting.
    with SmtpServer(tls="tls", certificate=certificate) as server:
        assert server.ssl_context is not None
        server.ssl_context.verify_mode = ssl.CERT_REQUIRED
        results = walk(server, ca_file=authority.ca_file, security=Security.TLS)
    fails(results, Step.TLS, "wants a certificate of ours")


def test_no_way_of_tls_in_common(authority: Authority, certificate: trustme.LeafCert) -> None:
    with SmtpServer(tls="starttls", certificate=certificate) as server:
        assert server.ssl_context is not None
        server.ssl_context.maximum_version = ssl.TLSVersion.TLSv1_2
        server.ssl_context.set_ciphers("AES128-SHA")
        fails(walk(server, ca_file=authority.ca_file), Step.TLS, "No safe way of TLS in common")


def test_tls_from_the_start_and_no_smtp_in_it(authority: Authority, certificate: trustme.LeafCert) -> None:
    with SmtpServer(tls="tls", certificate=certificate) as server:
        server.cut("connect")
        fails(walk(server, timeout=0.5), Step.GREETING, "Not an SMTP server", "no SMTP in it")


# What is not offered.


def test_a_password_that_would_go_over_the_network_in_clear(named_host: str) -> None:
    with SmtpServer(auth=(USER, PASSWORD)) as server:
        results = walk(server, host=named_host, **LOGIN)
        assert "AUTH" not in server.verbs()
    fails(results, Step.AUTH, "never sent in clear", "not sent", "SMTP_SECURITY=none")


def test_a_login_that_is_offered_only_after_starttls(certificate: trustme.LeafCert) -> None:
    with SmtpServer(tls="starttls", auth=(USER, PASSWORD), certificate=certificate) as server:
        results = walk(server, security=Security.NONE, **LOGIN)
    fails(results, Step.AUTH, "with no AUTH", "SMTP_SECURITY=starttls (now none)")


def test_no_kind_of_login_in_common() -> None:
    with SmtpServer(auth=(USER, PASSWORD), mechanisms=("CRAM-MD5", "XOAUTH2")) as server:
        fails(walk(server, **LOGIN), Step.AUTH, "AUTH CRAM-MD5 XOAUTH2", "PLAIN and LOGIN")


def test_a_server_that_takes_no_login(server: SmtpServer) -> None:
    fails(walk(server, **LOGIN), Step.AUTH, "takes no login at port", "empty SMTP_USERNAME and SMTP_PASSWORD")


def test_a_server_whose_limit_is_below_any_mail() -> None:
    with SmtpServer(size=1000) as server:
        fails(walk(server), Step.MAIL, "SIZE 1000", "larger than the server takes")


def test_an_address_that_the_server_cannot_carry() -> None:
    with SmtpServer(smtputf8=False) as server:
        fails(walk(server, to="zoë@example.com"), Step.MAIL, "without SMTPUTF8", "zoë@example.com")


# The real mail.


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OutcomeUnknown("the line broke", stage="dot"), "Nobody knows whether the server took the mail"),
        (ServerUnavailable("it went away", stage="connect"), "another connection"),
    ],
)
def test_a_mail_that_is_lost_on_its_own_connection(server: SmtpServer, error: Exception, words: str) -> None:
    def send() -> Any:
        raise error

    config = SmtpConfig(host=server.host, port=server.port, timeout=5.0)
    results = list(SmtpCheck(config, SENDER, to="ada@example.com", send=send).run())
    fails(results, Step.MESSAGE, words, str(error))

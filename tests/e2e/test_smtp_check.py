"""`python test_smtp.py` against real servers: each fault is named rightly, with its exit code, cause and fix."""

import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from mail.smtp_check import Step
from support.processes import BACKEND, free_port, wait_until
from support.smtp_server import Authority, SmtpServer

USER, PASSWORD = "mailer", "p:ä ✓-Secret  two"
COMMAND = [sys.executable, "test_smtp.py"]
FROM = "no-reply@lms.example.com"


@dataclass(frozen=True)
class Run:
    code: int
    text: str
    seconds: float

    @property
    def words(self) -> str:
        """What it printed, with every line break and indent as one space."""
        return " ".join(self.text.split())

    def says(self, *phrases: str) -> bool:
        missing = [phrase for phrase in phrases if phrase not in self.words]
        assert not missing, f"{missing} not in:\n{self.text}"
        return True


def environment(host: str, port: int, **env: str) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "ENV_FILE": os.devnull,
        "SMTP_HOST": host,
        "SMTP_PORT": str(port),
        "SMTP_MAIL_FROM": FROM,
        "SMTP_FROM_NAME": "Example Academy",
        **env,
    }


def check(port: int, *arguments: str, host: str = "127.0.0.1", **env: str) -> Run:
    begun = time.monotonic()
    done = subprocess.run(
        [*COMMAND, *arguments],
        cwd=BACKEND,
        env=environment(host, port, **env),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Run(done.returncode, done.stdout + done.stderr, time.monotonic() - begun)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def certificate(authority: Authority) -> trustme.LeafCert:
    return authority.certificate("localhost", "127.0.0.1", ends=90)


LOGIN = {"SMTP_USERNAME": USER, "SMTP_PASSWORD": PASSWORD}


# The good way.


def test_without_to_everything_is_asked_and_nothing_is_sent(smtp: SmtpServer) -> None:
    run = check(smtp.port)
    assert run.code == 0, run.text
    assert run.says("All is well; nothing was sent", f"From: Example Academy <{FROM}>", f"<{FROM}>: 250 2.1.5")
    for step in (Step.SETTINGS, Step.DNS, Step.TCP, Step.GREETING, Step.EHLO, Step.MAIL, Step.RCPT):
        assert f"\nok    {step.title} " in run.text
    assert smtp.verbs() == ["EHLO", "MAIL", "RCPT", "RSET", "QUIT"]
    assert smtp.messages == []


@pytest.mark.parametrize(
    ("tls", "security", "login"),
    [
        (None, "auto", False),
        (None, "none", True),
        ("starttls", "auto", True),
        ("starttls", "starttls", True),
        ("tls", "tls", True),
    ],
)
def test_with_to_a_real_mail_arrives(
    authority: Authority, certificate: trustme.LeafCert, tls: str | None, security: str, login: bool
) -> None:
    auth = (USER, PASSWORD) if login else None
    with SmtpServer(tls=tls, auth=auth, certificate=certificate, size=10_000_000) as server:
        env = {"SMTP_SECURITY": security, "SMTP_CA_FILE": authority.ca_file, **(LOGIN if login else {})}
        run = check(server.port, "--to", "ada@example.com", host="localhost", BRAND_NAME="Holm School", **env)
        assert run.code == 0, run.text
        [received] = server.messages
    assert received.recipients == ("ada@example.com",)
    assert (received.encrypted, received.user) == (tls is not None, USER if login else None)
    assert received.message.get_content_type() == "multipart/alternative"
    assert "Holm School" in received.data.decode()
    assert run.says(
        received.message["Message-ID"], "250 2.0.0 taken", "mails up to 10.0 MB", "inbox of ada@example.com"
    )
    if tls:
        assert run.says("TLSv1.3", "certificate for localhost, 127.0.0.1", "issued by trustme", "89 days from now")
        assert "warn" not in run.text
    # The workers' own words: the check and the mail greeted the server under one name.
    assert len({line for _, line in server.commands if line.lower().startswith("ehlo")}) == 1


def test_a_staging_system_says_where_its_mail_goes(smtp: SmtpServer) -> None:
    run = check(smtp.port, "--to", "ada@example.com", MAIL_REDIRECT_TO="staging@example.org")
    assert run.code == 0, run.text
    assert run.says("MAIL_REDIRECT_TO is set: all mail goes to staging@example.org", "inbox of staging@example.org")
    assert smtp.messages[0].recipients == ("staging@example.org",)


# The way to the server.


def test_a_closed_port() -> None:
    run = check(free_port())
    assert run.code == Step.TCP == 12
    assert run.says("connection refused", "Closed: nothing listens", "./start.sh", "SMTP_PORT")
    assert "iltered" not in run.text


@contextmanager
def dropping_port() -> Iterator[int]:
    """A port that drops packets, as a firewall does: its queue of connections is full, and nobody takes any."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        port = listener.getsockname()[1]
        filler: list[socket.socket] = []
        try:
            while True:
                assert len(filler) < 50, "the queue does not fill"
                filler.append(socket.create_connection(("127.0.0.1", port), 0.2))
        except TimeoutError:
            yield port
        finally:
            for sock in filler:
                sock.close()


def test_a_filtered_port_is_told_from_a_closed_one_and_does_not_take_long() -> None:
    with dropping_port() as port:
        run = check(port, "--timeout", "1")
    assert run.code == Step.TCP == 12
    assert run.says(
        "no answer within 1 s", "Filtered: a firewall drops the packets", f"Open TCP to 127.0.0.1 port {port}"
    )
    assert "Closed" not in run.text
    assert run.seconds < 10


def test_an_unknown_host() -> None:
    run = check(25, host="no-such-host.invalid")
    assert run.code == Step.DNS == 11
    assert run.says("Correct SMTP_HOST (now no-such-host.invalid)")


# What speaks there.


@contextmanager
def web_server() -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(("security", "step"), [("auto", Step.GREETING), ("tls", Step.TLS)])
def test_a_web_server(security: str, step: Step) -> None:
    with web_server() as port:
        run = check(port, "--timeout", "1", SMTP_SECURITY=security)
    assert run.code == step
    assert run.says("Not an SMTP server: a web server listens", "SMTP_PORT=587")


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ("SSH-2.0-OpenSSH_9.2", "an SSH server"),
        ("* OK IMAP4rev1 ready", "an IMAP server"),
        ("+OK POP3 ready", "a POP3 server"),
    ],
)
def test_another_kind_of_server_is_quoted_and_named(smtp: SmtpServer, words: str, what: str) -> None:
    smtp.reply("connect", words)
    run = check(smtp.port)
    assert run.code == Step.GREETING == 13
    assert run.says(f'"{words}"', what)


def test_a_server_that_turns_this_machine_away(smtp: SmtpServer) -> None:
    smtp.reply("connect", "554 5.7.1 no service for you")
    run = check(smtp.port)
    assert run.code == Step.GREETING
    assert run.says('"554 5.7.1 no service for you"', "blocklist", "allow the address of this machine")


def test_a_silent_server(smtp: SmtpServer) -> None:
    smtp.delay("connect", 60)
    run = check(smtp.port, "--timeout", "1")
    assert run.code == Step.GREETING
    assert run.says("no answer within 1 s", "does not greet", "--timeout 60")
    assert "SMTP_SECURITY=tls." not in run.words.split("Likely cause")[1].split("Fix")[0]
    assert run.seconds < 15


# TLS.


@pytest.mark.parametrize("tls", [None, "starttls"])
def test_a_plain_server_asked_for_tls(certificate: trustme.LeafCert, tls: str | None) -> None:
    with SmtpServer(tls=tls, certificate=certificate) as server:
        run = check(server.port, SMTP_SECURITY="tls", **LOGIN)
        assert server.connections == 2  # the second is the proof
        assert "AUTH" not in server.verbs()
    assert run.code == Step.TLS == 15
    assert run.says("does not speak TLS from the start", 'greeted with "220 test.invalid ESMTP"')
    assert run.says("Fix SMTP_SECURITY=starttls" if tls else "It offered no STARTTLS either")


def test_a_tls_port_spoken_to_in_plain(certificate: trustme.LeafCert) -> None:
    with SmtpServer(tls="tls", certificate=certificate, auth=(USER, PASSWORD)) as server:
        run = check(server.port, "--timeout", "1", **LOGIN)
        assert "AUTH" not in server.verbs()
    assert run.code == Step.GREETING
    assert run.says("speaks TLS from the start", 'with TLS, was greeted with "220 test.invalid ESMTP"')
    assert run.says("Fix SMTP_SECURITY=tls")


def test_starttls_demanded_and_not_offered(smtp: SmtpServer) -> None:
    run = check(smtp.port, SMTP_SECURITY="starttls")
    assert run.code == Step.TLS
    assert run.says("EHLO was answered without STARTTLS", "SMTP_SECURITY=starttls demands TLS")


@pytest.mark.parametrize("tls", ["starttls", "tls"])
def test_an_expired_certificate(authority: Authority, tls: str) -> None:
    expired = authority.certificate(expired=True)
    with SmtpServer(tls=tls, certificate=expired, auth=(USER, PASSWORD)) as server:
        security = "tls" if tls == "tls" else "auto"
        run = check(server.port, SMTP_CA_FILE=authority.ca_file, SMTP_SECURITY=security, **LOGIN)
        assert "AUTH" not in server.verbs()  # nor on the connection that reads the certificate
    assert run.code == Step.TLS
    ended = x509.load_pem_x509_certificate(expired.cert_chain_pems[0].bytes()).not_valid_after_utc
    assert run.says(f"certificate expired on {ended:%Y-%m-%d %H:%M} UTC", "Renew the certificate on the server")


def test_a_certificate_with_the_wrong_name(authority: Authority) -> None:
    with SmtpServer(tls="starttls", certificate=authority.certificate("mail.example.org")) as server:
        run = check(server.port, host="localhost", SMTP_CA_FILE=authority.ca_file)
    assert run.code == Step.TLS
    assert run.says(
        "SMTP_HOST is localhost, and the certificate is for mail.example.org", "SMTP_HOST=mail.example.org"
    )


def test_a_certificate_of_an_unknown_issuer(certificate: trustme.LeafCert) -> None:
    with SmtpServer(tls="starttls", certificate=certificate) as server:
        run = check(server.port)
    assert run.code == Step.TLS
    assert run.says("issued by trustme", "is not known here", "SMTP_CA_FILE=<")


def test_a_self_signed_certificate(tmp_path: Path, certificate: trustme.LeafCert) -> None:
    pem = tmp_path / "server.pem"
    pem.write_bytes(self_signed("localhost"))
    with SmtpServer(tls="starttls", certificate=certificate) as server:
        assert server.ssl_context is not None
        server.ssl_context.load_cert_chain(pem)
        run = check(server.port, host="localhost")
        assert run.code == Step.TLS
        assert run.says("self-signed", "SMTP_CA_FILE=<that certificate")
        assert check(server.port, host="localhost", SMTP_CA_FILE=str(pem)).code == 0  # the fix


def self_signed(name: str) -> bytes:
    """A key and its certificate, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return secret + certificate.public_bytes(Encoding.PEM)


# The login.


def test_a_wrong_password(authority: Authority, certificate: trustme.LeafCert) -> None:
    with SmtpServer(tls="starttls", certificate=certificate, auth=(USER, "other")) as server:
        run = check(server.port, SMTP_CA_FILE=authority.ca_file, **LOGIN)
        assert server.verbs().count("AUTH") == 1  # one try: more could lock the account
    assert run.code == Step.AUTH == 16
    assert run.says(
        '"535 5.7.8 wrong user or password"', "user name or the password is wrong", f"SMTP_USERNAME={USER}"
    )


PLAIN = b64encode(f"\0{USER}\0{PASSWORD}".encode()).decode()
FORMS = (PASSWORD, b64encode(PASSWORD.encode()).decode(), PLAIN)
ECHO = f"{PASSWORD} {FORMS[1]} {PLAIN} {PLAIN.lower()} {PLAIN[:30]} {PLAIN[30:]}"


@pytest.mark.parametrize(
    ("stage", "reply"),
    [
        ("auth", "235 2.7.0 welcome"),
        ("auth", "535 5.7.8 no"),
        ("mail", "550 5.7.1 no"),
        ("rcpt", "250 2.1.5 fine"),
        ("rcpt", "550 5.1.1 no"),
        ("dot", "250 2.0.0 taken"),
        ("dot", "554 5.7.1 no"),
    ],
)
def test_the_password_is_nowhere_though_the_server_echoes_it(stage: str, reply: str) -> None:
    with SmtpServer(auth=(USER, PASSWORD)) as server:
        said = f"{reply} {ECHO} "
        # The last one lies where a long reply is cut, after 500 characters: half of it must not be left.
        said += (494 - len(" ".join(said.split()))) * "x"
        server.reply(stage, f"{said} {PASSWORD}")
        run = check(server.port, "--to", "ada@example.com", **LOGIN)
    assert run.code in {0, Step.AUTH, Step.MAIL, Step.RCPT, Step.MESSAGE}
    assert "***" in run.text
    squeezed = "".join(run.text.split())
    for secret in (*FORMS, PASSWORD[:8], PLAIN[:24], PLAIN.lower()):
        assert "".join(secret.split()) not in squeezed


def test_a_token_that_is_user_name_and_password_is_not_shown() -> None:
    with SmtpServer(auth=(PASSWORD, "other")) as server:
        run = check(server.port, SMTP_USERNAME=PASSWORD, SMTP_PASSWORD=PASSWORD)
    assert run.code == Step.AUTH
    assert run.says("login as ***", "SMTP_USERNAME=***")
    assert PASSWORD[:8] not in run.text


# Sender, recipient, mail.


def test_a_server_that_refuses_the_sender(smtp: SmtpServer) -> None:
    smtp.reply("mail", "550 5.7.1 sender domain not verified")
    run = check(smtp.port)
    assert run.code == Step.MAIL == 17
    assert run.says('"550 5.7.1 sender domain not verified"', f"send as {FROM}", "SMTP_MAIL_FROM=<")


def test_a_recipient_that_is_refused(smtp: SmtpServer) -> None:
    smtp.reply("rcpt", "554 5.7.1 relay access denied")
    run = check(smtp.port, "--to", "ada@example.com")
    assert run.code == Step.RCPT == 18
    assert run.says("Relaying denied: without a login", "Set SMTP_USERNAME and SMTP_PASSWORD")
    assert smtp.messages == []


def test_a_mail_that_is_refused(smtp: SmtpServer) -> None:
    smtp.reply("dot", "554 5.7.1 message looks like spam")
    run = check(smtp.port, "--to", "ada@example.com")
    assert run.code == Step.MESSAGE == 19
    assert run.says('"554 5.7.1 message looks like spam"', "content filter")


# The command itself.


def test_wrong_settings_are_one_readable_message() -> None:
    run = check(25, SMTP_SECURITY="ssl", SMTP_TIMEOUT="soon", SMTP_PASSWORD=PASSWORD)
    assert run.code == Step.SETTINGS == 10
    assert run.says("SMTP_SECURITY", "SMTP_TIMEOUT", "'starttls'")
    assert PASSWORD[:8] not in run.text


def test_an_unusable_ca_file_is_a_wrong_setting(smtp: SmtpServer) -> None:
    run = check(smtp.port, SMTP_CA_FILE="/no/such/file.pem")
    assert run.code == Step.SETTINGS
    assert run.says("/no/such/file.pem cannot be used: No such file or directory")


@pytest.mark.parametrize(
    "arguments",
    [("--to", "ada"), ("--to", "ada@example.com, bob@example.com"), ("--timeout", "0"), ("--timeout", "soon")],
)
def test_a_wrong_argument_is_a_usage_error(arguments: tuple[str, str]) -> None:
    run = check(25, *arguments)
    assert run.code == 2
    assert run.says(f"error: argument {arguments[0]}: must be")


def test_ctrl_c_ends_it_without_a_traceback(smtp: SmtpServer, tmp_path: Path) -> None:
    smtp.delay("connect", 60)
    printed = tmp_path / "printed"
    with printed.open("wb") as file:
        process = subprocess.Popen(
            COMMAND, cwd=BACKEND, env=environment(smtp.host, smtp.port), stdout=file, stderr=file
        )
        try:
            wait_until(lambda: "connected to" in printed.read_text(), what="the TCP step")
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 130
        finally:
            process.kill()
            process.wait()
    assert "Traceback" not in printed.read_text()


@pytest.mark.parametrize(("no_color", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_colours_only_on_a_terminal_that_wants_them(
    smtp: SmtpServer, no_color: dict[str, str], coloured: bool
) -> None:
    assert "\033" not in check(smtp.port, **no_color).text
    ours, theirs = pty.openpty()
    with closing(os.fdopen(ours, "rb", buffering=0)) as terminal:
        with closing(os.fdopen(theirs, "wb", buffering=0)) as screen:
            env = environment(smtp.host, smtp.port, **no_color)
            assert (
                subprocess.run(COMMAND, cwd=BACKEND, env=env, stdout=screen, timeout=60, check=False).returncode == 0
            )
        shown = read_all(terminal.read)
    assert (b"\033[" in shown) == coloured
    assert b"All is well" in shown


def read_all(read: Callable[[int], bytes | None]) -> bytes:
    shown = b""
    try:
        while chunk := read(4096):
            shown += chunk
    except OSError:  # Linux's way of saying that the other side of a terminal is closed
        pass
    return shown


def test_every_exit_code_is_documented() -> None:
    helped = subprocess.run(
        [*COMMAND, "--help"], cwd=BACKEND, env=environment("x", 1), capture_output=True, text=True, check=True
    )
    page = (BACKEND.parent / "docs" / "smtp.md").read_text()
    assert [step.value for step in Step] == list(range(10, 20))
    for step in Step:
        assert f"{step.value}  {step.title} " in helped.stdout
        assert f"| {step.value} | {step.title} |" in page

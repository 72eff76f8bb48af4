"""S7: round trips to a server far away."""

import smtplib
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from mail.smtp import Envelope, Mail, Security, SmtpConfig, SmtpTransport
from speed.delay_proxy import DelayProxy
from speed.measuring import Row, Table, rows_of
from support.smtp_server import Authority, SmtpServer

RTT = 0.02  # seconds
LOGIN = ("mailer", "secret")
MESSAGE = b"Subject: hello\r\n\r\n" + b"The next lesson begins on Monday.\r\n" * 300


@contextmanager
def far_away() -> Iterator[tuple[int, Authority]]:
    """A server with STARTTLS and AUTH behind the delay; its port and who vouches for it."""
    with TemporaryDirectory() as name:
        authority = Authority(Path(name))
        with (
            SmtpServer(tls="starttls", auth=LOGIN, certificate=authority.certificate()) as server,
            DelayProxy(server.port, RTT) as proxy,
        ):
            yield proxy.port, authority


def round_trips(quick: bool) -> Table:
    """Per message, over connections as each of them keeps or makes them."""
    count = 10 if quick else 40
    names = ("ours, single mails", "ours, a chunk", "smtplib, connection kept", "smtplib, connecting each time")
    found: dict[str, list[float]] = {name: [] for name in names}
    with far_away() as (port, authority):
        context = ssl.create_default_context(cafile=authority.ca_file)
        for _ in range(2 if quick else 5):
            found["ours, single mails"].append(_ours(port, authority, count, together=1))
            found["ours, a chunk"].append(_ours(port, authority, count, together=10))
            found["smtplib, connection kept"].append(_kept(port, context, count))
            found["smtplib, connecting each time"].append(_connecting(port, context, max(3, count // 4)))
    rows: list[Row] = rows_of(found)
    single, chunk = rows[0].median, rows[1].median
    return Table(
        "S7: one connection at 20 ms, STARTTLS and AUTH", "round trips per mail", rows,
        "at most 2.3, in a chunk at most 1.3", chunk, single <= 2.3 and chunk <= 1.3,
        "A chunk is claimed in tens, so one announcement of ten travels alone. Setting the connection up is left out "
        "where it is kept.",
    )  # fmt: skip


def _ours(port: int, authority: Authority, count: int, *, together: int) -> float:
    config = SmtpConfig(
        "127.0.0.1", port, *LOGIN, security=Security.STARTTLS, ca_file=authority.ca_file, max_messages=10_000
    )
    transport = SmtpTransport(config)
    envelope = Envelope("no-reply@lms.example.com", "ada@example.com")
    transport.send(envelope, MESSAGE)
    began = time.perf_counter()
    mail = Mail(envelope, MESSAGE)
    for _ in range(count // together):
        with transport.chain() as chain:
            for at in range(together):
                chain.send(mail, mail if at + 1 < together else None)
    took = time.perf_counter() - began
    transport.close()
    return took / count / RTT


def _connect(port: int, context: ssl.SSLContext) -> smtplib.SMTP:
    client = smtplib.SMTP("127.0.0.1", port)
    client.starttls(context=context)
    client.login(*LOGIN)
    return client


def _kept(port: int, context: ssl.SSLContext, count: int) -> float:
    with _connect(port, context) as client:
        began = time.perf_counter()
        for _ in range(count):
            client.sendmail("no-reply@lms.example.com", "ada@example.com", MESSAGE)
        return (time.perf_counter() - began) / count / RTT


def _connecting(port: int, context: ssl.SSLContext, count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        with _connect(port, context) as client:
            client.sendmail("no-reply@lms.example.com", "ada@example.com", MESSAGE)
    return (time.perf_counter() - began) / count / RTT

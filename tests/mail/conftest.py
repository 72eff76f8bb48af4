"""A controllable SMTP server and transports to it."""

import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import trustme

from mail.smtp import SmtpConfig, SmtpTransport
from support.smtp_client import PASSWORD, USER, Connect
from support.smtp_server import Authority, SmtpServer


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def server(smtp: SmtpServer) -> SmtpServer:
    return smtp


@pytest.fixture(scope="module")
def certificate(authority: Authority) -> trustme.LeafCert:
    return authority.certificate()


@pytest.fixture
def tls_server(certificate: trustme.LeafCert) -> Iterator[SmtpServer]:
    with SmtpServer(tls="starttls", auth=(USER, PASSWORD), certificate=certificate) as server:
        yield server


@pytest.fixture
def connect(authority: Authority) -> Iterator[Connect]:
    """Makes transports to a server, with any field of SmtpConfig changed, and closes them."""
    made: list[SmtpTransport] = []

    def to(server: SmtpServer, **changes: Any) -> SmtpTransport:
        login = {"username": USER, "password": PASSWORD} if server.auth is not None else {}
        config = SmtpConfig(host=server.host, port=server.port, ca_file=authority.ca_file)
        made.append(SmtpTransport(replace(config, **(login | changes))))
        return made[-1]

    yield to
    for transport in made:
        transport.close()


@pytest.fixture
def named_host(monkeypatch: pytest.MonkeyPatch) -> str:
    """A host name that is not this machine's by its looks, yet leads to it."""
    real, name = socket.getaddrinfo, "mail.example.test"

    def getaddrinfo(host: str, *args: Any, **kwargs: Any) -> Any:
        return real("127.0.0.1" if host == name else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return name

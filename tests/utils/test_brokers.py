"""The queued forms over the other ways to reach Redis: TLS and a Unix socket."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from mail.answers import Due
from mail.kinds import Lane
from support.processes import Process, Valkey, free_port, wait_until
from support.smtp_server import Authority
from utils.composition import get_wake_ups
from utils.email_async import get_task_status, send_welcome_email_async

DUE = Due("some-id", "welcome", "ada@example.com")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def tls_port(tmp_path: Path, authority: Authority) -> Iterator[int]:
    """A Redis that speaks TLS, with a certificate of `authority`."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("needs Debian's redis-server: the embedded Valkey is built without TLS")
    certificate = authority.certificate("localhost")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    certificate.cert_chain_pems[0].write_to_path(str(chain))
    certificate.private_key_pem.write_to_path(str(key))
    port = free_port()
    options = {
        "port": "0",
        "tls-port": str(port),
        "tls-cert-file": chain,
        "tls-key-file": key,
        "tls-auth-clients": "no",
    }
    command = [program, "--save", "", "--dir", str(tmp_path)]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    with Process(command, tmp_path / "redis.log"):

        def answers() -> bool:
            try:
                with redis.Redis(host="localhost", port=port, ssl=True, ssl_ca_certs=authority.ca_file) as client:
                    return bool(client.ping())
            except redis.RedisError:
                return False

        wait_until(answers, what="Redis with TLS")
        yield port


def test_tls_with_a_trusted_certificate(tls_port: int, authority: Authority, configure: Callable[..., None]) -> None:
    configure(REDIS_URL=f"rediss://localhost:{tls_port}/0?ssl_ca_certs={authority.ca_file}")
    email_id = send_welcome_email_async("ada@example.com", "Ada")
    assert get_task_status(email_id)["state"] == "queued"
    assert get_wake_ups().backlog(Lane.STANDARD) == 1


def test_celery_does_not_talk_to_a_stranger(tls_port: int, valkey: Valkey, configure: Callable[..., None]) -> None:
    configure(REDIS_URL=valkey.url, CELERY_BROKER_URL=f"rediss://localhost:{tls_port}/0")
    assert get_wake_ups().publish(Lane.STANDARD, DUE) is False


def test_a_unix_socket(tmp_path: Path, configure: Callable[..., None]) -> None:
    path = tmp_path / "redis.sock"
    with Valkey(tmp_path, unixsocket=str(path)):
        configure(REDIS_URL=f"unix://{path}?db=3")
        send_welcome_email_async("ada@example.com", "Ada")
        assert get_wake_ups().backlog(Lane.STANDARD) == 1
        with redis.Redis(unix_socket_path=str(path), db=3) as client:
            assert client.dbsize() > 3


def test_a_wrong_password_is_named(tmp_path: Path, configure: Callable[..., None]) -> None:
    with Valkey(tmp_path) as server, server.client() as client:
        client.config_set("requirepass", "right")
        configure(REDIS_URL=server.url.replace("redis://", "redis://:wr0ng@"))
        with pytest.raises(Exception, match="refuses the password in REDIS_URL") as caught:
            send_welcome_email_async("ada@example.com", "Ada")
        assert "wr0ng" not in repr(caught.value)


def test_the_backlog_is_counted(configure: Callable[..., None]) -> None:
    """What keeps the sweep from flooding a lane that is behind."""
    assert get_wake_ups().backlog(Lane.STANDARD) == 0
    for number in range(3):
        get_wake_ups().publish(Lane.STANDARD, Due(str(number), "welcome", "ada@example.com"))
    assert get_wake_ups().backlog(Lane.STANDARD) == 3
    assert get_wake_ups().backlog(Lane.CRITICAL) == 0


def test_a_mail_of_a_kind_that_is_not_known_here_waits(configure: Callable[..., None]) -> None:
    assert get_wake_ups().publish(Lane.STANDARD, Due("some-id", "of_the_future", "ada@example.com")) is True
    assert get_wake_ups().backlog(Lane.STANDARD) == 0

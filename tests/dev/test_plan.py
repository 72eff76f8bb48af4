"""What ./start.sh starts, and the line it ends with when an address cannot be used: a fix, and never a password."""

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pytest

from dev.stack import StackError, plan
from dev.stack.plan import make_plan
from mail.errors import ConfigurationError
from settings import Settings
from support.processes import Valkey, free_port
from support.smtp_server import SmtpServer

PASSWORD = "h1dden-v4lue"
BARE = {"api", "mail", "bulk", "flower"}

Make = Callable[..., Settings]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Make:
    """Settings on free ports, where nothing answers."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(plan, "VALKEY", tmp_path)

    def apply(**more: object) -> Settings:
        ports = {name: free_port() for name in ("api_port", "flower_port", "inbox_port", "smtp_port")}
        values = {"redis_url": f"redis://127.0.0.1:{free_port()}/0", **ports, **more}
        return Settings(_env_file=None, **values)

    return apply


@pytest.fixture
def web_server() -> Iterator[int]:
    """The port of something that answers whatever it gets as a web server does, and greets nobody."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    if connection.recv(1000):
                        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def complaint(settings: Settings) -> str:
    with pytest.raises((StackError, ConfigurationError)) as caught:
        make_plan(settings)
    told = str(caught.value)
    assert len(told.splitlines()) == 1
    assert PASSWORD not in told
    return told


def me() -> str:
    return f"is taken by process {os.getpid()} ("


def test_what_does_not_answer_is_started_and_what_does_is_used(make: Make, valkey: Valkey, smtp: SmtpServer) -> None:
    assert set(make_plan(make()).programs) == {*BARE, "valkey", "inbox"}
    assert set(make_plan(make(redis_url=valkey.url, smtp_port=smtp.port)).programs) == BARE
    assert set(make_plan(make(smtp_host="smtp.example.com")).programs) == {*BARE, "valkey"}


@pytest.mark.parametrize("name", ["API_PORT", "FLOWER_PORT", "INBOX_PORT"])
def test_a_taken_port_is_named_with_its_setting_and_its_holder(make: Make, web_server: int, name: str) -> None:
    told = complaint(make(**{name.lower(): web_server}))
    assert told.startswith(f"Port {web_server} on 127.0.0.1 {me()}")
    assert f"set {name} to another port" in told


def test_two_settings_with_the_same_port(make: Make) -> None:
    port = free_port()
    assert complaint(make(api_port=port, inbox_port=port)).startswith(f"API_PORT and INBOX_PORT are both {port}.")


@pytest.mark.parametrize("host", ["192.0.2.7", "nothing.invalid"])
def test_an_address_of_another_machine(make: Make, host: str) -> None:
    assert complaint(make(api_host=host)).startswith(f"API_HOST: {host} is not an address of this machine.")


def test_the_smtp_port_taken_by_something_else(make: Make, web_server: int) -> None:
    told = complaint(make(smtp_port=web_server))
    assert f"127.0.0.1:{web_server} is no SMTP server: the port {me()}" in told
    assert "SMTP_PORT" in told


def test_the_port_of_redis_taken_by_something_else(make: Make, web_server: int) -> None:
    told = complaint(make(redis_url=f"redis://:{PASSWORD}@127.0.0.1:{web_server}/0"))
    assert f"127.0.0.1:{web_server} is no Redis" in told
    assert me() in told
    assert "REDIS_URL" in told


def test_redis_without_tls_asked_for_tls(make: Make, valkey: Valkey) -> None:
    told = complaint(make(redis_url=f"rediss://:{PASSWORD}@127.0.0.1:{valkey.port}/0"))
    assert "is no Redis with TLS" in told
    assert f"process {valkey.pid} (valkey-server)" in told


def test_redis_that_wants_another_password(make: Make, tmp_path: Path) -> None:
    with Valkey(tmp_path) as server:
        with server.client() as client:
            client.config_set("requirepass", PASSWORD)
        place = f"127.0.0.1:{server.port}"
        told = complaint(make(redis_url=f"redis://{place}/0"))
        assert told.startswith(f"The Redis at {place} demands a password, and there is none in REDIS_URL.")
        assert f"redis://:password@{place}/0" in told
        told = complaint(make(redis_url=f"redis://:{PASSWORD}2@{place}/0"))
        assert told.startswith(f"The Redis at {place} refuses the user or password in REDIS_URL.")
        assert set(make_plan(make(redis_url=f"redis://:{PASSWORD}@{place}/0")).programs) == {*BARE, "inbox"}


def test_a_database_that_redis_does_not_have(make: Make, valkey: Valkey) -> None:
    assert "DB index is out of range" in complaint(make(redis_url=f"redis://127.0.0.1:{valkey.port}/99"))


def test_redis_on_a_host_that_does_not_exist(make: Make) -> None:
    told = complaint(make(redis_url=f"redis://:{PASSWORD}@nothing.invalid:6379/0"))
    assert told.startswith("No Redis answers at nothing.invalid:6379, which REDIS_URL names (")
    assert "Start one there" in told


def test_a_cluster(make: Make, tmp_path: Path) -> None:
    with Valkey(tmp_path, **{"cluster-enabled": "yes"}) as server:
        assert "REDIS_URL: this is a Redis Cluster" in complaint(make(redis_url=server.url))


def test_the_redis_of_another_checkout_is_refused(make: Make, tmp_path: Path) -> None:
    theirs = tmp_path / "other" / ".run" / "valkey"
    theirs.mkdir(parents=True)
    with Valkey(theirs) as server, pytest.raises(StackError) as caught:
        make_plan(make(redis_url=server.url))
    assert f"belongs to another ./start.sh, in {tmp_path / 'other'}" in str(caught.value)
    assert "REDIS_URL and SMTP_PORT" in str(caught.value)


def test_every_taken_port_is_named(make: Make) -> None:
    settings = make()
    with (
        socket.create_server(("127.0.0.1", settings.api_port)),
        socket.create_server(("127.0.0.1", settings.flower_port)),
        pytest.raises(StackError) as caught,
    ):
        make_plan(settings)
    api, flower = str(caught.value).splitlines()
    assert f"Port {settings.api_port} " in api
    assert f"Port {settings.flower_port} " in flower

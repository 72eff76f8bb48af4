"""Services in real processes: Valkey, a worker node, the API and an SMTP server to send to."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from support.checkout import Checkout
from support.processes import Process, Valkey, free_port, wait_until
from support.service import Service, forget_settings, service_env
from support.smtp_server import SmtpServer


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """`build(NAME="value")`: a service of the test's own that may be hurt. Nothing but Valkey runs yet."""
    services: list[Service] = []
    servers: list[SmtpServer] = []

    def make(smtp: SmtpServer | None = None, **env: str) -> Service:
        if smtp is None:
            smtp = SmtpServer()
            smtp.start()
            servers.append(smtp)
        valkey = Valkey(tmp_path).start()
        service = Service(valkey, smtp, service_env(valkey.url, smtp, **env), tmp_path, [valkey])
        services.append(service)
        return service

    yield make
    for service in services:
        service.close()
    for server in servers:
        server.stop()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A running service that the tests of a module share and do not hurt."""
    directory = tmp_path_factory.mktemp("service")
    with SmtpServer() as smtp:
        valkey = Valkey(directory).start()
        env = service_env(valkey.url, smtp, RETRY_BASE_SECONDS="1", RETRY_MAX_SECONDS="1", LEASE_SECONDS="5")
        running = Service(valkey, smtp, env, directory, [valkey])
        try:
            running.worker()
            running.api()
            yield running
        finally:
            running.close()


@pytest.fixture(scope="module")
def flower(service: Service) -> Iterator[httpx.Client]:
    """Flower on the shared service, once it knows the worker."""
    port = free_port()
    env = {**service.env, "FLOWER_PORT": str(port)}
    with (
        Process(["./start_flower.sh"], service.directory / "flower.log", env),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client,
    ):

        def answers() -> bool:
            try:
                return bool(client.get("/api/workers?refresh=1").json())
            except (httpx.TransportError, ValueError):
                return False

        wait_until(answers, timeout=40, what="Flower to see the worker")
        yield client


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtualenv that shares the packages of the running one, so that no test needs a network."""
    home = tmp_path_factory.mktemp("venv")
    packages = home / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    packages.parent.mkdir(parents=True)
    packages.symlink_to(Path(psutil.__file__).parents[1])
    (home / "bin").mkdir()
    (home / "bin" / "python").symlink_to(Path(sys.executable).resolve())
    shutil.copy(Path(sys.prefix) / "pyvenv.cfg", home)
    # Else whichever test is the first to start something would see it installed.
    first = Checkout(home / "checkout", home)
    subprocess.run(
        [home / "bin" / "python", "deploy/bootstrap.py", "requirements-local.txt"], cwd=first.root, check=True
    )
    return home


@pytest.fixture
def as_client(service: Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process becomes a client of the shared service, as an LMS backend is."""
    for name, value in service.env.items():
        monkeypatch.setenv(name, value)
    forget_settings()
    yield
    forget_settings()

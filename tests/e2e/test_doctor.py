"""`python doctor.py` beside real servers: what is well is ok, each fault is named with its fix, none holds it up."""

import json
import os
import pty
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet

from support.needs import missing, need
from support.processes import BACKEND, BIN, Process, Valkey, free_port, wait_until
from support.service import Service
from support.smtp_server import Authority, SmtpServer

PASSWORD = "p:Pl4nted-Zk9"
KEYS = "lms:send:5c1f0b93e7d45c1f0b93e7d4aa01,desk:read+admin:d8b2f6a1049c7e53d8b2f6a1049c7e53"
PATIENCE = 30  # seconds, on a machine that does much else; 12 and the start of Python by itself
LEVELS = {"ok", "warning", "fault", "skipped"}


@dataclass(frozen=True)
class Report:
    """What it found, by name; a name may come more than once."""

    code: int
    text: str
    seconds: float

    @property
    def checks(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.text)["checks"]
        return found

    def bad(self) -> dict[str, str]:
        """The names of what is not ok, with their levels."""
        return {one["name"]: one["level"] for one in self.checks if one["level"] != "ok"}

    def of(self, name: str, level: str) -> str:
        """What was found there, and the fix."""
        [one] = [one for one in self.checks if one["name"] == name and one["level"] == level] or [{}]
        assert one, f"no {level} of {name} in {self.bad()}"
        assert one["fix"] or level in {"ok", "skipped"}
        return f"{one['found']} | {one['fix']}"


def run(
    env: Mapping[str, str],
    *arguments: str,
    script: Path = BACKEND / "doctor.py",
    before: tuple[str, ...] = (sys.executable,),
    cwd: Path = BACKEND,
) -> Report:
    begun = time.monotonic()
    done = subprocess.run(
        [*before, str(script), *arguments],
        cwd=cwd,
        env={"PATH": os.environ["PATH"], **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert PASSWORD not in done.stdout + done.stderr
    return Report(done.returncode, done.stdout or done.stderr, time.monotonic() - begun)


def doctor(env: Mapping[str, str], **more: str) -> Report:
    return run({**env, **more}, "--json")


@pytest.fixture
def env(env: dict[str, str]) -> dict[str, str]:
    """A sound installation beside servers of the tests, whose own programs do not run."""
    ports = {name: str(free_port()) for name in ("API_PORT", "FLOWER_PORT", "INBOX_PORT")}
    return {**env, **ports, "API_KEYS": KEYS}


def test_a_whole_service_that_is_well_and_then_loses_redis(build: Callable[..., Service]) -> None:
    service = build(API_KEYS=f"{KEYS},all:send+custom+bulk+read+admin:all-key-of-the-tests-3e8d17f0")
    service.worker(lanes="critical,standard,bulk")
    api = service.api()
    ports = {"API_PORT": str(api.port), "FLOWER_PORT": str(free_port()), "INBOX_PORT": str(free_port())}
    well = doctor(service.env, **ports)
    assert (well.code, well.bad()) == (0, {})
    whole = json.loads(well.text)
    assert set(whole) == {"schema", "at", "level", "checks"}
    assert (whole["schema"], whole["level"]) == (1, "ok")
    for one in whole["checks"]:
        assert set(one) == {"name", "level", "found", "fix", "seconds"}
        assert one["level"] in LEVELS
    assert {f"lanes.{lane}" for lane in ("critical", "standard", "bulk")} <= {one["name"] for one in well.checks}
    assert "is ready" in well.of("api", "ok")

    service.valkey.freeze()
    try:
        frozen = doctor(service.env, **ports)
    finally:
        service.valkey.thaw()
    assert frozen.code == 1
    assert frozen.bad() == {"redis": "fault", "lanes": "skipped", "outbox": "skipped", "api": "fault"}
    assert "does not answer" in frozen.of("redis", "fault")
    assert frozen.of("smtp.rcpt_to", "ok")
    assert frozen.seconds < PATIENCE


class TestRedis:
    def test_nobody_serves_the_lanes(self, env: dict[str, str]) -> None:
        found = doctor(env)
        assert found.code == 1
        assert found.bad() == {
            "api": "warning",
            **{f"lanes.{lane}": "fault" for lane in ("critical", "standard", "bulk")},
        }
        assert "./start_celery.sh" in found.of("lanes.bulk", "fault")

    def test_not_there(self, env: dict[str, str]) -> None:
        found = doctor(env, REDIS_URL=f"redis://:{PASSWORD}@127.0.0.1:{free_port()}/0")
        assert "refused" in found.of("redis", "fault")
        assert found.of("lanes", "skipped")

    def test_a_wrong_password_and_forbidden_commands(self, env: dict[str, str], tmp_path: Path) -> None:
        with Valkey(tmp_path) as strict, strict.client() as direct:
            url = strict.url.replace("//", f"//mail:{PASSWORD.replace(':', '%3A')}@")
            assert "refuses the password" in doctor(env, REDIS_URL=url).of("redis", "fault")
            direct.acl_setuser(
                "mail",
                enabled=True,
                passwords=[f"+{PASSWORD}"],
                keys=["*"],
                commands=["+@all", "-info", "-config|get"],
            )
            found = doctor(env, REDIS_URL=url)
        assert "forbids INFO" in found.of("redis.info", "warning")
        assert "forbids CONFIG GET" in found.of("redis.fsync", "warning")

    def test_a_careless_one_that_is_full(self, env: dict[str, str], tmp_path: Path) -> None:
        options = {"appendonly": "no", "maxmemory-policy": "allkeys-lru"}
        with Valkey(tmp_path, **options) as careless, careless.client() as direct:
            for number in range(50):
                direct.set(f"ballast{number}", "x" * 100_000)
            direct.config_set("maxmemory", int(direct.info("memory")["used_memory"] / 0.95))
            found = doctor(env, REDIS_URL=careless.url)
        assert "appendonly yes" in found.of("redis.persistence", "fault")
        assert "allkeys-lru" in found.of("redis.eviction", "fault")
        assert "accepting has stopped" in found.of("redis.memory", "fault")

    def test_another_clock(self, env: dict[str, str]) -> None:
        ahead = (need("faketime", package="faketime"), "-f", "+1h", sys.executable)
        assert "3600 s ahead of Redis" in run(env, "--json", before=ahead).of("clock", "warning")


def test_two_silent_servers_hold_nothing_up(env: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        broker = f"amqp://u:{PASSWORD.replace(':', '%3A')}@127.0.0.1:{port}//"
        found = doctor(env, SMTP_PORT=str(port), REDIS_URL=f"redis://127.0.0.1:{port}/0", CELERY_BROKER_URL=broker)
    assert found.seconds < PATIENCE
    levels = {one["name"].partition(".")[0]: one["level"] for one in found.checks if one["level"] != "ok"}
    assert {levels[name] for name in ("redis", "broker", "smtp")} == {"fault"}
    assert found.of("templates", "ok")


def test_a_broker_that_is_not_there(env: dict[str, str]) -> None:
    broker = f"amqp://u:{PASSWORD.replace(':', '%3A')}@127.0.0.1:{free_port()}//"
    assert "refused" in doctor(env, CELERY_BROKER_URL=broker).of("broker", "fault")


def test_a_wrong_smtp_password(env: dict[str, str], tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server = SmtpServer(auth=("mailer", "another"), tls="starttls", certificate=authority.certificate())
    with server:
        login = {"SMTP_USERNAME": "mailer", "SMTP_PASSWORD": PASSWORD, "SMTP_PORT": str(server.port)}
        wrong = doctor(env, **login, SMTP_CA_FILE=authority.ca_file)
        untrusted = doctor(env, **login)
    assert "535" in wrong.of("smtp.auth", "fault")
    assert "SMTP_CA_FILE" in untrusted.of("smtp.tls", "fault")


class TestSettings:
    def test_wrong_ones(self, env: dict[str, str]) -> None:
        found = doctor(env, SMTP_PORT=PASSWORD)
        assert found.code == 1
        assert "SMTP_PORT (environment)" in found.of("settings", "fault")
        assert found.of("python", "ok")
        assert {name for name, level in found.bad().items() if level == "skipped"} >= {"redis", "smtp", "templates"}

    def test_what_production_should_not_have(self, env: dict[str, str]) -> None:
        both = "5c1f0b93e7d45c1f0b93e7d4aa01"
        outbox_key = Fernet.generate_key().decode()
        found = doctor(
            env,
            ENVIRONMENT="production",
            ALLOWED_LINK_HOSTS="lms.example.com",
            API_KEYS=f"lms:send:{both},desk:read:{both},dev:send+custom+bulk+read+admin:{'k' * 48}",
            OUTBOX_KEYS=f"{outbox_key},{outbox_key}",
            MAIL_REDIRECT_TO="me@example.com",
            CORS_ORIGINS="https://lms.example.com",
        )
        keys = [one["found"] for one in found.checks if one["name"] == "keys.api"]
        assert [word for word in ("weak", "same key", "everything") if not any(word in key for key in keys)] == []
        assert both not in found.text
        assert outbox_key not in found.text
        expected = dict.fromkeys(
            ("settings.redirect", "settings.brand", "settings.cors", "keys.outbox", "redis.fsync"), "warning"
        )
        assert expected.items() <= found.bad().items()

    def test_development_keys_by_hand_are_a_warning(self, env: dict[str, str]) -> None:
        assert "by hand" in doctor(env, API_KEYS="dev:send:secret").of("keys.api", "warning")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what a clone holds, that may be broken."""
    ignored = shutil.ignore_patterns("__pycache__", ".env", ".outbox-key", "dev")
    shutil.copytree(BACKEND, tmp_path / "lms" / "backend", ignore=ignored)
    return tmp_path / "lms" / "backend"


def test_a_damaged_checkout_looked_at_from_elsewhere(checkout: Path, env: dict[str, str]) -> None:
    (checkout / "templates" / "emails" / "welcome.txt").write_text("Hello\n{% if name %}")
    (checkout / ".env").write_text(f"SMTP_PASS={PASSWORD}\nBRAND_NAME=School\n")
    (checkout / ".env").chmod(0o644)
    pins = (checkout / "constraints.txt").read_text()
    (checkout / "constraints.txt").write_text(pins.replace("\nidna==", "\nidna==0."))
    (checkout / "requirements.txt").write_text("never-heard-of==1.0\n")
    env = {name: value for name, value in env.items() if name != "ENV_FILE"}
    found = run(env, "--json", script=checkout / "doctor.py", cwd=Path("/"))
    assert "welcome.txt, line 2" in found.of("templates", "fault")
    assert "did you mean SMTP_PASSWORD" in found.of("settings", "warning")
    assert "chmod 640" in found.of("files.env", "fault")
    assert "idna" in found.of("packages", "warning")
    assert "never-heard-of" in found.of("packages", "fault")


@contextmanager
def full_disk(directory: Path) -> Iterator[None]:
    directory.mkdir()
    mount, unmount = need("mount", package="mount"), need("umount", package="mount")
    done = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=64k", "none", str(directory)], capture_output=True, check=False
    )
    if done.returncode:
        missing("only root may mount a file system")
    try:
        (directory / "ballast").write_bytes(bytes(64 * 1024))
        yield
    finally:
        subprocess.run([unmount, str(directory)], check=True)


def test_a_full_disk(checkout: Path, env: dict[str, str]) -> None:
    with full_disk(checkout.parent / ".run"):
        found = run(env, "--json", script=checkout / "doctor.py")
    assert "No space left" in found.of("disk.run", "fault")


def outside_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address but loopback")
        return str(probe.getsockname()[0])


def connects(host: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


def test_flower_that_the_network_can_see(env: dict[str, str], tmp_path: Path) -> None:
    """Settings refuse such a Flower; one that somebody starts by hand asks nobody."""
    address, port = outside_address(), env["FLOWER_PORT"]
    command = [str(BIN / "celery"), "-A", "celery_app", "flower", "--address=0.0.0.0", f"--port={port}"]
    for more, level, words in (
        ([], "fault", "without a password"),
        (["--basic-auth=ada:s3cret"], "warning", "/metrics"),
    ):
        with Process([*command, *more], tmp_path / "flower.log", env):
            wait_until(lambda: connects(address, int(port)), timeout=40, what="Flower")
            found = doctor(env).of("flower", level)
        assert words in found
        assert address in found


def test_what_a_terminal_shows(env: dict[str, str]) -> None:
    env = {"PATH": os.environ["PATH"], **env, "COLUMNS": "80"}
    plain = run(env).text
    assert max(map(len, plain.splitlines())) <= 80
    assert "\033" not in plain
    assert "Fix: Run ./start_celery.sh" in " ".join(plain.split())
    assert plain.rstrip().endswith("3 faults and 1 warning. More: docs/doctor.md")
    for more, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        ours, theirs = pty.openpty()
        with closing(os.fdopen(ours, "rb", buffering=0)) as terminal:
            process = subprocess.Popen(
                [sys.executable, "doctor.py"], cwd=BACKEND, env={**env, **more}, stdout=theirs, stderr=theirs
            )
            os.close(theirs)
            shown = _read_all(terminal.read)
        assert process.wait(20) == 1
        assert (b"\033[31;1mfault" in shown) == coloured


def _read_all(read: Callable[[int], bytes | None]) -> bytes:
    shown = b""
    try:
        while chunk := read(4096):
            shown += chunk
    except OSError:  # Linux's way of saying that the other side of a terminal is closed
        pass
    return shown


def test_a_python_without_the_packages(tmp_path: Path) -> None:
    bare = run({}, before=(sys.executable, "-S"))
    assert bare.code == 1
    assert "Run it with the service's Python: ../.venv/bin/python doctor.py" in bare.text


def test_help_and_page_have_every_exit_code_and_check(env: dict[str, str]) -> None:
    page = (BACKEND.parent / "docs" / "doctor.md").read_text()
    helped = run(env, "--help").text
    for code in ("0", "1", "2", "130"):
        assert f"\n  {code:>3}  " in helped
        assert f"| {code} |" in page
    names = {one["name"] for one in doctor(env).checks}
    assert [name for name in names if f"`{name}`" not in page and f"`{name.partition('.')[0]}.*`" not in page] == []
    assert run(env, "--wrong").code == 2

"""./start.sh, the two other scripts and the three-terminal way: in a copy of the checkout, on free ports."""

import re
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from support.checkout import PORTS, PROGRAMS, Checkout, Script, all_gone, answers, is_open
from support.processes import wait_until

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(180)


class Stack:
    """A checkout that is started when a test needs it running, and stays so for the next."""

    def __init__(self, checkout: Checkout) -> None:
        self.checkout = checkout
        self.script: Script | None = None

    def running(self) -> Script:
        if self.script is None or not self.script.running:
            self.script = self.checkout.start()
            self.script.wait_for("Ctrl-C stops everything")
        return self.script


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
    return home


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, venv: Path) -> Iterator[Stack]:
    stack = Stack(Checkout(tmp_path_factory.mktemp("start") / "my checkout", venv))
    yield stack
    if stack.script:
        stack.script.destroy()


@pytest.fixture
def running(stack: Stack) -> Script:
    return stack.running()


@pytest.fixture
def checkout(stack: Stack) -> Checkout:
    return stack.checkout


@pytest.fixture
def other(tmp_path: Path, venv: Path) -> Checkout:
    """Another checkout, where nothing runs."""
    return Checkout(tmp_path / "other", venv)


@pytest.fixture
def spawn() -> Iterator[Callable[..., Script]]:
    """Runs scripts that end with the test."""
    scripts: list[Script] = []

    def run(start: Callable[..., Script], *arguments: Any, **options: Any) -> Script:
        scripts.append(start(*arguments, **options))
        return scripts[-1]

    yield run
    for script in scripts:
        script.destroy()


def test_it_says_where_everything_is_and_the_curl_line_works(running: Script, checkout: Checkout) -> None:
    text = running.text()
    for url in (checkout.url("API_PORT", "/docs"), checkout.url("FLOWER_PORT"), checkout.url("INBOX_PORT")):
        assert url in text
        assert httpx.get(url).is_success
    line = next(line for line in text.splitlines() if line.strip().startswith("curl"))
    if not shutil.which("curl"):
        pytest.skip("needs curl")
    sent = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True)
    assert '"state":"queued"' in sent.stdout
    wait_until(lambda: "ada@example.com" in httpx.get(checkout.url("INBOX_PORT", "/api/v1/messages")).text)


def test_the_env_file_has_what_another_terminal_needs(running: Script, checkout: Checkout) -> None:
    file = checkout.root / "backend" / ".env"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert checkout.setting("REDIS_URL") == "redis://127.0.0.1:6390/0"
    assert (checkout.setting("SMTP_HOST"), checkout.setting("SMTP_PORT")) == ("127.0.0.1", "1025")
    for name in ("SMTP_USERNAME", "SMTP_PASSWORD", "SMTP_MAIL_FROM", "SMTP_FROM_NAME", "OUTBOX_KEYS", *PORTS):
        checkout.setting(name)


def test_flower_shows_tasks_and_can_change_nothing(running: Script, checkout: Checkout) -> None:
    email_id = checkout.send()
    wait_until(lambda: email_id in httpx.get(checkout.url("FLOWER_PORT", "/api/tasks")).json())
    node = f"mail@{socket.gethostname()}"
    answer = httpx.post(checkout.url("FLOWER_PORT", f"/api/worker/shutdown/{node}"))
    assert answer.status_code == 403


def test_supervisorctl_finds_the_programs(running: Script, checkout: Checkout) -> None:
    command = [sys.executable, "-m", "supervisor.supervisorctl", "-c", "deploy/supervisord.conf", "status"]
    status = subprocess.run(command, cwd=checkout.root, capture_output=True, text=True, check=False).stdout
    assert set(PROGRAMS) == {line.split()[0].split(":")[-1] for line in status.splitlines()}


def test_a_second_start_is_one_clear_line(running: Script, checkout: Checkout) -> None:
    again = Script(
        [str(checkout.root / "start.sh")], cwd=Path("/"), env=checkout.env, log=checkout.root / "again.log"
    )
    assert again.wait() == 1
    assert re.fullmatch(r"This checkout is already running \(process \d+\).*\n", again.text())
    assert running.running


@pytest.mark.parametrize("name", ["API_PORT", "FLOWER_PORT", "INBOX_PORT"])
def test_a_taken_port_is_one_clear_line_and_nothing_starts(
    other: Checkout, spawn: Callable[..., Script], name: str
) -> None:
    with socket.create_server(("127.0.0.1", other.ports[name])):
        script = spawn(other.start)
        assert script.wait() == 1
    last = script.text().splitlines()[-1]
    assert name in last
    assert str(other.ports[name]) in last
    assert "Starting" not in script.text()
    assert not other.listening()


def test_ctrl_c_leaves_nothing_and_the_next_start_has_the_data(stack: Stack, running: Script) -> None:
    checkout = stack.checkout
    email_id = checkout.send()
    env_file = (checkout.root / "backend" / ".env").read_bytes()
    processes = running.tree()
    running.ctrl_c()
    assert running.wait() == 0
    assert all_gone(processes)
    assert not checkout.listening()
    log = (checkout.root / ".run" / "stack.log").read_text()
    ends = [log.rindex(f"stopped: {name} ") for name in ("api", "mail", "flower", "inbox", "valkey")]
    assert ends == sorted(ends)

    stack.running()
    assert (checkout.root / "backend" / ".env").read_bytes() == env_file
    assert "Installing" not in stack.running().text()
    with checkout.api() as api:
        assert api.get(f"/api/emails/{email_id}").json()["state"] == "sent"


def test_sigterm_leaves_nothing_even_while_it_starts(other: Checkout, spawn: Callable[..., Script]) -> None:
    script = spawn(other.start)
    wait_until(lambda: "api" in script.programs(), timeout=60)
    processes = script.tree()
    script.process.terminate()
    assert script.wait() == 0
    assert all_gone(processes)
    assert not other.listening()


def test_any_program_that_is_killed_comes_back(running: Script, checkout: Checkout) -> None:
    before = running.programs()
    assert set(before) == set(PROGRAMS)
    for name, process in before.items():
        process.kill()
        wait_until(
            lambda name=name, process=process: running.programs().get(name, process) != process,
            timeout=40,
            what=f"a new {name}",
        )
    _wait_well(checkout)


def test_without_supervisor_the_programs_end_and_both_come_back(running: Script, checkout: Checkout) -> None:
    before = running.programs()
    running.supervisor().kill()
    wait_until(lambda: all_gone(list(before.values())), timeout=40, what="the end of its programs")
    wait_until(lambda: set(running.programs()) == set(PROGRAMS), timeout=40, what="new programs")
    assert not set(before.values()) & set(running.programs().values())
    _wait_well(checkout)


def test_when_start_sh_is_killed_everything_ends(running: Script, checkout: Checkout) -> None:
    processes = running.tree()
    running.process.kill()
    running.wait()
    wait_until(lambda: all_gone(processes), timeout=60, what="the end of everything")
    assert not checkout.listening()


def test_start_celery_alone(
    running: Script, checkout: Checkout, other: Checkout, spawn: Callable[..., Script]
) -> None:
    env = {"REDIS_URL": checkout.env["REDIS_URL"], "KEY_PREFIX": "alone:"}
    script = spawn(other.start, script="backend/start_celery.sh", **env)
    script.wait_for(r"@\S+ ready\.", times=2)
    processes = script.tree()
    assert set(script.programs()) == {"mail", "bulk"}
    script.process.terminate()
    assert script.wait() == 0
    assert all_gone(processes)
    assert script.text().count("Warm shutdown") == 2


def test_flower_keeps_to_loopback_without_a_password(other: Checkout, spawn: Callable[..., Script]) -> None:
    script = spawn(other.start, script="backend/start_flower.sh", FLOWER_ADDRESS="0.0.0.0")
    assert script.wait() == 1
    assert re.fullmatch(r".*FLOWER_BASIC_AUTH.*\n", script.text())


def test_flowers_password_is_asked_for_and_not_in_ps(
    running: Script, checkout: Checkout, other: Checkout, spawn: Callable[..., Script]
) -> None:
    env = {"REDIS_URL": checkout.env["REDIS_URL"], "FLOWER_BASIC_AUTH": "ada:s3cret"}
    script = spawn(other.start, script="backend/start_flower.sh", **env)
    wait_until(lambda: is_open(other.ports["FLOWER_PORT"]), timeout=40)
    url = other.url("FLOWER_PORT", "/api/tasks")
    assert httpx.get(url).status_code == 401
    assert httpx.get(url, auth=("ada", "s3cret")).status_code == 200
    assert not any("s3cret" in word for process in script.tree() for word in process.cmdline())
    script.process.terminate()
    assert script.wait() == 0


@pytest.mark.skipif(not shutil.which("redis-server"), reason="needs Debian's redis-server")
def test_three_terminals_with_redis_server_and_the_seven_names(
    other: Checkout, spawn: Callable[..., Script], tmp_path: Path
) -> None:
    backend = other.root / "backend"
    (backend / ".env").write_text(
        f"REDIS_URL={other.env.pop('REDIS_URL')}\n"
        f"SMTP_HOST=127.0.0.1\nSMTP_PORT={other.env.pop('SMTP_PORT')}\nSMTP_USERNAME=\nSMTP_PASSWORD=\n"
        'SMTP_MAIL_FROM=no-reply@lms.test\nSMTP_FROM_NAME="Example Academy"\n'
    )
    python = str(other.root / ".venv" / "bin" / "python")
    ports = {name: str(port) for name, port in other.ports.items()}
    inbox = ["-m", "dev.inbox", "--smtp-host=127.0.0.1", f"--smtp-port={ports['SMTP_PORT']}"]
    inbox += ["--http-host=127.0.0.1", f"--http-port={ports['INBOX_PORT']}"]
    commands = {
        "redis": ["redis-server", "--port", str(other.redis_port), "--dir", str(tmp_path)],
        "inbox": [python, *inbox],
        "api": [python, "-m", "uvicorn", "main:app", "--reload", "--port", ports["API_PORT"]],
        "celery": ["./start_celery.sh"],
        "flower": ["./start_flower.sh"],
    }
    scripts = {
        name: spawn(Script, command, cwd=backend, env=other.env, log=tmp_path / f"{name}.log")
        for name, command in commands.items()
    }
    scripts["celery"].wait_for(r"@\S+ ready\.", times=2)
    wait_until(lambda: answers(other.url("API_PORT", "/health/ready")), timeout=40)
    wait_until(lambda: answers(other.url("FLOWER_PORT", "/healthcheck")), timeout=40)
    answer = httpx.post(other.url("API_PORT", "/api/emails"), json={"kind": "welcome"})
    assert (answer.status_code, "API_KEYS" in answer.text) == (401, True)

    code = "from utils.email_async import send_welcome_email_async as send; print(send('zoe@example.com', 'Zoe'))"
    sent = subprocess.run(
        [python, "-c", code], cwd=backend, env=other.env, capture_output=True, text=True, check=True
    )
    email_id = sent.stdout.strip()
    wait_until(lambda: email_id in httpx.get(other.url("INBOX_PORT", "/api/v1/messages")).text, timeout=30)
    wait_until(lambda: email_id in httpx.get(other.url("FLOWER_PORT", "/api/tasks")).json(), timeout=10)
    for name in ("flower", "celery", "api", "inbox", "redis"):
        processes = scripts[name].tree()
        scripts[name].ctrl_c()
        scripts[name].wait()
        wait_until(lambda processes=processes: all_gone(processes), timeout=30, what=f"the end of {name}")


def test_a_half_made_virtualenv_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "backend").mkdir()
    for name in ("requirements-local.txt", "constraints.txt"):
        (tmp_path / "backend" / name).write_text("# nothing to install\n")
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy")
    venv = tmp_path / ".venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").write_text("interrupted")
    (venv / ".unfinished").touch()

    def bootstrap() -> str:
        command = [sys.executable, "deploy/bootstrap.py", "requirements-local.txt", "-c", "print('in the venv')"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert "in the venv" in done.stdout
        return done.stdout

    assert "Installing" in bootstrap()
    assert "Installing" not in bootstrap()


def _wait_well(checkout: Checkout) -> None:
    wait_until(lambda: answers(checkout.url("API_PORT", "/health/ready")), timeout=40, what="the API")
    wait_until(lambda: answers(checkout.url("FLOWER_PORT", "/healthcheck")), timeout=40, what="Flower")
    wait_until(lambda: answers(checkout.url("INBOX_PORT", "/api/v1/messages")), timeout=40, what="the inbox")
    checkout.send()

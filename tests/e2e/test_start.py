"""./start.sh, the two other scripts and the three-terminal way: in a copy of the checkout, on free ports."""

import os
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
import pytest
from cryptography.fernet import Fernet

from dev.stack.demo import Demo
from dev.stack.plan import Plan
from mail.kinds import KINDS
from settings import Settings
from support.checkout import PORTS, PROGRAMS, Checkout, Script, all_gone, answers, is_open
from support.processes import BACKEND, BIN, Api, Valkey, free_port, wait_until

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(180)


class Stack:
    """A checkout that is started when a test needs it running, and stays so for the next."""

    def __init__(self, checkout: Checkout) -> None:
        self.checkout = checkout
        self.script: Script | None = None
        self.demo = ""

    def running(self) -> Script:
        if self.script is None or not self.script.running:
            first = self.script is None
            self.script = self.checkout.start("--demo") if first else self.checkout.start()
            self.script.wait_for("Tasks " if first else "Ctrl-C stops everything")
            self.demo = self.demo or self.script.text()
        return self.script


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, venv: Path) -> Iterator[Stack]:
    stack = Stack(Checkout(tmp_path_factory.mktemp("start") / "my Mäil 邮件", venv))
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


def test_the_banner_fits_a_terminal(running: Script, stack: Stack) -> None:
    lines = [line for line in stack.demo.splitlines() if "curl" not in line and "?once=" not in line]
    assert max(map(len, lines)) <= 80
    for name in ("API", "Console", "Flower", "Inbox", "Redis", "SMTP", "Log", "API key"):
        assert f"\n  {name:<9}" in stack.demo


def test_the_link_in_the_banner_signs_in_to_the_console_once(running: Script, stack: Stack) -> None:
    link = re.search(r"^  (http://127\.0\.0\.1:\d+/console/sign-in\?once=\S+)$", stack.demo, re.MULTILINE)
    assert link
    with httpx.Client(follow_redirects=True, timeout=10) as browser:
        page = browser.get(link[1])
        assert (page.status_code, page.url.path) == (200, "/console")
        assert "Needs attention" not in page.text
        assert browser.get(link[1]).status_code == 401


def test_the_demo_sends_one_mail_of_each_kind_and_says_where_it_is(stack: Stack, running: Script) -> None:
    rows = re.findall(r"^  (\w+) +(\w+) +http://127\.0\.0\.1:(\d+)/#(\S+)$", stack.demo, re.MULTILINE)
    inbox = str(stack.checkout.ports["INBOX_PORT"])
    assert [(kind, state, port) for kind, state, port, _ in rows] == [(kind, "sent", inbox) for kind in KINDS]
    found = re.search(r"/api/emails\?to=(\S+)", stack.demo)
    assert found
    with stack.checkout.api() as api:
        records = api.get("/api/emails", params={"to": found[1]}).json()["items"]
    assert {record["kind"] for record in records} == set(KINDS)
    assert httpx.get(stack.checkout.url("FLOWER_PORT", "/tasks")).is_success


def test_the_demo_shows_why_a_mail_was_not_sent(stack: Stack, running: Script) -> None:
    port = {"api_port": stack.checkout.ports["API_PORT"], "inbox_port": stack.checkout.ports["INBOX_PORT"]}
    settings = Settings(_env_file=None, smtp_host="smtp.example.com", **port)
    nothing_here = Plan((), {})
    assert "made-up recipients would go to smtp.example.com" in "".join(
        Demo(settings, nothing_here, "x", bool).lines()
    )
    settings = Settings(_env_file=None, **port)
    shown = list(Demo(settings, nothing_here, "wrong-key", bool).lines())
    assert re.fullmatch(r"  welcome +refused +This API key is not known.*", shown[1])


def test_a_taken_port_is_one_clear_line_and_nothing_starts(other: Checkout, spawn: Callable[..., Script]) -> None:
    with socket.create_server(("127.0.0.1", other.ports["FLOWER_PORT"])):
        script = spawn(other.start)
        assert script.wait() == 1
    wrote, line = script.text().splitlines()
    assert wrote == "Wrote backend/.env with fresh keys."
    assert f"Port {other.ports['FLOWER_PORT']} " in line
    assert "set FLOWER_PORT to another port" in line
    assert not other.listening()


@pytest.mark.parametrize(("argument", "code"), [("--help", 0), ("--dmeo", 2), ("demo", 2)])
def test_the_options_are_shown_without_installing_anything(
    other: Checkout, spawn: Callable[..., Script], argument: str, code: int
) -> None:
    (other.root / ".venv").unlink()
    script = spawn(other.start, argument)
    assert script.wait() == code
    assert "usage: ./start.sh [--demo]" in script.text()
    assert not (other.root / ".venv").exists()


def test_a_broken_line_of_the_env_file_stops_the_start(other: Checkout, spawn: Callable[..., Script]) -> None:
    (other.root / "backend" / ".env").write_text("SMTP_PORT=1025\n\nSMTP_HOST 127.0.0.1\n")
    script = spawn(other.start)
    assert script.wait() == 1
    assert script.text() == "backend/.env, line 3: must read NAME=value, or begin with #\n"


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


def test_workers_read_the_smtp_server_from_env_again_when_they_are_restarted(running: Script) -> None:
    programs = running.programs()
    for name in ("api", "mail", "bulk"):
        # What the environment says would win over .env. (SMTP_PORT is there: these tests set it.)
        assert "SMTP_HOST" not in programs[name].environ(), name


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
    assert re.fullmatch(r"Wrong settings:\n  FLOWER_ADDRESS .*FLOWER_BASIC_AUTH.*\n", script.text())


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


def test_a_half_made_virtualenv_is_made_again_and_a_missing_network_is_named(tmp_path: Path) -> None:
    (tmp_path / "backend").mkdir()
    for name in ("requirements-local.txt", "constraints.txt"):
        (tmp_path / "backend" / name).write_text("# nothing to install\n")
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy")
    venv = tmp_path / ".venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").write_text("interrupted")
    (venv / ".unfinished").touch()

    def bootstrap() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "deploy/bootstrap.py", "requirements-local.txt", "-c", "print('in the venv')"]
        nowhere = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_RETRIES": "1"}
        env = {"PATH": os.environ["PATH"], **nowhere}
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)

    assert re.fullmatch(r"Installing .*\nInstalled .*\nin the venv\n", bootstrap().stdout)
    assert bootstrap().stdout == "in the venv\n"
    (tmp_path / "backend" / "requirements-local.txt").write_text("a-package==1.0\n")
    offline = bootstrap()
    assert offline.returncode == 1
    assert re.fullmatch(r"No network: .*\n", offline.stderr)


def by_hand(redis_url: str) -> dict[str, str]:
    """The environment of programs that are started one by one."""
    keys = {"API_KEYS": "all:send:all-key", "OUTBOX_KEYS": Fernet.generate_key().decode()}
    return {"PATH": os.environ["PATH"], "ENV_FILE": os.devnull, "REDIS_URL": redis_url, **keys}


def test_the_api_starts_without_redis_and_says_so(tmp_path: Path) -> None:
    with Api(by_hand(f"redis://127.0.0.1:{free_port()}/0"), tmp_path) as api, api.client() as client:
        answer = client.post("/api/emails", json={"kind": "welcome", "to": "ada@example.com", "name": "Ada"})
        assert (answer.status_code, answer.json()["detail"]) == (503, "Redis cannot be reached.")
        told = api.text()
    assert "outbox.unavailable" in told.splitlines()[0]
    assert "Redis cannot be reached" in told.splitlines()[0]
    assert "Traceback" not in told


def test_the_api_says_that_redis_refuses_its_password(tmp_path: Path) -> None:
    with Valkey(tmp_path) as server:
        with server.client() as client:
            client.config_set("requirepass", "s3cret")
        with Api(by_hand(f"redis://:wr0ng@127.0.0.1:{server.port}/0"), tmp_path) as api:
            told = api.text()
    assert "Redis refuses the password in REDIS_URL" in told.splitlines()[0]
    assert "Traceback" not in told
    assert "wr0ng" not in told


@pytest.mark.parametrize(
    "command",
    [["uvicorn", "main:app", "--port", "0"], ["celery", "-A", "celery_app", "worker"]],
    ids=["api", "worker"],
)
def test_a_redis_that_will_never_do_is_one_line(tmp_path: Path, command: list[str]) -> None:
    with Valkey(tmp_path, **{"cluster-enabled": "yes"}) as server:
        ended = subprocess.run(
            [str(BIN / command[0]), *command[1:]],
            cwd=BACKEND,
            env=by_hand(server.url),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert ended.returncode == 1
    assert re.fullmatch(r"REDIS_URL: this is a Redis Cluster; .*\n", ended.stdout + ended.stderr)


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A checkout that needs a package, before anything is installed."""
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy")
    shutil.copy(ROOT / "start.sh", tmp_path)
    (tmp_path / "backend").mkdir()
    for name in ("start_celery.sh", "start_flower.sh"):
        shutil.copy(ROOT / "backend" / name, tmp_path / "backend")
    (tmp_path / "backend" / "requirements-local.txt").write_text("a-package==1.0\n")
    (tmp_path / "backend" / "constraints.txt").write_text("")
    return tmp_path


@pytest.mark.parametrize("found", ["no python3", "Python 3.9.2"])
def test_without_a_python_that_will_do(bare: Path, tmp_path: Path, found: str) -> None:
    path = tmp_path / "path"
    path.mkdir()
    for name in ("sh", "dirname"):
        (path / name).symlink_to(str(shutil.which(name)))
    if found.startswith("Python"):
        (path / "python3").write_text(f'#!/bin/sh\ntest "$1" = --version && echo {found}\n')
        (path / "python3").chmod(0o755)
    for script in ("start.sh", "backend/start_celery.sh"):
        ended = subprocess.run([bare / script], env={"PATH": str(path)}, capture_output=True, text=True, check=False)
        assert ended.returncode == 1
        assert len(ended.stderr.splitlines()) == 1
        told = f"found {found}." if script == "start.sh" else "Run ./start.sh once"
        assert told in ended.stderr


def test_in_a_checkout_that_cannot_be_written_to(bare: Path) -> None:
    (bare / ".run").write_text("in the way, for root may write anywhere")
    env = {"PATH": os.environ["PATH"]}
    ended = subprocess.run([bare / "start.sh"], env=env, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert re.fullmatch(rf"Cannot set up {re.escape(str(bare))}: .*\n", ended.stderr)


def _wait_well(checkout: Checkout) -> None:
    wait_until(lambda: answers(checkout.url("API_PORT", "/health/ready")), timeout=40, what="the API")
    wait_until(lambda: answers(checkout.url("FLOWER_PORT", "/healthcheck")), timeout=40, what="Flower")
    wait_until(lambda: answers(checkout.url("INBOX_PORT", "/api/v1/messages")), timeout=40, what="the inbox")
    checkout.send()

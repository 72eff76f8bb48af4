"""`python send_batch.py` against a running service: what arrives, what is said, and the exit code."""

import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

import pytest

from support.batches import batch, has_ended
from support.processes import BACKEND, Process, wait_until
from support.service import Service

HEAD = ["--subject", "{{ course }}: the results", "--html", "body.html"]
HTML = "<p>Dear {{ name }}, your grade in {{ course }} is <b>{{ grade }}</b>.</p>"

Build = Callable[..., Service]


@pytest.fixture(scope="module")
def sending(service: Service) -> Service:
    service.worker(lanes="bulk")
    return service


@pytest.fixture
def run(sending: Service, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`run("--kind", ..., csv="to,name\\n...")`: the command, with these learners."""
    (tmp_path / "body.html").write_text(HTML)

    def start(*arguments: str, csv: str | bytes | None = None) -> subprocess.CompletedProcess[str]:
        files = []
        if csv is not None:
            path = tmp_path / "learners.csv"
            path.write_bytes(csv if isinstance(csv, bytes) else csv.encode())
            files = [str(path)]
        placed = [str(tmp_path / it) if it == "body.html" else it for it in arguments]
        return call(*files, *placed, env=sending.env)

    return start


def call(*arguments: str, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "send_batch.py", *arguments],
        cwd=BACKEND,
        env={"PATH": os.environ["PATH"], **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def accepted(service: Service) -> int:
    return len(service.http.get("/api/batches", params={"limit": 200}).json()["items"])


def id_in(text: str) -> str:
    found = re.search(r"batch (batch-\w+)", text)
    assert found, text
    return found.group(1)


def mails_to(service: Service, *addresses: str) -> list[str]:
    """The HTML of the mails to these people."""
    found = []
    for address in addresses:
        [mail] = [one for one in service.smtp.messages if one.recipients == (address,)]
        html = mail.message.get_body(("html",))
        assert html is not None
        found.append(f"{mail.message['Subject']}\n{html.get_content()}")
    return found


Run = Callable[..., subprocess.CompletedProcess[str]]


def test_everyone_in_the_file_gets_the_mail(run: Run, sending: Service) -> None:
    csv = '\ufeffEmail;Name;course;grade\r\ncsv1@example.com;Ada;Algebra;"A\r\nB"\r\ncsv2@example.com;Bob;Logic;C\r\n'
    done = run(*HEAD, csv=csv)
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = mails_to(sending, "csv1@example.com", "csv2@example.com")
    assert first.startswith("Algebra: the results")
    assert "Dear Bob, your grade in Logic is <b>C</b>" in second
    assert "2 recipients" in done.stdout
    assert re.search(r"sent\D+2", done.stdout)
    assert "\x1b" not in done.stdout
    assert done.stderr == ""


def test_a_kind_with_shared_fields(run: Run, sending: Service) -> None:
    fields = ["--field", "course_name=Algebra", "--field", "course_url=https://lms.example.com/c/1?a=b"]
    done = run("--kind", "course_enrollment", *fields, "--course-id", "c-1", csv="to,name\nkind@example.com,Ada\n")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "https://lms.example.com/c/1?a=b" in mails_to(sending, "kind@example.com")[0]


def test_faults_are_named_by_line_and_nothing_is_accepted(run: Run, sending: Service) -> None:
    before = accepted(sending)
    rows = [
        'a@example.com,"Ada\nLovelace",x,1',
        "",
        "b-example.com,Bob,x,1",
        "c@example.com,Cy,x",
        "d@example.com,,x,1",
    ]
    done = run(*HEAD, csv="to,name,course,grade\n" + "\n".join(rows) + "\n")
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert any(re.search(r"learners\.csv, line 2: name: .*line break", line) for line in lines), done.stderr
    assert any("learners.csv, line 5: to: must be one email address" in line for line in lines), done.stderr
    assert any("learners.csv, line 6: has 3 columns where the header has 4" in line for line in lines), done.stderr
    assert "b-example" not in done.stderr
    assert accepted(sending) == before


def test_twenty_faults_are_enough(run: Run) -> None:
    for rows in ("nobody,Ada,x,1\n", "nobody\n"):
        done = run(*HEAD, csv="to,name,course,grade\n" + rows * 100)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 20


def test_a_placeholder_without_a_column(run: Run) -> None:
    done = run(*HEAD, csv="to,name,course\na@example.com,Ada,Algebra\n")
    assert done.returncode == 2
    assert "grade" in done.stderr
    assert "line 2" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--subject", "Hello", "--html", "missing.html"], "missing.html: No such file"),
        (["--html", "body.html"], "--subject: "),
        (["--kind", "password_reset"], "--kind: "),
        (["--kind", "course_enrollment", "--field", "course_name=Algebra", "--field", "course_url=ftp://x"],
         "--field course_url: "),
        ([*HEAD, "--send-at", "tomorrow"], "--send-at: "),
        ([*HEAD, "--field", "x"], "must read NAME=VALUE"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(run: Run, sending: Service, arguments: list[str], said: str) -> None:
    before = accepted(sending)
    done = run(*arguments, csv="to,name,course,grade\na@example.com,Ada,x,1\n")
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert accepted(sending) == before


def test_a_file_without_recipients_or_that_is_not_there(run: Run) -> None:
    for arguments in (HEAD, [*HEAD, "--dry-run"]):
        done = run(*arguments, csv="to,name\n")
        assert (done.returncode, "learners.csv: " in done.stderr) == (2, True), done.stderr
    gone = run("nowhere.csv", *HEAD)
    assert (gone.returncode, gone.stderr) == (2, "nowhere.csv: No such file or directory\n")


def test_a_dry_run_says_what_is_wrong_and_accepts_nothing(run: Run, sending: Service) -> None:
    before = accepted(sending)
    done = run(*HEAD, "--dry-run", "--idempotency-key", "dry", csv="to,name,course,grade\na@example.com,Ada,x,1\n")
    assert done.returncode == 0
    assert "All is well" in done.stdout
    wrong = run(*HEAD, "--dry-run", csv="to,name,course,grade\na,Ada,x,1\n")
    assert wrong.returncode == 2
    assert "line 2: to: " in wrong.stderr
    assert "a dry run" not in wrong.stderr
    assert accepted(sending) == before


def test_the_same_key_is_taken_once(run: Run, sending: Service) -> None:
    csv = "to,name,course,grade\nonce@example.com,Ada,x,1\n"
    first, again = (run(*HEAD, "--idempotency-key", "once", csv=csv) for _ in range(2))
    assert first.returncode == again.returncode == 0
    assert id_in(first.stdout) == id_in(again.stdout)
    other = run(*HEAD, "--idempotency-key", "once", csv=csv.replace("Ada", "Eve"))
    assert other.returncode == 2
    assert len(mails_to(sending, "once@example.com")) == 1


def test_who_was_missed_can_be_looked_up(run: Run, sending: Service) -> None:
    sending.smtp.reply("rcpt", "550 5.1.1 no such user", when=lambda to: to.startswith("gone"))
    csv = "to,name,course,grade\nthere@example.com,Ada,x,1\ngone@example.com,Bob,x,1\n"
    done = run(*HEAD, "--no-wait", csv=csv)
    assert done.returncode == 0
    batch_id = id_in(done.stdout)
    watched = run("--watch", batch_id)
    assert watched.returncode == 1
    assert f"/api/batches/{batch_id}/recipients?missed=true" in watched.stdout
    assert f"/api/batches/{batch_id}/retry-failed" in watched.stdout
    assert re.search(r"failed\D+1", watched.stdout)


def test_an_unknown_batch_cannot_be_watched(run: Run) -> None:
    done = run("--watch", "batch-nothing")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_ctrl_c_leaves_the_batch_running(build: Build, tmp_path: Path) -> None:
    service = build(WORKER_CONCURRENCY="2")
    service.smtp.delay("dot", 0.05)
    service.api()
    (tmp_path / "many.csv").write_text("to\n" + "".join(f"p{number}@example.com\n" for number in range(40)))
    command = [sys.executable, "-u", "send_batch.py", str(tmp_path / "many.csv"), "--subject", "Hi", "--text"]
    (tmp_path / "body.txt").write_text("Hello")
    with Process([*command, str(tmp_path / "body.txt")], tmp_path / "command.log", service.env) as watching:
        wait_until(lambda: "queued: 0 of 40" in watching.text(), what="the first look")
        watching.signal(signal.SIGINT)
        assert watching.wait() == 130
        batch_id = id_in(watching.text())
        assert f"--watch {batch_id}" in watching.text()
        assert f"/api/batches/{batch_id}/cancel" in watching.text()
    service.worker(lanes="bulk")
    wait_until(lambda: has_ended(service.http, batch_id), what="the end")
    assert (batch(service.http, batch_id) or {})["counts"] == {"sent": 40}


@pytest.mark.parametrize(("no_color", "draws"), [("", True), ("1", False)])
def test_a_terminal_gets_a_bar_unless_it_wants_none(
    sending: Service, tmp_path: Path, no_color: str, draws: bool
) -> None:
    (tmp_path / "one.csv").write_text("to\ntty@example.com\n")
    (tmp_path / "body.txt").write_text("Hello")
    ours, theirs = pty.openpty()
    printed = bytearray()

    def collect() -> None:
        while True:
            try:
                printed.extend(os.read(ours, 4096))
            except OSError:  # the other end is closed
                return

    with closing(os.fdopen(ours, "rb", closefd=True)):
        reader = threading.Thread(target=collect)
        done = subprocess.Popen(
            [sys.executable, "send_batch.py", str(tmp_path / "one.csv"), "--subject", "Hi", "--text",
             str(tmp_path / "body.txt")],
            cwd=BACKEND,
            env={"PATH": os.environ["PATH"], "TERM": "xterm", "NO_COLOR": no_color, **sending.env},
            stdout=theirs,
        )  # fmt: skip
        os.close(theirs)
        reader.start()
        assert done.wait(60) == 0
        reader.join(10)
    assert ("\x1b[" in printed.decode()) is draws
    assert "1" in printed.decode()


def test_redis_that_is_away_and_a_wrong_setting_are_said_in_one_line(tmp_path: Path, sending: Service) -> None:
    (tmp_path / "one.csv").write_text("to\na@example.com\n")
    (tmp_path / "body.txt").write_text("Hello")
    arguments = [str(tmp_path / "one.csv"), "--subject", "Hi", "--text", str(tmp_path / "body.txt")]
    away = call(*arguments, env={**sending.env, "REDIS_URL": "redis://127.0.0.1:1/0"})
    assert away.returncode == 2
    assert len(away.stderr.splitlines()) == 1
    wrong = call(*arguments, env={**sending.env, "SMTP_PORT": "none"})
    assert wrong.returncode == 2
    assert "SMTP_PORT" in wrong.stderr
    assert "Traceback" not in wrong.stderr

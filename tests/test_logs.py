"""What a log line shows and what it hides, whoever wrote it and wherever it goes."""

import io
import json
import logging
import os
import re
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest
import structlog
from pydantic import SecretStr

import logs
from mail.redaction import Redactor, redact
from settings import Settings
from support.processes import BACKEND

PASSWORD = 'pä"ss\\wörd+/,=1'
TOKEN = "tok-3f9c1e77"


@pytest.fixture
def redactor() -> Redactor:
    made = Redactor()
    made.hide([PASSWORD, "", "short", "longer-than-short"])
    return made


@pytest.mark.parametrize(
    "form",
    [
        PASSWORD,
        repr(PASSWORD),
        json.dumps(PASSWORD),
        json.dumps(PASSWORD, ensure_ascii=False),
        quote(PASSWORD, safe=""),
        b64encode(PASSWORD.encode()).decode(),
        *(b64encode(f"\0{user}\0{PASSWORD}".encode()).decode() for user in ("u", "me", "ada@example.com")),
        *(
            b64encode(f"{user}:{PASSWORD}{rest}".encode()).decode()
            for user in ("u", "me", "ada")
            for rest in ("", "xy")
        ),
    ],
)
def test_a_secret_is_hidden_in_every_form(redactor: Redactor, form: str) -> None:
    shown = redactor(f"535 refused: {form} sorry")
    assert shown.startswith("535 refused: ")
    assert shown.endswith(" sorry")
    assert "***" in shown
    cores = [PASSWORD[4:-4], b64encode(PASSWORD.encode()).decode()[4:-4], quote(PASSWORD)[6:-6]]
    assert not [core for core in cores if core in shown]


def test_a_short_secret_is_hidden_where_it_is_a_word(redactor: Redactor) -> None:
    assert redactor("short, shortly, longer-than-short") == "***, shortly, ***"


def test_a_redactor_learns_anew(redactor: Redactor) -> None:
    redactor.hide(["another-one"])
    assert redactor(f"{PASSWORD} another-one") == f"{PASSWORD} ***"
    redactor.hide([])
    assert redactor("another-one") == "another-one"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            f"see https://lms.example.com/reset/{TOKEN}?t={TOKEN}#{TOKEN}, please",
            "see https://lms.example.com/*** please",
        ),
        (f"HTTPS://LMS.example.com?{TOKEN}", "HTTPS://LMS.example.com/***"),
        (f"<https://lms.example.com/{TOKEN}>", "<https://lms.example.com/***>"),
        ("on http://127.0.0.1:8000 (Press CTRL+C)", "on http://127.0.0.1:8000 (Press CTRL+C)"),
        (f"redis://ada:{TOKEN}@redis.example.com:6379/0", "redis://***@redis.example.com:6379/0"),
        (f"amqp://{TOKEN}@host//", "amqp://***@host/***"),
        (f"redis+socket:///run/redis.sock?password={TOKEN}", "redis+socket:///***"),
        (f'"WebSocket /ws?key={TOKEN}" 403', '"WebSocket /ws?key=***" 403'),
        (f"Authorization: Bearer {TOKEN}", "Authorization: Bearer ***"),
        (f"AUTH PLAIN {TOKEN}", "AUTH PLAIN ***"),
        ("answered AUTH with 535 5.7.8", "answered AUTH with 535 5.7.8"),
        ("550 <ada.lovelace@example.com>: no", "550 <a***@example.com>: no"),
        ("Ünal@bücher.example, b+c@mail.example.co.uk", "Ü***@bücher.example, b***@mail.example.co.uk"),
        ("to=ada%40example.com", "t***@example.com"),
        ("mail@host is ready; what? yes = no", "mail@host is ready; what? yes = no"),
        ("2.0.0 Ok: queued as 4bXyZ1", "2.0.0 Ok: queued as 4bXyZ1"),
    ],
)
def test_what_tells_too_much_is_cut(redactor: Redactor, text: str, shown: str) -> None:
    assert redactor(text) == shown
    assert redactor(shown) == shown


SECRETS = {
    "api_keys": (f"lms:send:{TOKEN},staff:read+admin:{TOKEN}:2", TOKEN),
    "redis_url": (f"redis://:{quote(PASSWORD, safe='')}@127.0.0.1/0", PASSWORD),
    "celery_broker_url": (f"amqp://mail:{TOKEN}@127.0.0.1//", TOKEN),
    "flower_basic_auth": (f"ada:{TOKEN}", TOKEN),
    "outbox_keys": (f"{TOKEN}-2,{TOKEN}", TOKEN),
}


@pytest.mark.parametrize("name", [name for name, field in Settings.model_fields.items() if "SecretStr" in str(field)])
def test_every_secret_setting_is_hidden(name: str) -> None:
    value, secret = SECRETS.get(name, (TOKEN, TOKEN))
    made = Redactor()
    made.hide(Settings.model_construct(**{name: SecretStr(value)}).secrets)
    assert secret not in made(f"it is {value} and {secret} ...")
    assert made("redis 127.0.0.1 mail ada lms staff") == "redis 127.0.0.1 mail ada lms staff"


def test_the_page_of_logs_has_every_event() -> None:
    page = (BACKEND.parent / "docs" / "logs.md").read_text()
    calls = re.compile(r"(?:log|logger|level)(?:\.\w+)?\(\s*\"([a-z_]+\.[a-z_]+)\"|tell\('\w+', '([a-z_]+\.[a-z_]+)'")
    sources = [path for room in ("api", "mail", "tasks", "utils", ".") for path in (BACKEND / room).glob("**/*.*")]
    told = {
        name
        for path in sources
        if path.suffix in (".py", ".lua")
        for found in calls.findall(path.read_text())
        for name in found
        if name
    }
    assert len(told) > 40
    assert sorted(name for name in told if f"`{name}`" not in page) == []
    listed = set(re.findall(r"^\| (`.*?) \|", page, re.MULTILINE))
    names = {name for cell in listed for name in re.findall(r"`([a-z_]+\.[a-z_]+)`", cell)}
    # Some names are made of a state.
    assert sorted(name for name in names - told if not name.startswith(("email.", "batch."))) == []


Lines = Callable[[], list[str]]


@pytest.fixture(params=["json", "text"])
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def lines(form: str) -> Iterator[Lines]:
    """What our handler writes; both structlog's events and plain records reach it."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.formatter("api", as_json=form == "json"))
    logger = logging.getLogger("planted")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    redact.hide([PASSWORD])
    yield lambda: stream.getvalue().split("\n")[:-1]
    redact.hide([])
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)
    logger.propagate = True


EVIL = f'550 no\r\n{{"event": "fake"}}\x1b[2J\x85\u2028\u202e\x00 {PASSWORD} ada@example.com'


def test_an_event_is_one_line_whatever_is_in_it(lines: Lines, form: str) -> None:
    structlog.get_logger("planted").info("email.failed", error=EVIL, nested={"reply": [EVIL], EVIL: 1}, nothing=None)
    logging.getLogger("planted").warning("uvicorn said %s", EVIL)
    told = lines()
    assert len(told) == 2
    for line in told:
        assert line.isprintable()
        assert PASSWORD not in line
        assert "ada@" not in line
        assert "a***@example.com" in line
        assert "nothing" not in line
    if form == "json":
        first, second = map(json.loads, told)
        assert list(first)[:3] == ["timestamp", "level", "event"]
        assert (first["level"], first["event"], first["logger"], first["program"]) == (
            "info",
            "email.failed",
            "planted",
            "api",
        )
        assert (second["level"], second["logger"]) == ("warning", "planted")
        assert first["error"].startswith("550 no\r\n")


def fail_with(message: str) -> None:
    raise ValueError(message)


def test_a_traceback_is_redacted_and_cannot_pose_as_a_line(lines: Lines, form: str) -> None:
    structlog.contextvars.bind_contextvars(request_id="r-1")
    for log in (structlog.get_logger("planted"), logging.getLogger("planted")):
        try:
            fail_with(
                f"https://lms.example.com/reset?token={TOKEN}\n2030-01-01T00:00:00Z [info] fake\x1b[2J {PASSWORD}"
            )
        except ValueError:
            log.exception("broken\n")
    structlog.contextvars.clear_contextvars()
    told = lines()
    everything = "\n".join(told)
    assert everything.count("in fail_with") == 2
    assert everything.count("request_id") == 2
    assert TOKEN not in everything
    assert PASSWORD not in everything
    assert "\x1b" not in everything
    if form == "json":
        assert len(told) == 2
    else:
        assert len([line for line in told if not line.startswith("    ")]) == 2


def test_a_long_value_is_cut_but_not_through_a_secret(lines: Lines) -> None:
    structlog.get_logger("planted").info("long", error="x" * (logs.LONGEST - 3) + PASSWORD + "y" * 100_000)
    (line,) = lines()
    assert len(line) < logs.LONGEST + 400
    assert PASSWORD[:3] not in line


@pytest.mark.parametrize("length", [logs.LONGEST, logs.LONGEST_TRACEBACK])
def test_of_a_long_traceback_the_end_is_kept(lines: Lines, length: int) -> None:
    try:
        fail_with(f"{'x' * length} {PASSWORD} the cause")
    except ValueError:
        structlog.get_logger("planted").exception("broken")
    told = "\n".join(lines())
    assert "the cause" in told
    assert PASSWORD[:3] not in told
    assert len(told) < logs.LONGEST_TRACEBACK + 400


def test_a_line_of_celery_names_the_email(lines: Lines, form: str) -> None:
    logging.getLogger("planted").error(
        "Task %(name)s[%(id)s]", {"name": "x", "id": "e-1"}, extra={"data": {"id": "e-1"}}
    )
    (line,) = lines()
    assert ('"email_id": "e-1"' if form == "json" else "email_id=e-1") in line


@pytest.mark.parametrize("given", ["a", "0af7651916cd43dd8448eb211c80319c", "lms-1.2_3", "x" * 64])
def test_a_request_id_that_is_fit_stays(given: str) -> None:
    assert logs.request_id(given) == given


@pytest.mark.parametrize("given", [None, "", "x" * 65, "a b", "a\n", "é", "a;b", "{}"])
def test_another_one_is_made_anew(given: str | None) -> None:
    made = logs.request_id(given)
    assert made != given
    assert logs.request_id(made) == made
    assert made != logs.request_id(given)


HOST = """
import logging, sys
logging.basicConfig(level=logging.INFO, format="HOST %(levelname)s %(name)s %(message)s")
from utils.email_async import send_welcome_email_async
import structlog
from mail.redaction import redact
redact.hide(["planted-secret"])
log = structlog.get_logger("mail.delivery")
log.debug("email.quiet")
log.info("email.accepted", to="ada@example.com", request_id="r-1")
try:
    raise ValueError("planted-secret")
except ValueError:
    log.exception("email.not_prepared")
assert logging.getLoggerClass() is logging.Logger
"""


def run(program: str, *, succeeds: bool = True, **env: str) -> "subprocess.CompletedProcess[str]":
    env |= {"PYTHONPATH": str(BACKEND), "ENV_FILE": os.devnull}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=succeeds)


def test_in_another_program_events_go_to_its_own_log() -> None:
    told = run(HOST)
    assert told.stdout == ""
    first, second, *trace = told.stderr.splitlines()
    assert first == "HOST INFO mail.delivery email.accepted to=a***@example.com request_id=r-1"
    assert second == "HOST ERROR mail.delivery email.not_prepared"
    assert trace[0] == "    Traceback (most recent call last):"
    assert trace[-1] == "    ValueError: ***"
    assert sum("ValueError" in line for line in trace) == 1


def test_a_program_that_has_set_structlog_up_is_left_alone() -> None:
    told = run("import structlog; structlog.configure(processors=[structlog.processors.JSONRenderer()])\n" + HOST)
    assert '"event": "email.accepted"' in told.stdout


def crash(where: str) -> list[dict[str, Any]]:
    program = f"""
import logs, threading
from settings import read_settings
logs.set_up("api", read_settings())
def die(): raise ValueError("redis://:planted@host/0")
{where}
"""
    return [json.loads(line) for line in run(program, succeeds=False, LOG_FORMAT="json").stderr.splitlines()]


@pytest.mark.parametrize(
    ("where", "event"),
    [
        ("die()", "process.died"),
        ("threading.Thread(target=die).start()", "thread.died"),
        ("import logging; logging.getLogger('kombu').error('%s %s', 'redis://:planted@host/0')", "log.broken"),
        ("import warnings; warnings.warn('redis://:planted@host/0')", None),
    ],
)
def test_what_a_process_dies_or_warns_of_is_a_line_too(where: str, event: str | None) -> None:
    (line,) = crash(where)
    assert line["event"] == event or event is None
    assert "planted" not in json.dumps(line)

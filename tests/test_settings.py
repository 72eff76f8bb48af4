"""Settings: defaults, API keys, what production demands, and errors that name the variable and never show a value."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from mail.errors import ConfigurationError
from settings import Scope, Settings, get_settings
from support.processes import BACKEND, BIN

VALUE = "h1dden-v4lue"
LONG_KEY = "k" * 24
PRODUCTION = {
    "ENVIRONMENT": "production",
    "API_KEYS": f"lms:send+read:{LONG_KEY}",
    "OUTBOX_KEYS": Fernet.generate_key().decode(),
    "ALLOWED_LINK_HOSTS": "lms.example.com",
    "SMTP_MAIL_FROM": "no-reply@lms.example.com",
}

Read = Callable[..., Settings]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[Read]:
    """Settings from these variables and no others."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)

    def apply(**env: str) -> Settings:
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        get_settings.cache_clear()
        return get_settings()

    yield apply
    get_settings.cache_clear()


def complaint(read: Read, **env: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        read(**env)
    told = str(caught.value)
    assert VALUE not in told
    assert VALUE not in repr(caught.value)
    return told


def test_an_empty_environment_is_a_developers_machine(read: Read) -> None:
    settings = read()
    assert settings.development
    assert settings.keys == settings.outbox_key_list == settings.allowed_link_hosts == settings.cors_origins == ()
    assert (settings.key_prefix, settings.smtp_security, settings.flower_read_only) == ("mail:", "auto", True)
    assert settings.broker_url == settings.redis_url.get_secret_value()
    for address in (settings.api_host, settings.flower_address, settings.smtp_host):
        assert address == "127.0.0.1"


def test_the_environment_wins_over_the_file(read: Read, tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("SMTP_HOST=file.example.com\nSMTP_PORT=25\nUNKNOWN_NAME=1\n")
    read(SMTP_HOST="env.example.com", SMTP_USERNAME="")
    settings = Settings(_env_file=file)
    assert (settings.smtp_host, settings.smtp_port, settings.smtp_username) == ("env.example.com", 25, "")


def test_lists(read: Read) -> None:
    settings = read(ALLOWED_LINK_HOSTS=" a.example.com ,, *.b.example.com,", CORS_ORIGINS="https://a.example.com")
    assert settings.allowed_link_hosts == ("a.example.com", "*.b.example.com")
    assert settings.cors_origins == ("https://a.example.com",)


def test_secrets_do_not_show(read: Read) -> None:
    settings = read(
        API_KEYS=f"lms:send:{VALUE}",
        SMTP_PASSWORD=VALUE,
        REDIS_URL=f"redis://:{VALUE}@127.0.0.1/0",
        CELERY_BROKER_URL=f"amqp://u:{VALUE}@127.0.0.1//",
        FLOWER_BASIC_AUTH=f"admin:{VALUE}",
    )
    assert VALUE not in repr(settings)
    assert VALUE not in repr(settings.keys)
    assert VALUE not in str(settings.model_dump(mode="json"))
    assert VALUE in settings.broker_url


class TestApiKeys:
    def test_parsed(self, read: Read) -> None:
        lms, desk = read(API_KEYS=" lms:send+custom:key-1 , desk:read+admin:key:with:colons ,").keys
        assert (lms.name, lms.scopes) == ("lms", {Scope.SEND, Scope.CUSTOM})
        assert (desk.name, desk.scopes) == ("desk", {Scope.READ, Scope.ADMIN})
        assert lms.digest != desk.digest

    @pytest.mark.parametrize(
        "entry",
        [
            VALUE,
            f"lms:{VALUE}",
            f"lms::{VALUE}",
            f":send:{VALUE}",
            "lms:send:",
            f"lms:everything:{VALUE}",
            f"lms:send+:{VALUE}",
            f"lms:SEND:{VALUE}",
            f"ok:send:some-key,lms:{VALUE}",
        ],
    )
    def test_malformed(self, read: Read, entry: str) -> None:
        told = complaint(read, API_KEYS=entry)
        assert "API_KEYS (environment): each entry must read name:scope+scope:key" in told
        assert "some-key" not in told

    def test_names_differ(self, read: Read) -> None:
        assert "same name" in complaint(read, API_KEYS=f"lms:send:{VALUE},lms:read:other")


class TestProduction:
    @pytest.mark.parametrize("environment", ["production", "staging"])
    def test_complete(self, read: Read, environment: str) -> None:
        assert not read(**{**PRODUCTION, "ENVIRONMENT": environment}).development

    @pytest.mark.parametrize("name", ["API_KEYS", "OUTBOX_KEYS", "ALLOWED_LINK_HOSTS", "SMTP_MAIL_FROM"])
    def test_demands(self, read: Read, name: str) -> None:
        told = complaint(read, **{**PRODUCTION, name: ""})
        assert f"{name}: required when ENVIRONMENT is production" in told
        assert LONG_KEY not in told

    def test_says_all_at_once(self, read: Read) -> None:
        told = complaint(read, ENVIRONMENT="staging")
        for name in ("API_KEYS", "OUTBOX_KEYS", "ALLOWED_LINK_HOSTS", "SMTP_MAIL_FROM"):
            assert name in told

    def test_weak_key(self, read: Read) -> None:
        told = complaint(read, **{**PRODUCTION, "API_KEYS": f"a:send:{LONG_KEY},b:read:{VALUE}"})
        assert "API_KEYS" in told
        assert "openssl rand" in told
        read(API_KEYS=f"b:read:{VALUE}", ENVIRONMENT="development")


class TestWebhook:
    SECRET = "whsec_" + "QUJD" * 8
    URL = f"https://alerts.example.com/{VALUE}"

    def test_complete(self, read: Read) -> None:
        settings = read(**PRODUCTION, ALERT_WEBHOOK_URL=self.URL, ALERT_WEBHOOK_SECRET=self.SECRET)
        assert settings.alert_webhook_url
        assert VALUE not in repr(settings)
        assert self.SECRET not in repr(settings)

    @pytest.mark.parametrize(
        "url",
        ["alerts.example.com", "ftp://a.example.com", "https://", f"https://u:{VALUE}@a.example.com", "http://a:x/"],
    )
    def test_no_url(self, read: Read, url: str) -> None:
        assert "ALERT_WEBHOOK_URL" in complaint(read, ALERT_WEBHOOK_URL=url, ALERT_WEBHOOK_SECRET=self.SECRET)

    @pytest.mark.parametrize(
        "secret", ["", VALUE, "QUJD" * 8, "whsec_" + "QUJD" * 7, "whsec_" + "QUJD" * 22, "whsec_!" * 9]
    )
    def test_no_secret(self, read: Read, secret: str) -> None:
        assert "ALERT_WEBHOOK_SECRET" in complaint(read, ALERT_WEBHOOK_URL=self.URL, ALERT_WEBHOOK_SECRET=secret)

    def test_http_only_where_nobody_listens_in(self, read: Read) -> None:
        read(ALERT_WEBHOOK_URL="http://a.example.com", ALERT_WEBHOOK_SECRET=self.SECRET)
        for url in ("http://127.0.0.1:9000/x", "http://[::1]/x", "http://localhost/x"):
            read(**PRODUCTION, ALERT_WEBHOOK_URL=url, ALERT_WEBHOOK_SECRET=self.SECRET)
        given = {**PRODUCTION, "ALERT_WEBHOOK_SECRET": self.SECRET}
        assert "https" in complaint(read, **given, ALERT_WEBHOOK_URL="http://a.example.com")


@pytest.mark.parametrize("keys", [VALUE, VALUE * 4, f"{'A' * 43}=,{VALUE}"])
def test_malformed_outbox_keys(read: Read, keys: str) -> None:
    told = complaint(read, OUTBOX_KEYS=keys)
    assert "OUTBOX_KEYS (environment): each key must be" in told
    assert "Fernet.generate_key" in told


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ENVIRONMENT", VALUE),
        ("REDIS_URL", f"http://:{VALUE}@127.0.0.1"),
        ("REDIS_URL", VALUE),
        ("REDIS_URL", f"redis://:{VALUE}#{VALUE}@127.0.0.1/0"),
        ("REDIS_URL", f"redis://:{VALUE}/{VALUE}@127.0.0.1/0"),
        ("REDIS_URL", f"redis://:{VALUE}@[::1/0"),
        ("REDIS_URL", f"redis://:{VALUE}@127.0.0.1/mail"),
        ("CELERY_BROKER_URL", f"u:{VALUE}@127.0.0.1:5672"),
        ("CELERY_BROKER_URL", f"ampq://u:{VALUE}@127.0.0.1"),
        ("FLOWER_BASIC_AUTH", VALUE),
        ("FLOWER_ADDRESS", "0.0.0.0"),
        ("KEY_PREFIX", f"{VALUE} *"),
        ("SMTP_PORT", VALUE),
        ("SMTP_PORT", "0"),
        ("SMTP_PORT", "65536"),
        ("SMTP_SECURITY", VALUE),
        ("SMTP_TIMEOUT", "0"),
        ("SMTP_IDEMPOTENCY_HEADER", f"X-Key: {VALUE}"),
        ("RECIPIENT_HOURLY_LIMIT", "0"),
        ("MAX_BODY_BYTES", "-1"),
        ("SMTP_MAIL_FROM", "Example <no-reply@example.com>"),
        ("MAIL_REDIRECT_TO", "everybody"),
        ("WORKER_CONCURRENCY", "many"),
        ("LEASE_SECONDS", "1"),
        ("BRAND_COLOR", f"#{VALUE}"),
        ("API_PORT", "80.5"),
        ("FLOWER_READ_ONLY", VALUE),
    ],
)
def test_wrong_value(read: Read, name: str, value: str) -> None:
    told = complaint(read, **{name: value})
    assert f"\n  {name} (environment): " in told
    assert len(told.splitlines()) == 2


def test_other_brokers_and_an_open_flower_with_a_password(read: Read) -> None:
    for url in ("amqp://u:p@127.0.0.1//", "rediss://127.0.0.1", "redis+socket:///run/redis.sock"):
        assert read(CELERY_BROKER_URL=url).broker_url == url
    assert read(FLOWER_ADDRESS="0.0.0.0", FLOWER_BASIC_AUTH="ada:s3cret").flower_address == "0.0.0.0"


def test_every_wrong_value_at_once(read: Read) -> None:
    told = complaint(read, SMTP_PORT=VALUE, BRAND_COLOR=VALUE)
    assert "SMTP_PORT" in told
    assert "BRAND_COLOR" in told


class TestFile:
    """Settings from `.env`: every message names the file and the line."""

    @pytest.fixture
    def read_file(self, read: Read, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Settings]:
        file = tmp_path / "my.env"
        monkeypatch.setattr("settings.ENV_FILE", file)
        monkeypatch.setitem(Settings.model_config, "env_file", file)

        def apply(content: str | bytes, **env: str) -> Settings:
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
            return read(**env)

        return apply

    @pytest.mark.parametrize(
        ("line", "fault"),
        [
            ("SMTP_HOST", "must read NAME=value"),
            (f"SMTP_PASSWORD {VALUE}", "must read NAME=value"),
            (f"SMTP_PASSWORD: {VALUE}", "must read NAME=value"),
            (f"SMTP PASSWORD={VALUE}", "must read NAME=value"),
            (f'SMTP_PASSWORD="{VALUE}', "a quote is not closed"),
            (f"export SMTP_PASSWORD='{VALUE}", "a quote is not closed"),
            (f'SMTP_PASSWORD="{VALUE}\nSMTP_HOST=x\nBRAND_NAME="Example"', "a quote is not closed"),
            (f'SMTP_PASSWORD="{VALUE}\nSMTP_HOST="x', "a quote is not closed"),
            (f'OTHER="{VALUE}\nSMTP_HOST="x', "a quote is not closed"),
            (f'SMTP_PASSWORD="{VALUE}" x', "something follows the closing one"),
        ],
    )
    def test_a_broken_line(self, read_file: Callable[..., Settings], line: str, fault: str) -> None:
        with pytest.raises(ConfigurationError) as caught:
            read_file(f"# first\n\n\nSMTP_PORT=25\n\n{line}\nAPI_PORT=8000\n")
        told = str(caught.value)
        assert "my.env, line 6: " in told
        assert fault in told
        assert VALUE not in told
        assert len(told.splitlines()) == 1

    @pytest.mark.parametrize(
        "content", [b"A=1\nSMTP_FROM_NAME=S\xfcd\n", "A=1\n\u0a0aSMTP_HOST=x\n".encode("utf-16-le") + b"\xff"]
    )
    def test_another_encoding(self, read_file: Callable[..., Settings], content: bytes) -> None:
        with pytest.raises(ConfigurationError, match=r"my\.env, line \d: not UTF-8"):
            read_file(content)

    def test_a_directory_in_its_place(self, read: Read, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr("settings.ENV_FILE", tmp_path)
        assert "cannot be read: Is a directory" in complaint(read)

    def test_a_named_file_that_is_not_there(
        self, read: Read, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr("settings.ENV_FILE", tmp_path / "nothing")
        assert "ENV_FILE names" in complaint(read, ENV_FILE=str(tmp_path / "nothing"))

    def test_what_other_editors_and_shells_write_just_works(
        self, read_file: Callable[..., Settings], caplog: pytest.LogCaptureFixture
    ) -> None:
        settings = read_file(
            "\ufeff# from Windows\r\nSMTP_HOST = mail.example.com \r\nexport SMTP_PORT=25 # a comment\r\n"
            "smtp_from_name='Schule Süd'\r\nSMTP_USERNAME=\r\n"
            'PRIVATE_KEY="-----BEGIN\r\nof another program\r\n-----END"\r\nAPI_PORT="8001"'
        )
        assert (settings.smtp_host, settings.smtp_port) == ("mail.example.com", 25)
        assert (settings.smtp_from_name, settings.smtp_username, settings.api_port) == ("Schule Süd", "", 8001)
        assert caplog.messages == []

    def test_a_wrong_value_is_named_with_its_line_or_the_environment(
        self, read_file: Callable[..., Settings], tmp_path: Path
    ) -> None:
        content = f"SMTP_PORT={VALUE}\nAPI_PORT=1\n\nAPI_PORT={VALUE}\nINBOX_PORT={VALUE}\n"
        with pytest.raises(ConfigurationError) as caught:
            read_file(content, INBOX_PORT="many", FLOWER_PORT="", API_PORT="")
        assert re.findall(r"  (\w+) \((.*)\):", str(caught.value)) == [
            ("SMTP_PORT", f"{tmp_path / 'my.env'}, line 1"),
            ("API_PORT", f"{tmp_path / 'my.env'}, line 4"),
            ("INBOX_PORT", "environment"),
        ]
        assert VALUE not in str(caught.value)
        with pytest.raises(ConfigurationError, match=r"my\.env, line 2\): each entry must read name:scope"):
            read_file(f"SMTP_PORT=25\nAPI_KEYS={VALUE}\n", INBOX_PORT="8025")

    def test_a_name_that_comes_twice_and_one_that_is_misspelt_are_warned_of(
        self, read_file: Callable[..., Settings], caplog: pytest.LogCaptureFixture
    ) -> None:
        settings = read_file(f"SMTP_HOST=a\nSMTP_PASWORD={VALUE}\nSMTP_HOST=b\nSMTP_TLS=1\nDATABASE_URL=x\n")
        assert settings.smtp_host == "b"
        assert [told.partition("my.env, ")[2].rstrip("'") for told in caplog.messages] == [
            "line 2: SMTP_PASWORD is not a setting; did you mean SMTP_PASSWORD?",
            "line 3: SMTP_HOST is on line 1 too; the last one counts",
        ]

    @pytest.mark.parametrize(
        ("wrong", "meant"),
        [
            ("SMTP_PASSWROD", "SMTP_PASSWORD"),
            ("SMTP_PASS", "SMTP_PASSWORD"),
            ("SMTP_USER", "SMTP_USERNAME"),
            ("API_KEY", "API_KEYS"),
            ("REDIS_URI", "REDIS_URL"),
            ("BRAND_COLOUR", "BRAND_COLOR"),
        ],
    )
    def test_common_misspellings(
        self, read_file: Callable[..., Settings], caplog: pytest.LogCaptureFixture, wrong: str, meant: str
    ) -> None:
        read_file(f"{wrong}=x\n")
        assert f"did you mean {meant}?" in caplog.text


@pytest.mark.parametrize(
    ("command", "name", "value"),
    [
        ([sys.executable, "-c", "import main"], "API_KEYS", VALUE),
        ([sys.executable, "-c", "import main"], "OUTBOX_KEYS", VALUE),
        ([str(BIN / "celery"), "-A", "celery_app", "report"], "SMTP_PORT", VALUE),
        ([str(BIN / "celery"), "-A", "celery_app", "worker"], "OUTBOX_KEYS", VALUE),
    ],
    ids=lambda value: str(value[-1] if isinstance(value, list) else value),
)
def test_a_process_ends_with_one_message(command: list[str], name: str, value: str) -> None:
    env = {"PATH": os.environ["PATH"], "ENV_FILE": os.devnull, name: value}
    ended = subprocess.run(command, cwd=BACKEND, env=env, capture_output=True, text=True, timeout=60, check=False)
    told = ended.stdout + ended.stderr
    assert ended.returncode != 0
    assert name in told
    assert VALUE not in told
    assert "Traceback" not in told
    assert len(told.splitlines()) <= 2


@pytest.mark.parametrize(
    "command",
    [
        [str(BIN / "uvicorn"), "main:app"],
        [str(BIN / "celery"), "-A", "celery_app", "inspect", "active"],
        ["./start_celery.sh"],
        ["./start_celery.sh", "mail"],
        ["./start_flower.sh"],
    ],
    ids=lambda command: " ".join([Path(command[0]).name, *command[1:]]),
)
def test_every_way_to_start_ends_at_a_broken_line(command: list[str], tmp_path: Path) -> None:
    file = tmp_path / "my.env"
    file.write_text(f"SMTP_HOST=mail.example.com\nSMTP_PASSWORD {VALUE}\n")
    env = {"PATH": os.environ["PATH"], "VIRTUAL_ENV": sys.prefix, "ENV_FILE": str(file)}
    ended = subprocess.run(command, cwd=BACKEND, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert ended.stdout + ended.stderr == f"{file}, line 2: must read NAME=value, or begin with #\n"

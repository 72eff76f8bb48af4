"""backend/.env.example names every setting, each with a comment, and shows the right defaults."""

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from settings import Settings
from support.processes import BACKEND

EXAMPLE = BACKEND / ".env.example"
# The seven names that an LMS has already: shown as set, the rest as comments.
SEVEN = {
    "REDIS_URL",
    "SMTP_HOST",
    "SMTP_PORT",
    "SMTP_USERNAME",
    "SMTP_PASSWORD",
    "SMTP_MAIL_FROM",
    "SMTP_FROM_NAME",
}
_SETTING = re.compile(r"(# )?([A-Z][A-Z0-9_]*)=(.*)")


def entries() -> list[tuple[str, str, bool, str]]:
    """Name, value, whether it is set, and the line above."""
    lines = EXAMPLE.read_text().splitlines()
    return [
        (found[2], found[3], not found[1], above)
        for above, line in zip(["", *lines], lines, strict=False)
        if (found := _SETTING.fullmatch(line))
    ]


def test_the_same_names() -> None:
    names = [name for name, *_ in entries()]
    assert sorted(names) == sorted(name.upper() for name in Settings.model_fields)


def test_each_has_a_comment() -> None:
    assert not [
        name for name, _, _, above in entries() if not re.match(r"# \w.{5}", above) or _SETTING.fullmatch(above)
    ]


def test_the_seven_names_are_set() -> None:
    assert {name for name, _, is_set, _ in entries() if is_set} == SEVEN


def test_they_show_the_defaults() -> None:
    wrong = {
        name: value for name, value, *_ in entries() if value != shown(Settings.model_fields[name.lower()].default)
    }
    assert not wrong


def shown(default: Any) -> str:
    """A default as a line of the file has it."""
    match default:
        case None | ():
            return ""
        case SecretStr():
            return default.get_secret_value()
        case bool():
            return str(default).lower()
    return str(default)


def test_a_copy_of_it_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    plain = Settings(_env_file=None)
    assert Settings(_env_file=EXAMPLE) == plain
    everything = tmp_path / "env"
    everything.write_text(re.sub(r"(?m)^# (?=[A-Z_]+=)", "", EXAMPLE.read_text()))
    assert Settings(_env_file=everything) == plain


def test_the_page_of_settings_has_every_one() -> None:
    page = (BACKEND.parent / "docs" / "settings.md").read_text(encoding="utf-8")
    cells = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| `")]
    named = re.findall(r"`([A-Z_]+)`", " ".join(cells))
    assert sorted(named) == sorted(name.upper() for name in Settings.model_fields)

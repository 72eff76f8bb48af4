"""The checkout and the machine it is on: Python, packages, files, disks, templates."""

import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import cast

from jinja2 import TemplateError, TemplateSyntaxError

from env_file import shown
from mail.findings import Finding, Level
from mail.kinds import KINDS, AnyEmail
from settings import BACKEND, ENV_FILE, KEY_FILE, Settings
from utils.composition import get_renderer

RUN = BACKEND.parent / ".run"
LOW, TOO_LOW = 1e9, 1e8  # bytes that are free
_PIN = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?==(\S+)")


def python() -> Iterator[Finding]:
    """The interpreter, and every package against its pin."""
    yield Finding("python", Level.OK, f"Python {sys.version.partition(' ')[0]}, {sys.prefix}")
    yield from _packages()


def _packages() -> Iterator[Finding]:
    needed, pins = _pins("requirements.txt"), _pins("constraints.txt")
    installed = {name: _version(name) for name in pins | needed}
    missing = sorted(name for name in needed if installed[name] is None)
    other = sorted(
        f"{name} {installed[name]} for {pin}" for name, pin in pins.items() if installed[name] not in {None, pin}
    )
    fix = "From the checkout: .venv/bin/pip install -r backend/requirements.txt -c backend/constraints.txt"
    if missing:
        yield Finding("packages", Level.FAULT, f"not installed: {', '.join(missing)}", fix)
    if other:
        yield Finding("packages", Level.WARNING, f"not as pinned: {', '.join(other)}", fix)
    if not (missing or other):
        count = sum(found is not None for found in installed.values())
        yield Finding("packages", Level.OK, f"{count} packages, each as pinned in constraints.txt")


def _pins(name: str) -> dict[str, str]:
    lines = (BACKEND / name).read_text(encoding="utf-8").splitlines()
    return {found[1]: found[2] for line in lines if (found := _PIN.match(line))}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def files() -> Iterator[Finding]:
    """Who may read the files that hold secrets. The group may read `.env`: a deployment's service user is in it."""
    for name, path, forbidden in (
        ("files.env", ENV_FILE, stat.S_IRWXO),
        ("files.outbox_key", KEY_FILE, stat.S_IRWXG | stat.S_IRWXO),
    ):
        if not path.is_file():
            continue
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & forbidden:
            text = f"{shown(path)} holds secrets, and others may read or change it (mode {mode:o})"
            yield Finding(name, Level.FAULT, text, f"chmod {mode & ~forbidden & 0o666:o} {path}")
        else:
            yield Finding(name, Level.OK, f"{shown(path)}, mode {mode:o}")


def disks(settings: Settings) -> Iterator[Finding]:
    """Where this checkout writes. `.run` holds logs and, in development, the data of Redis."""
    yield disk("disk.run", RUN if RUN.exists() else RUN.parent)
    if settings.development and not settings.outbox_key_list and not KEY_FILE.exists():
        yield disk("disk.backend", BACKEND)


def disk(name: str, path: Path, *, write: bool = True) -> Finding:
    """Whether a directory can be written, and how much room it has."""
    try:
        usage = shutil.disk_usage(path)
        if write:
            with tempfile.TemporaryFile(dir=path) as file:
                file.write(b"\0" * 4096)
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        text = f"{shown(path)} cannot be written: {error.strerror}"
        return Finding(name, Level.FAULT, text, "Give its owner this user's rights, or make room")
    share = usage.free / usage.total if usage.total else 0.0
    text = f"{shown(path)}: {usage.free / 1e9:.1f} GB free, {share:.0%}".replace("%", " %")
    if usage.free < TOO_LOW:
        return Finding(name, Level.FAULT, text, "Make room: what is accepted must be written down")
    if usage.free < LOW:
        return Finding(name, Level.WARNING, text, "Make room")
    return Finding(name, Level.OK, text)


def templates() -> Iterator[Finding]:
    """Every kind's sample, rendered as the workers do."""
    renderer = get_renderer()
    broken = 0
    for word, kind in KINDS.items():
        try:
            renderer.render(cast("AnyEmail", kind.sample()))
        except TemplateError as error:
            broken += 1
            place = f"{error.name}, line {error.lineno}: " if isinstance(error, TemplateSyntaxError) else ""
            text = f"{word} cannot be made: {place}{error.message or type(error).__name__}"
            yield Finding("templates", Level.FAULT, text, "Mend backend/templates/emails; its mails wait")
    if not broken:
        yield Finding("templates", Level.OK, f"all {len(KINDS)} kinds can be made")

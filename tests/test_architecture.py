"""The house rules that a machine can check: who may import whom, and where things are."""

import ast
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.processes import BACKEND, BIN

ROOT = BACKEND.parent
ROOMS = ("api", "tasks", "utils", "mail")
_ENVIRONMENT = re.compile(r"\benviron\b|\bgetenv\b")


def lint_imports(backend: Path, config: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / "lint-imports"), "--no-cache", "--config", str(config)],
        cwd=backend,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(backend)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def imports(source: str) -> Iterator[str]:
    """Every module that a source names in an import, at the top or in a function."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "."


def sources(*rooms: str) -> list[Path]:
    found = [path for room in rooms for path in sorted((BACKEND / room).rglob("*.py"))]
    assert found
    return found


def test_import_contracts() -> None:
    checked = lint_imports(BACKEND, ROOT / "pyproject.toml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert " 0 broken" in checked.stdout


@pytest.fixture
def skeleton(tmp_path: Path) -> Path:
    """The rooms with hardly anything in them, and our contracts."""
    for name in (*ROOMS, "dev"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    for name in ("utils/email", "utils/service", "api/auth", "settings", "celery_app", "main"):
        (tmp_path / f"{name}.py").touch()
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    return tmp_path


def test_the_contracts_allow_what_they_should(skeleton: Path) -> None:
    (skeleton / "utils" / "composition.py").write_text("import settings, celery_app, mail, redis\n")
    (skeleton / "api" / "right.py").write_text("import fastapi, utils.composition, mail, settings\n")
    (skeleton / "tasks" / "right.py").write_text("import celery, celery_app, utils.composition, mail\n")
    checked = lint_imports(skeleton, skeleton / "pyproject.toml")
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("mail", "import fastapi"),
        ("mail", "from celery import Celery"),
        ("mail", "import settings"),
        ("mail", "import utils.service"),
        ("utils", "import api.auth"),
        ("tasks", "import api.auth"),
        ("api", "import celery_app"),
        ("api", "import dev"),
    ],
)
def test_the_contracts_can_be_broken(skeleton: Path, room: str, line: str) -> None:
    (skeleton / room / "wrong.py").write_text(f"{line}\n")
    checked = lint_imports(skeleton, skeleton / "pyproject.toml")
    assert checked.returncode == 1, checked.stdout + checked.stderr
    assert "BROKEN" in checked.stdout


@pytest.mark.parametrize("path", sources("mail"), ids=lambda path: path.name)
def test_the_engine_reads_no_settings_and_no_environment(path: Path) -> None:
    source = path.read_text()
    named = {name.partition(".")[0] for name in imports(source)}
    assert not named & {"settings", "celery_app", "main", "fastapi", "starlette", "celery", "kombu", "dotenv"}
    assert not _ENVIRONMENT.search(source)


def test_only_settings_reads_the_environment() -> None:
    readers = {
        path.relative_to(BACKEND).as_posix()
        for path in [*sources(*ROOMS), *BACKEND.glob("*.py")]
        if _ENVIRONMENT.search(path.read_text())
    }
    assert readers <= {"settings.py"}


def test_only_the_queued_side_knows_the_celery_app() -> None:
    knowing = {
        path.relative_to(BACKEND).as_posix()
        for path in sources(*ROOMS)
        if {"celery_app", "celery"} & {name.partition(".")[0] for name in imports(path.read_text())}
    }
    assert {path for path in knowing if not path.startswith("tasks/")} <= {
        "utils/composition.py",
        "utils/wake_ups.py",
    }


def test_every_module_says_what_it_is_for() -> None:
    modules = [*sources(*ROOMS), *BACKEND.glob("*.py")]
    assert not [path for path in modules if not ast.get_docstring(ast.parse(path.read_text()))]


def test_the_product_does_not_import_its_tests() -> None:
    assert not [path for path in sources(*ROOMS, "dev") if {"support", "tests"} & set(imports(path.read_text()))]

"""The audit of dependencies: a finding fails, and silence of the service is not taken for a clean bill. Every package
is pinned, or it could not be audited."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
AUDIT = ROOT / "tools" / "security" / "audit.py"
WELL = {"name": "idna", "version": "3.20", "vulns": []}
ILL = {"name": "idna", "version": "3.20", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3.21"]}]}
SKIPPED = {"name": "redis", "skip_reason": "Dependency not found on PyPI and could not be audited"}


def audit(directory: Path, *, output: str | None) -> tuple[int, str]:
    """Its exit code and words, with a pip-audit that prints this."""
    if output is not None:
        program = directory / "pip-audit"
        program.write_text(f"#!/bin/sh\ncat <<'EOF'\n{output}\nEOF\necho 'no route to host' >&2\n")
        program.chmod(0o755)
    env = {**os.environ, "PATH": f"{directory}:/usr/bin:/bin"}
    done = subprocess.run([sys.executable, AUDIT], env=env, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("packages", "code", "words"),
    [
        ([WELL, WELL], 0, "2 of 2 packages audited, 0 vulnerabilities"),
        ([WELL, SKIPPED], 0, "Not audited: redis\n1 of 2 packages audited"),
        ([WELL, ILL], 1, "idna 3.20: PYSEC-1, mended in 3.21\n"),
        ([SKIPPED, SKIPPED], 0, "Not audited: the service of pip-audit is not reachable"),
    ],
)
def test_what_was_found(tmp_path: Path, packages: list[dict[str, Any]], code: int, words: str) -> None:
    found = audit(tmp_path, output=json.dumps({"dependencies": packages, "fixes": []}))
    assert found[0] == code
    assert words in found[1]


def test_nobody_there(tmp_path: Path) -> None:
    assert audit(tmp_path, output=None) == (0, "Not audited: pip-audit is not installed.\n")
    code, words = audit(tmp_path, output="")
    assert code == 0
    assert words == "Not audited: the service of pip-audit is not reachable (no route to host).\n"


def pins(path: Path) -> dict[str, str]:
    found = {}
    for line in path.read_text().splitlines():
        if line and not line.startswith(("#", "-r")):
            match = re.fullmatch(r"([A-Za-z0-9._-]+)(?:\[[a-z,]+\])?==([A-Za-z0-9.!+]+)", line)
            assert match, f"{path.name}: {line} is not an exact pin"
            found[canonicalize_name(match[1])] = match[2]
    return found


def test_every_package_is_pinned_exactly() -> None:
    constraints = pins(ROOT / "backend" / "constraints.txt")
    todo: list[Requirement] = []
    for path in (ROOT / "backend").glob("requirements*.txt"):
        for name, version in pins(path).items():
            assert constraints.get(name) == version, f"{path.name}: {name}"
        lines = [line for line in path.read_text().splitlines() if line and not line.startswith(("#", "-r"))]
        todo += map(Requirement, lines)
    seen = set()
    while todo:
        wanted = todo.pop()
        name = canonicalize_name(wanted.name)
        if (name, *sorted(wanted.extras)) in seen:
            continue
        seen.add((name, *sorted(wanted.extras)))
        assert name in constraints, f"{wanted.name} is not in constraints.txt"
        installed = distribution(wanted.name)
        assert installed.version == constraints[name], f"{wanted.name} differs from constraints.txt"
        for line in installed.requires or ():
            inner = Requirement(line)
            extras = wanted.extras or {""}
            if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in extras):
                todo.append(inner)

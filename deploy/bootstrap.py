"""Makes `.venv` hold what a requirements file asks for, then becomes its Python.

    python3 deploy/bootstrap.py requirements-local.txt [arguments of python ...]

Runs before anything is installed, so it knows the standard library only. A stamp per requirements file lets
the next start skip pip; a mark that stays behind an interrupted pip makes the next start begin afresh.
"""

import fcntl
import hashlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
BACKEND = ROOT / "backend"
CONSTRAINTS = BACKEND / "constraints.txt"
RUN = ROOT / ".run"
LOG = RUN / "install.log"
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
UNFINISHED = VENV / ".unfinished"
OFFLINE = ("NewConnectionError", "NameResolutionError", "ConnectTimeoutError", "ProxyError", "unreachable")


def main(requirements: str, arguments: Sequence[str]) -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    files = [BACKEND / requirements, *_included(BACKEND / requirements)]
    try:
        RUN.mkdir(mode=0o700, exist_ok=True)
        with _one_at_a_time():
            if not _usable() or any(_stamp(file) != _digest(file) for file in files):
                _install(files)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except OSError as error:  # a full disk, a checkout of somebody else
        sys.exit(f"Cannot set up {ROOT}: {error.strerror} ({error.filename}).")
    if arguments:
        os.execv(PYTHON, [str(PYTHON), *arguments])


def _install(files: Sequence[Path]) -> None:
    started = time.monotonic()
    if not _usable():
        _create()
    sys.stdout.write("Installing Python packages into .venv (the first time takes a minute) ...\n")
    sys.stdout.flush()
    UNFINISHED.touch()
    pip = ["-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--progress-bar", "off"]
    if not _run(PYTHON, *pip, "-r", files[0], "-c", CONSTRAINTS):
        _fail_install()
    for file in files:
        (VENV / f".stamp-{file.name}").write_text(_digest(file))
    UNFINISHED.unlink()
    sys.stdout.write(f"Installed in {time.monotonic() - started:.0f} s.\n")
    sys.stdout.flush()


def _usable() -> bool:
    """Whether `.venv` is whole and its Python still runs: a system upgrade can take that away."""
    if UNFINISHED.exists() or not PYTHON.exists():
        return False
    return subprocess.run([PYTHON, "-c", "import pip"], capture_output=True, check=False).returncode == 0


def _create() -> None:
    if importlib.util.find_spec("ensurepip") is None:
        package = f"python{sys.version_info.major}.{sys.version_info.minor}-venv"
        sys.exit(f"Python cannot make a virtualenv; on Debian and Ubuntu run: sudo apt-get install {package}")
    if VENV.is_symlink():
        VENV.unlink()
    else:
        shutil.rmtree(VENV, ignore_errors=True)
    if not _run(sys.executable, "-m", "venv", VENV):
        sys.exit(f"Could not make the virtualenv .venv: {_reason()} (all of it: {LOG})")


def _fail_install() -> NoReturn:
    text = LOG.read_text(errors="replace")
    if any(word in text for word in OFFLINE):
        sys.exit(
            f"No network: pip could not reach the package index. Behind a proxy, set HTTPS_PROXY. (All of it: {LOG})"
        )
    sys.exit(f"pip could not install the packages: {_reason()} (all of it: {LOG})")


def _reason() -> str:
    if shutil.disk_usage(ROOT).free < 1_000_000:  # then the log is cut short too
        return "the disk is full"
    lines = [line for line in LOG.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["no output"])[-1].removeprefix("ERROR: ")


def _run(*command: str | Path) -> bool:
    """Run it with its output in the log; whoever stops us stops it, with what it started in turn."""
    with LOG.open("w") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, process_group=0
        )
        try:
            return process.wait() == 0
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Two starts at once would run two pips in one virtualenv."""
    with (RUN / "install.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.stdout.write("Waiting for another start.sh or test.sh to finish installing ...\n")
            sys.stdout.flush()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _included(file: Path) -> list[Path]:
    """The requirements files that this one pulls in with `-r`: installing it installs them."""
    names = [line[2:].strip() for line in file.read_text().splitlines() if line.startswith("-r")]
    direct = [file.parent / name for name in names]
    return [*direct, *(deeper for path in direct for deeper in _included(path))]


def _digest(file: Path) -> str:
    content = [path.read_bytes() for path in (file, *_included(file), CONSTRAINTS)]
    return hashlib.sha256(b"\0".join(content)).hexdigest()


def _stamp(file: Path) -> str:
    stamp = VENV / f".stamp-{file.name}"
    return stamp.read_text() if stamp.exists() else ""


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])

"""Asks for known vulnerabilities of every pinned package: `python tools/security/audit.py`.

Needs `pip-audit` on the PATH (in a virtualenv of its own: `pip install pip-audit`) and a service that it asks about
each package. Exit code 1 only where something was found. pip-audit itself ends well, with "No known vulnerabilities
found", when it could not ask about a single package; here that is said plainly.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

CONSTRAINTS = Path(__file__).resolve().parents[2] / "backend" / "constraints.txt"


def main() -> int:
    program = shutil.which("pip-audit")
    if program is None:
        print("Not audited: pip-audit is not installed.")
        return 0
    command = [program, "--requirement", str(CONSTRAINTS), "--no-deps", "--disable-pip", "--format", "json"]
    done = subprocess.run([*command, "--progress-spinner", "off"], capture_output=True, text=True, check=False)
    try:
        packages: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        print(f"Not audited: the service of pip-audit is not reachable ({reason}).")
        return 0
    asked = [package for package in packages if "skip_reason" not in package]
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    if not asked:
        print(f"Not audited: the service of pip-audit is not reachable; it knew none of {len(packages)} packages.")
        return 0
    found = [(package, fault) for package in asked for fault in package["vulns"]]
    for package, fault in found:
        fixed = ", ".join(fault["fix_versions"]) or "no version yet"
        print(f"{package['name']} {package['version']}: {fault['id']}, mended in {fixed}")
    if unknown:
        print(f"Not audited: {', '.join(unknown)}")
    print(f"{len(asked)} of {len(packages)} packages audited, {len(found)} vulnerabilities.")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())

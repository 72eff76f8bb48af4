"""`./start.sh`: the whole service on one machine, started, watched and stopped as one."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent.parent
RUN = ROOT / ".run"


class StackError(Exception):
    """The stack cannot start or go on. The message is one that a newcomer can act on."""

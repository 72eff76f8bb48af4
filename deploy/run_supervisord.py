"""supervisord, but that no program waits for long until it is started again.

Supervisor waits a second longer after each start that did not last `startsecs`, and has no setting for an end to that
(https://supervisord.org/subprocess.html#process-states): workers that had ended again and again while Redis was in
trouble stayed away for minutes when it was back.
"""

import sys
from typing import Any

from supervisor.process import Subprocess
from supervisor.supervisord import main

LONGEST_PAUSE = 4  # seconds

_patient = Subprocess.change_state


def change_state(process: Any, *arguments: Any, **more: Any) -> Any:
    """As supervisor's own, which counts the starts that did not last."""
    process.backoff = min(process.backoff, LONGEST_PAUSE - 1)
    return _patient(process, *arguments, **more)


if __name__ == "__main__":
    Subprocess.change_state = change_state
    sys.exit(main())

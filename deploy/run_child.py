"""Becomes a command that ends when its parent does, even by kill -9.

    python run_child.py COMMAND ARGUMENTS...

A killed parent cannot stop its children; on Linux the kernel can (prctl(2), PR_SET_PDEATHSIG, which execve(2)
keeps). Elsewhere the command just runs. `PARENT_PID`, if set, is the parent that was meant: when it is gone
before prctl took effect, there is nothing left to run for.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.environ.get("PARENT_PID", str(os.getppid())) != str(os.getppid()):
            sys.exit(0)
    os.execvp(sys.argv[1], sys.argv[1:])

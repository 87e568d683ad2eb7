"""A helper process ends with the one that started it, even where that one is killed."""

from __future__ import annotations

import ctypes
import os
import signal
import sys


def end_with_parent(parent: int) -> None:
    """Have the system kill this process when its parent ends; end now if it already has.

    Args:
        parent: its process id; from here one could no longer tell it from an heir.
    """
    if sys.platform == "linux":
        set_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the process that asked for this has ended")

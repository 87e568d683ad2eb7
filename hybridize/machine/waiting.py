"""How threads of torch wait for each other: in a loop while cores are free, else asleep.

torch's OpenMP (libgomp) reads this when it is imported, here and in processes that are started. In
a loop it waits milliseconds by default: on a busy machine the thread that it waits for may not run
meanwhile, and a step takes nine times as long (benchmarks/RESULTS.md). Asleep a thread has to be
woken at each of the many small loops of a step, which an idle processor is slow at.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import MutableMapping
from pathlib import Path

SPINS = "1000"  # turns of the loop, then asleep: as fast as more where cores are free
FREE = 0.5  # of the cores, at most in use for that
LOAD = Path("/proc/loadavg")  # its fourth word begins with the number of threads that run now
LOOKS, BETWEEN = 10, 0.002  # at it, and seconds after each


def choose_waiting(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set how threads wait, where the user has not."""
    if {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & environment.keys():
        return
    if is_free():
        environment["GOMP_SPINCOUNT"] = SPINS
    else:
        environment["OMP_WAIT_POLICY"] = "PASSIVE"


def is_free() -> bool:
    """Whether half of the cores have been idle for a minute, or are idle now.

    The load of the last minute may be that of a command that has just ended.
    """
    if not hasattr(os, "getloadavg"):
        return False
    most = FREE * (os.cpu_count() or 1)
    return os.getloadavg()[0] <= most or running_now() <= most


def running_now() -> float:
    """Mean number of other threads that are running or ready to run; infinite except on Linux."""
    if not LOAD.is_file():
        return math.inf
    found = []
    for _ in range(LOOKS):
        found.append(int(LOAD.read_text().split()[3].split("/")[0]) - 1)
        time.sleep(BETWEEN)
    return sum(found) / LOOKS

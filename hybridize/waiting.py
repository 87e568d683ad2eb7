"""How threads of torch wait for each other: in a loop while cores are free, else asleep.

torch's OpenMP (libgomp) reads this when it is imported, here and in processes that are started. In
a loop it waits milliseconds by default: on a busy machine the thread that it waits for may not run
meanwhile, and a step takes nine times as long (benchmarks/RESULTS.md). Asleep a thread has to be
woken at each of the many small loops of a step, which an idle processor is slow at.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

SPINS = "1000"  # turns of the loop, then asleep: as fast as more where cores are free
FREE = 0.5  # of the cores, at most in use for that


def choose_waiting(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set how threads wait, where the user has not."""
    if {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & environment.keys():
        return
    if is_free():
        environment["GOMP_SPINCOUNT"] = SPINS
    else:
        environment["OMP_WAIT_POLICY"] = "PASSIVE"


def is_free() -> bool:
    """Whether half of this machine's cores have had nothing to do for a minute."""
    if not hasattr(os, "getloadavg"):
        return False
    return os.getloadavg()[0] <= FREE * (os.cpu_count() or 1)

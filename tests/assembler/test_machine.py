"""How a command uses the machine that it runs on."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

# Blocks of 24 to 80 MB, as passes over a model ask for them, again and again.
CHILD = """
import resource, sys
import torch
from hybridize.machine.device import use_device
if sys.argv[1] == "keep":
    use_device("cpu")
def fetched():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def go():
    for millions in (6, 20, 12, 6, 20):
        torch.ones(millions * 1_000_000)
for _ in range(3):
    go()
before = fetched()
go()
print(fetched() - before)
"""


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallopt"), reason="this C library cannot be told so"
)
def test_memory_that_is_freed_is_used_again() -> None:
    """Pages that a second pass fetches from the system."""

    def pages(how: str) -> int:
        command = [sys.executable, "-c", CHILD, how]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert pages("keep") < 1000 < 20_000 < pages("leave")

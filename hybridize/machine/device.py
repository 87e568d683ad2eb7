"""Where models run, and how memory is used and how much is free there (torch side)."""

from __future__ import annotations

import ctypes

import torch

from hybridize.errors import HybridizeError
from hybridize.machine.precision import free_memory

SHARE = 0.25  # of free memory, for the states of perturbed text
TRIM_THRESHOLD, MMAP_MAX = -1, -4  # glibc's numbers of these parameters, see mallopt(3)


def use_device(asked: str) -> str:
    """The device that models run on; `auto` is a GPU where there is one.

    On a CPU, this process keeps the memory that it frees from now on, see `keep_freed_memory`.

    Raises:
        HybridizeError: a GPU is asked for, and torch sees none.
    """
    there = torch.cuda.is_available()
    if asked == "cuda" and not there:
        raise HybridizeError("torch sees no CUDA device", fix="write --device cpu, or auto")
    if asked != "cpu" and there:
        return "cuda"
    keep_freed_memory()
    return "cpu"


def keep_freed_memory() -> None:
    """Keep freed memory in this process instead of returning it to the system (glibc only).

    Passes over a model allocate the same large blocks again and again. When these are returned, the
    kernel has to find and clear every page of them anew: a tenth of a pass on two cores.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(MMAP_MAX, 0)  # large blocks come from the heap, too
        mallopt(TRIM_THRESHOLD, -1)  # and the heap never shrinks


def free_share(device: str) -> int:
    """A quarter of the bytes that are free now, files that are only cached counted as free."""
    if device == "cuda":
        return int(SHARE * torch.cuda.mem_get_info()[0])
    return int(SHARE * free_memory())

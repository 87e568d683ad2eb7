"""Where models run, and how much memory is free there (torch side)."""

from __future__ import annotations

import torch

from hybridize.assembler.precision import free_memory
from hybridize.errors import HybridizeError

SHARE = 0.25  # of free memory, for the states of perturbed text


def pick_device(asked: str) -> str:
    """`auto` is a GPU where there is one.

    Raises:
        HybridizeError: a GPU is asked for, and torch sees none.
    """
    there = torch.cuda.is_available()
    if asked == "cuda" and not there:
        raise HybridizeError("torch sees no CUDA device", fix="write --device cpu, or auto")
    return "cuda" if asked != "cpu" and there else "cpu"


def gpu_generation() -> int:
    """Major number of NVIDIA's compute capability: 8 is Ampere."""
    return int(torch.cuda.get_device_capability()[0])


def free_share(device: str) -> int:
    """A quarter of the bytes that are free now, files that are only cached counted as free."""
    if device == "cuda":
        return int(SHARE * torch.cuda.mem_get_info()[0])
    return int(SHARE * free_memory())

"""Where models run, and how much memory is free there (torch side)."""

from __future__ import annotations

import os

import torch

from hybridize.errors import HybridizeError
from hybridize.recipe_fields import parse_size

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


def memory_budget(asked: str | None, device: str) -> int:
    """Bytes that the command line asks for, or a quarter of what is free."""
    if asked is not None:
        return parse_size(asked, "--memory")
    return int(SHARE * _free_memory(device))


def _free_memory(device: str) -> int:
    """Bytes that are free now."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

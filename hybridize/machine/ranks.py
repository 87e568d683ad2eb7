"""The processes that a launcher has started together, as its environment says. No torch."""

from __future__ import annotations

import os


def processes() -> int:
    """How many there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Number of this process among them."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Its number among those on this machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def one_machine() -> bool:
    """Whether all of them run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", str(processes()))) == processes()


def is_main() -> bool:
    """Whether this process writes and prints."""
    return rank() == 0

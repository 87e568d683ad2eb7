"""Perturbation `whole`: all that leaves a layer is set to zero, what came from below as well.

For comparison only: every layer looks alike, since the stream itself is lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator, Tensor

TITLE = "the whole stream set to zero (naive: every layer looks alike)"
ACTS_ON = "output"
RANDOM = False
STRENGTH = 1.0  # share of the stream that is taken away


def perturb(stream: Tensor, strength: float, generator: Generator) -> Tensor:
    """(..., width), what is left of the stream."""
    return stream * (1 - strength)

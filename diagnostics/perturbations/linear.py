"""Perturbation `linear`: the layer's best linear map stands in its place.

What the loss then rises by is the worth of the layer as a block: what no matrix could do instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator, Tensor

TITLE = "the layer replaced by the linear map that comes closest to it"
ACTS_ON = "fit"
RANDOM = False
STRENGTH = 1.0  # share of what the map misses that is taken away


def perturb(missed: Tensor, strength: float, generator: Generator) -> Tensor:
    """(..., width): of what the map misses, what is left."""
    return missed * (1 - strength)

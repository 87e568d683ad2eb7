"""Perturbation `skip`: the update is set to zero, as if the part were not there."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator, Tensor

TITLE = "the whole update set to zero, as if the part were not there"
ACTS_ON = "update"
RANDOM = False
STRENGTH = 1.0  # share of the update that is taken away


def perturb(update: Tensor, strength: float, generator: Generator) -> Tensor:
    """(..., width), what is left of the update."""
    return update * (1 - strength)

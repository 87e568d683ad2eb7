"""Perturbation `dropout`: a share of the dimensions of an update is set to zero.

The same dimensions for every token, and nothing is scaled up: this is our reading of the papers'
"mask", of which they do not say more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator, Tensor

TITLE = "a share of the update's dimensions set to zero, the same ones for every token"
ACTS_ON = "update"
RANDOM = True
STRENGTH = 0.5  # share of the dimensions


def perturb(update: Tensor, strength: float, generator: Generator) -> Tensor:
    """(..., width) with about `strength` of its dimensions zero."""
    import torch

    kept = torch.rand(update.shape[-1], generator=generator) >= strength
    return update * kept.to(update)

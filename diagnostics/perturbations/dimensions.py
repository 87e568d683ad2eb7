"""Perturbation `dimensions`: some dimensions of the stream are set to zero, from below as well.

For comparison only: which layer suffers most depends on the dimensions drawn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator, Tensor

TITLE = "a share of the stream's dimensions set to zero (naive: rules by which are drawn)"
ACTS_ON = "output"
RANDOM = True
STRENGTH = 0.3  # share of the dimensions


def perturb(stream: Tensor, strength: float, generator: Generator) -> Tensor:
    """(..., width) with about `strength` of its dimensions zero."""
    import torch

    kept = torch.rand(stream.shape[-1], generator=generator) >= strength
    return stream * kept.to(stream)

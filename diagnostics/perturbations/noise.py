"""Perturbation `noise`: Gaussian noise is added to an update, in proportion to its length."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator, Tensor

TITLE = "Gaussian noise added to the update, in proportion to the update's own RMS"
ACTS_ON = "update"
RANDOM = True
STRENGTH = 1.0  # RMS of the noise over the RMS of each token's update


def perturb(update: Tensor, strength: float, generator: Generator) -> Tensor:
    """(..., width) with noise."""
    import torch

    rms = update.float().square().mean(-1, keepdim=True).sqrt()
    noise = torch.randn(update.shape, generator=generator).to(update.device)
    return update + (strength * rms * noise).to(update.dtype)

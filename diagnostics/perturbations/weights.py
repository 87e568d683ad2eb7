"""Perturbation `weights`: Gaussian noise on every matrix of a part, as after a bad update."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator, Tensor

TITLE = "Gaussian noise on every matrix, in proportion to its standard deviation"
ACTS_ON = "weights"
RANDOM = True
STRENGTH = 0.3  # standard deviations of the matrix


def perturb(matrix: Tensor, strength: float, generator: Generator) -> Tensor:
    """A matrix of any shape with noise."""
    import torch

    noise = torch.randn(matrix.shape, generator=generator).to(matrix)
    return matrix + strength * matrix.std() * noise

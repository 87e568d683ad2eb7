"""Perturbation `tokens`: some tokens are hidden from what a part reads; the stream keeps them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator, Tensor

TITLE = "a share of the tokens hidden from what the part reads; the stream itself keeps them"
ACTS_ON = "input"
RANDOM = True
STRENGTH = 0.3  # share of the tokens


def perturb(given: Tensor, strength: float, generator: Generator) -> Tensor:
    """(batch, tokens, width) with about `strength` of its tokens zero."""
    import torch

    seen = torch.rand((*given.shape[:-1], 1), generator=generator) >= strength
    return given * seen.to(given)

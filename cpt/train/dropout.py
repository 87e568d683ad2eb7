"""Dropout that depends on the row alone, not on which rows run beside it (torch side).

The dropout that donors' configs ask for is off. Its draws come from one generator, in the order of
the modules, so that they change with the rows at once, the processes, a cached prefix and a resume.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from blake3 import blake3
from torch import Tensor


@dataclass(frozen=True)
class Dropout:
    """Leaves out elements of what slots add to the stream.

    Attributes:
        share: of the elements that is left out; the others grow by as much.
        slots: those that learn.
        length: tokens of a whole row: a shorter one gets the beginning of the same draw.
    """

    share: float
    slots: Collection[int]
    seed: int
    length: int

    def __call__(self, given: Tensor, gave: Tensor, rows: Tensor, slot: int) -> Tensor:
        """What a slot gives after dropout.

        Args:
            given, gave: (batch, tokens, width), the stream before and after the slot.
            rows: (batch,), numbers of the rows in the order of the training.
        """
        tokens, width = gave.shape[1:]
        draws = [self._draw(row, slot, width, gave.device)[:tokens] for row in rows.tolist()]
        kept = torch.stack(draws) >= self.share
        return given + (gave - given) * kept.to(gave.dtype) / (1 - self.share)

    def _draw(self, row: int, slot: int, width: int, device: torch.device) -> Tensor:
        """(length, width), uniform."""
        digest = blake3(f"{self.seed} {row} {slot}".encode()).digest(8)
        generator = torch.Generator(device).manual_seed(int.from_bytes(digest) >> 1)
        return torch.rand(self.length, width, generator=generator, device=device)

"""Whether documents that stand in one row see each other (torch side)."""

from __future__ import annotations

import torch
from torch import Tensor

from hybridize.cpt.train.trainable_model import TrainableModel
from hybridize.torch_model.stream import Stream

LEAK = 1e-4  # of the largest logit, by which another document may change one: rounding


@torch.no_grad()
def isolates(tuned: TrainableModel, length: int) -> bool:
    """Whether documents in one row do not see each other, found by changing the first of two.

    Attention keeps them apart by positions that start anew; a recurrent layer runs on from one
    document into the next.
    """
    model = tuned.model
    half = max(2, min(length, 64) // 2)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, int(model.config.vocab_size), (2, 2 * half), generator=generator)
    tokens[1, half:] = tokens[0, half:]
    positions = torch.arange(half).repeat(2)[None].expand(2, -1)
    model.train(False)
    stream = Stream(model, tokens.to(model.device), None, positions.to(model.device))
    normed = stream.norm(stream.cross(stream.depth, stream.run(stream.first, 0, stream.depth)))
    logits: Tensor = stream.logits(normed[:, half:])
    return float((logits[0] - logits[1]).abs().max()) <= LEAK * float(logits.abs().max())

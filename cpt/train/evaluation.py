"""Loss on held-out rows, on all processes together (torch side)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from hybridize.cpt.backends import processes
from hybridize.cpt.data.blocks import IGNORED, Blocks
from hybridize.cpt.data.rows import rows_of, trimmed
from hybridize.cpt.data.text import OLD, Source
from hybridize.machine import ranks

Losses = dict[str, float]  # by source


@torch.no_grad()
def losses(
    model: nn.Module,
    sources: Sequence[Source],
    *,
    packed: bool,
    micro_batch: int,
    most: int,
) -> Losses:
    """Mean loss over the held-out targets of each source, in nats per token.

    Args:
        model: that `forward.Forward` runs, as its engine has wrapped it.
        micro_batch: rows that a process runs at a time.
        most: tokens of a source; the first rows are taken. 0: nothing is measured.
    """
    if most == 0:
        return {}
    was_training = model.training
    model.train(False)
    found = {
        label(s): _loss(model, s.held_out, packed=packed, micro_batch=micro_batch, most=most)
        for s in sources
    }
    model.train(was_training)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # After a forward without a backward some parameters lie whole, and are not those that
            # the optimizer knows.
            module.reshard()
    return found


def _loss(model: nn.Module, blocks: Blocks, *, packed: bool, micro_batch: int, most: int) -> float:
    """All processes run as many batches: where there are too few, one comes again and is not
    counted, since a sharded model runs on all of them or on none.
    """
    rows = min(len(blocks), max(1, most // blocks.tokens.shape[1]))
    starts = list(range(0, rows, micro_batch))
    device = next(model.parameters()).device
    tally = torch.zeros(2, dtype=torch.float64)
    for turn in range(-(-len(starts) // ranks.processes())):
        number = turn * ranks.processes() + ranks.rank()
        start = starts[min(number, len(starts) - 1)]
        batch = trimmed(
            rows_of(blocks, range(start, min(start + micro_batch, rows)), packed=packed)
        )
        out = model(**{name: value.to(device) for name, value in batch.items()})
        if number < len(starts):
            tokens = (batch["labels"][:, 1:] != IGNORED).sum()
            tally += torch.stack([out["nats"].sum().cpu(), tokens.double()])
    nats, tokens = processes.summed(tally.to(device)).cpu()
    return float(nats / tokens)


def label(source: Source) -> str:
    """What a source is called in results: text of both kinds may have one name."""
    return f"{source.name} ({source.kind})"


def old_losses(found: Mapping[str, float], sources: Sequence[Source]) -> Losses:
    """Those of the text that is to be kept."""
    old = [label(source) for source in sources if source.kind == OLD]
    return {name: loss for name, loss in found.items() if name in old}

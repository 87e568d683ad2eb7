"""What happens in a step, from a batch to the optimizer's turn.

1. A batch: the next rows of the stage, in their order, each with the source that it is from
   (`data.rows`). A step has several where a process runs fewer rows at a time.
2. Forward: `forward.Forward` gives nats, row by row, and a loss that is their sum.
3. Loss: the sum over the tokens of the whole step, on all processes: `Step.loss`. So it is the same
   in any number of batches, processes and shards.
4. Backward, and the norm of the gradient, which is clipped: Trainer and the engine.
5. Guard: the step's losses are put together and looked at: `Step.check`. Where it goes wrong,
   nothing has moved yet, and the state before it is saved.
6. Optimizer and schedule: `trainer`.
7. Evaluation, then a checkpoint, where one is due: `Events.evaluate`, `trainer`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hybridize.cpt.backends import processes
from hybridize.cpt.backends.engines import InUse
from hybridize.cpt.data.blocks import IGNORED
from hybridize.cpt.plan.saving import SaveClock
from hybridize.machine import ranks


class Events(Protocol):
    """What a stage does around its steps; whatever it raises ends the training."""

    def begin(self, model: nn.Module, in_use: InUse, step: int) -> None:
        """Before the next step.

        Args:
            in_use: the engine that was found at work.
            step: that the training goes on behind.
        """

    def before_update(self, losses: Mapping[str, float], norm: Any, step: int) -> None:
        """Between backward and the optimizer.

        Args:
            losses: see `Step.losses`; norm: of the gradient; step: the number of those taken.
        """

    def evaluate(self, model: nn.Module, step: int) -> None:
        """After a step, the last one aside, where an evaluation is due."""


class Step:
    """The step that is going on.

    Attributes:
        losses: over all processes, nats per token: of all, and of each source that was in it.
        save_is_due: whether a checkpoint is to be written after it.
    """

    def __init__(self, sources: Sequence[str], events: Events, save: SaveClock) -> None:
        self.sources, self.events, self.save = sources, events, save
        self.losses: dict[str, float] = {}
        self.save_is_due = False
        self._tally = torch.zeros(len(sources), 2, dtype=torch.float64)  # nats, tokens

    def loss(self, model: nn.Module, batch: dict[str, Any], tokens: Any) -> tuple[Tensor, Any]:
        """Nats of a batch over the tokens of the step, and what the model gave.

        Args:
            tokens: that count in the whole step; engines take the mean over processes.
        """
        sources = batch.pop("source").cpu()
        out = model(**batch)
        here = (batch["labels"][:, 1:] != IGNORED).sum(1)
        self._tally.index_add_(0, sources, torch.stack([out["nats"], here.double()], 1).cpu())
        return out["loss"] / tokens * ranks.processes(), out

    def check(self, norm: Any, taken: int, device: torch.device) -> None:
        """Put the losses of all processes together, and let the stage look at them.

        Args:
            taken: number of steps that were taken before.
        """
        is_due = ranks.is_main() and self.save.is_due(taken + 1)
        # In one message: clocks of several processes would not agree.
        sent = torch.cat([self._tally, torch.tensor([[float(is_due), 0.0]], dtype=torch.float64)])
        *tally, due = processes.summed(sent.to(device)).cpu()
        self.save_is_due = bool(due[0])
        self._tally = torch.zeros_like(self._tally)
        means = {
            f"loss/{name}": float(nats / tokens)
            for name, (nats, tokens) in zip(self.sources, tally, strict=True)
            if tokens
        }
        nats, tokens = torch.stack(tally).sum(0)
        self.losses = {"loss": float(nats / tokens), "tokens": float(tokens), **means}
        self.events.before_update(self.losses, norm, taken)

"""How far the fits and losses of a hybrid are, and how long they will take (torch side).

Counted in tokens that pass the hybrid; a token that is read out counts for more, by as much as a
short run shows: the head is wide.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from hybridize.assembler.fit.bridge_fit import share_of_pass
from hybridize.assembler.fit.hybrid_with_donors import HybridWithDonors
from hybridize.assembler.fit.swap_controls import groups, swapped
from hybridize.console import duration
from hybridize.machine.timing import seconds_of
from hybridize.torch_model.stream import Stream
from hybridize.torch_model.windows import Windows

SAMPLE = 256  # tokens of the timed run
RUNS = 2  # of which the faster counts, after one that does not

# Called with what is done, all that is to be done, and at the start with the time that takes.
Told = Callable[..., None]


@dataclass(frozen=True)
class Pace:
    """Seconds of a token on its way through a hybrid, and in its head."""

    layers: float
    head: float

    @property
    def loss(self) -> float:
        """Passes without the head that take as long as one with it."""
        return 1 + self.head / self.layers


@torch.no_grad()
def timed(models: HybridWithDonors, text: str) -> Pace:
    """Run some text through a hybrid."""
    tokens = models.reader.encode([text]).tokens[:, :SAMPLE]
    stream = Stream(models.hybrid, tokens, None)
    device = models.reader.device

    def fastest(work: Callable[[], object]) -> float:
        work()
        return max(min(seconds_of(work, device) for _ in range(RUNS)), 1e-9) / tokens.numel()

    arrived = stream.run(stream.first, 0, stream.depth)
    return Pace(
        layers=fastest(lambda: stream.run(stream.first, 0, stream.depth)),
        head=fastest(lambda: stream.nats(arrived)),
    )


class Work:
    """Counts what is done of fitting and measuring.

    Args:
        windows: that bridges are fitted on; `judged`: that losses are measured on.
        alone: donors whose losses are measured too.
    """

    def __init__(
        self,
        models: HybridWithDonors,
        windows: Sequence[Windows],
        judged: Sequence[Windows],
        *,
        alone: int,
        stream: str,
        tell: Told,
    ) -> None:
        self.pace = timed(models, windows[0].fit[0])
        whole = sum(part.length * (len(part.fit) + len(part.held_out)) for part in windows)
        losses = sum(part.length * len(part.held_out) for part in judged)
        fitted = [bridge for bridge in models.bridges if bridge.fitted]
        passes = sum(share_of_pass(models, b, stream, nulls=bool(judged)) for b in fitted)
        swaps = len(swapped(models)) if judged else 0
        maps = len(groups(models, windows)) if judged else 0
        models_read = 1 + alone + len(fitted) + 2 * swaps
        self.total = whole * (passes + 2 * maps) + losses * models_read * self.pace.loss
        self.done, self.tell = 0.0, tell

    @property
    def seconds(self) -> float:
        """Of all of it, about."""
        return self.total * self.pace.layers

    def start(self) -> None:
        """Tell how long it will take, before it does."""
        self.tell(0, round(self.total), f"about {duration(self.seconds)}")

    def passed(self, num_tokens: float) -> None:
        """Some tokens went through the hybrid, or as many layers."""
        self.done = min(self.total, self.done + num_tokens)
        self.tell(round(self.done), round(self.total))

    def read_out(self, num_tokens: float) -> None:
        """Some tokens went through a model, and its head."""
        self.passed(num_tokens * self.pace.loss)

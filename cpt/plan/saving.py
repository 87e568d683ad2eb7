"""When checkpoints are written: each so many steps, or each so many minutes. No torch."""

from __future__ import annotations

import time
from collections.abc import Callable

from hybridize.recipe.sections.fields import seconds_of


class SaveClock:
    """Says after a step whether a checkpoint is due.

    Args:
        now: seconds, of a clock that never goes back.
    """

    def __init__(self, every: int | str, now: Callable[[], float] = time.monotonic) -> None:
        self.every, self.now = every, now
        self.last = now()

    def is_due(self, step: int) -> bool:
        """Args: step: steps that were done."""
        if isinstance(self.every, int):
            return step % self.every == 0
        return self.now() - self.last >= seconds_of(self.every)

    def saved(self) -> None:
        """A checkpoint was written."""
        self.last = self.now()

"""What a training is stopped for: no number, a spike, forgetting, a tensor without a gradient."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from hybridize.console import say
from hybridize.cpt.backends import engines
from hybridize.errors import CheckFailed
from hybridize.machine import ranks
from hybridize.recipe.sections.cpt import GuardsSpec

WINDOW, ENOUGH = 50, 20  # steps whose median is the usual loss; fewer say nothing


class Guards:
    """Looks at each step and at each evaluation.

    Args:
        folder: of the checkpoints, for messages.
    """

    def __init__(self, spec: GuardsSpec, folder: Path) -> None:
        self.spec, self.folder = spec, folder
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._warned: set[str] = set()
        self.warnings: list[str] = []

    def recall(self, losses: Sequence[float]) -> None:
        """Losses of the steps before, where a training goes on: they say what is usual."""
        self._recent.extend(losses)

    def check_step(self, loss: float, norm: Any, step: int) -> None:
        """Called before the optimizer moves anything, on all processes with the same numbers.

        Args:
            norm: of the gradient; None where the engine does not tell.
            step: steps that were done.

        Raises:
            CheckFailed: loss or gradient are no numbers, or the loss has leapt.
        """
        found = None if norm is None else float(norm)
        if not math.isfinite(loss):
            self._stop(f"the loss is {loss} in step {step + 1}", step)
        if found is not None and not math.isfinite(found):
            self._stop(f"the gradient is {found} in step {step + 1}", step)
        usual = statistics.median(self._recent) if len(self._recent) >= ENOUGH else None
        if usual is not None and self.spec.spike is not None and loss > usual + self.spec.spike:
            self._stop(
                f"the loss is {loss:.3f} in step {step + 1}, where {usual:.3f} is usual",
                step,
                f"let it pass with guards: {{spike: {math.ceil(loss - usual) + 1}}} and --resume",
            )
        self._recent.append(loss)

    def check_old(
        self, losses: Mapping[str, float], before: Mapping[str, float], step: int
    ) -> None:
        """Called at each evaluation.

        Args:
            losses, before: of each old source now and before the training, in nats per token.

        Raises:
            CheckFailed: an old source has become worse than it may, and the recipe says stop.
        """
        rise = self.spec.rise
        for name, loss in losses.items():
            if rise is None or loss - before[name] <= rise:
                continue
            text = (
                f"the loss on '{name}' has risen by {loss - before[name]:.3f} to {loss:.3f} nats "
                f"per token at step {step}; {rise:g} is the limit"
            )
            if self.spec.then == "stop":
                self._stop(text, step, "let it rise further with guards: {rise: ...} and --resume")
            if name not in self._warned:
                self._warned.add(name)
                self.warnings.append(text)
                if ranks.is_main():
                    say(f"warning: {text}")

    def _stop(self, found: str, step: int, way_on: str | None = None) -> None:
        """Raise; the trainer then writes a checkpoint of what there was before."""
        there = f"checkpoint-{step} holds what was learnt before; " if step else ""
        anew = "lower the learning rate, or look at the text, and start over with --force"
        fix = f"{there}{way_on}; or {anew}" if way_on else f"{there}{anew}"
        raise CheckFailed(found, fix=fix, place=str(self.folder))


class FirstStep(TrainerCallback):
    """In the first step of a stage, every tensor that learns has a gradient; also after a resume.

    Args:
        engine: DeepSpeed takes gradients away as soon as they are there; they are seen to come.
    """

    def __init__(self, engine: str) -> None:
        self.takes_away = engine == engines.DEEPSPEED
        self.came: set[str] = set()
        self.done = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Gradients are watched for before the first one."""
        for name, parameter in _learning(given["model"]) if self.takes_away else ():
            parameter.register_hook(lambda gradient, name=name: self.came.add(name))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Where transformers is about to let the optimizer step."""
        if self.done:
            return
        self.done = True
        here = dict(_learning(given["model"]))
        came = self.came if self.takes_away else {n for n, p in here.items() if p.grad is not None}
        if without := [name for name in here if name not in came]:
            raise CheckFailed(
                f"{len(without)} tensors that are to learn get no gradient, {without[0]} among "
                "them",
                fix="leave them out of the policy: nothing that is trained depends on them",
            )


def _learning(model: Any) -> list[tuple[str, Any]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]

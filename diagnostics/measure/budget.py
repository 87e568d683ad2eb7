"""What of a diagnosis fits into a budget of time: coarse for all layers, finer where it decides.

A short run of the model itself says how long the work takes; what is chosen is told, and noted in
the trace, so that flags repeat it on any machine (torch side).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from hybridize.console import duration, say
from hybridize.diagnostics.measure.effort import Effort
from hybridize.diagnostics.measure.sheets import Sheet
from hybridize.diagnostics.measure.sweep import LOGITS, effort_of, pass_through, read_out
from hybridize.diagnostics.subject.trace import Curve
from hybridize.machine.timing import median_seconds
from hybridize.recipe.sections.diagnostics import DiagnosticsSpec
from hybridize.torch_model.loading import Parts

BUDGET = 600.0  # seconds, where nothing else is said
CLEARLY = 1.3  # times a budget that a run may take before something is left out
SEEDS = 3
MOST = 4  # layers that are measured again, at most
MORE = 2  # times the seeds, for these
PERTURBED = (1280, 640, 320)  # tokens, where all are too many
SAMPLE = 512  # tokens of the timed run
POSITIONS = 128  # that the head reads out in it, at most
PASSES, PATIENCE = 3, 2.0  # of each part of it, and seconds after which they are enough


def seeds_of(spec: DiagnosticsSpec) -> int:
    """Draws of perturbations by chance."""
    return spec.seeds or SEEDS


def choices(spec: DiagnosticsSpec) -> list[DiagnosticsSpec]:
    """Settings that a recipe leaves open, the best first; one where it says all."""
    if not spec.by_budget:
        parts = spec.parts or ["layer", "mixer", "mlp"]
        return [spec.model_copy(update={"parts": parts, "seeds": seeds_of(spec)})]
    return fewer(spec)


def fewer(spec: DiagnosticsSpec) -> list[DiagnosticsSpec]:
    """The settings themselves, and then with less of what they do not say: text, and draws."""
    numbers = [None, *PERTURBED] if spec.perturbed is None else [spec.perturbed]
    fewer = [SEEDS, SEEDS - 1] if spec.seeds is None else [spec.seeds]
    pairs = [(number, fewer[0]) for number in numbers] + [(numbers[-1], s) for s in fewer[1:]]
    return [spec.model_copy(update={"perturbed": n, "seeds": seeds}) for n, seeds in pairs]


@dataclass(frozen=True)
class Rate:
    """Seconds that a model takes on this machine.

    Attributes:
        layers: for a multiplication in layers.
        read, compare: for a position that a lens reads, and for an outcome that is compared.
    """

    layers: float
    read: float
    compare: float

    def seconds(self, work: Callable[[Effort], int], effort: Effort) -> float:
        """Of some work, whose effort is asked for with and without what the head does."""
        layers = work(replace(effort, read=0, compare=0))
        reads = work(replace(effort, read=1, compare=0)) - layers
        outcomes = work(replace(effort, read=0, compare=1)) - layers
        return layers * self.layers + reads * self.read + outcomes * self.compare


@torch.no_grad()
def timed(parts: Parts, sheets: Sequence[Sheet], device: str) -> Rate:
    """Time some text on its way through a model, and its head."""
    tokens = next(sheet.tokens for sheet in sheets)
    tokens = tokens[: max(1, SAMPLE // tokens.shape[1])]
    read = min(POSITIONS, max(1, LOGITS // parts.model.config.vocab_size))

    def seconds(work: Callable[[], None]) -> float:
        return median_seconds(work, device, runs=PASSES, patience=PATIENCE)

    layers = seconds(lambda: pass_through(parts, tokens))
    return Rate(
        layers / (tokens.numel() * sum(effort_of(parts).layers)),
        seconds(lambda: read_out(parts, tokens, read, compare=False)) / read,
        seconds(lambda: read_out(parts, tokens, read, compare=True)) / read,
    )


def tell_choice(spec: DiagnosticsSpec, took: float, budget: float | None) -> None:
    """Say what was chosen, what it will take, and how to repeat it."""
    if budget is None:
        say(f"diagnosing: about {duration(took)}")
        return
    text = "all scored text" if spec.perturbed is None else f"{spec.perturbed} tokens"
    flags = f"--perturbed {spec.perturbed or spec.tokens // 2} --seeds {seeds_of(spec)}"
    over = "" if took <= budget else f", more than the budget of {duration(budget)}"
    say(f"perturbing {text} with {seeds_of(spec)} seeds: about {duration(took)}{over} ({flags})")


def overruns(took: float, done: int, left: int, budget: float | None) -> bool:
    """Whether what is left would clearly exceed a budget, which is said; the machine may be busy.

    Args:
        took: seconds, for the effort `done`.
    """
    whole = took * (done + left) / done
    if budget is None or whole <= CLEARLY * budget:
        return False
    say(
        f"all layers took {duration(took)}, more than was to be expected: none is measured again, "
        f"which would make it {duration(whole)} (budget: {duration(budget)})"
    )
    return True


def candidates(curve: Curve, most: int) -> list[int]:
    """Slots that may be the most sensitive: their intervals reach the first one's; at least two."""
    there = [(mean, slot) for slot, mean in enumerate(curve.mean) if mean is not None]
    order = [slot for _, slot in sorted(there, key=lambda pair: (-pair[0], pair[1]))]
    if not order:
        return []
    floor = curve.low[order[0]]
    near = [s for s in order if floor is None or (curve.high[s] or 0.0) >= floor]
    return sorted((near if len(near) > 1 else order[:2])[:most])

"""Placements in memory: assembled over shared tensors, fitted, and measured (torch side)."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridize.assembler import (
    HELD_OUT,
    TOKENS_PER_INPUT,
    HybridWithDonors,
    Losses,
    Plan,
    fit_and_measure,
    hybrid_config,
    reader_of,
    tokenizer_of,
)
from hybridize.console import Tell
from hybridize.diagnostics.measure import scoring
from hybridize.diagnostics.measure.diagnosis import Material
from hybridize.diagnostics.measure.sheets import Points, Sheet, lens_sheets, share_of, text_sheets
from hybridize.diagnostics.measure.sweep import sweep
from hybridize.diagnostics.measure.variants import Variant
from hybridize.diagnostics.subject.trace import Boundary, Curve, Flow, Trace
from hybridize.machine.device import free_share
from hybridize.text.calibration import gather
from hybridize.torch_model.loading import Parts, Weights
from hybridize.torch_model.windows import DomainText, Reader, Windows, cut

GROWTH = 10.0  # times what the same layer does in its donor


@dataclass(frozen=True)
class Measured:
    """What an assembled stack is, before any training.

    Attributes:
        fit: how its bridges were fitted, and its losses beside its controls, as `build` gives it.
        curve: sensitivity of its slots.
        alarms: what speaks against going on with it.
    """

    fit: dict[str, Any]
    curve: Curve
    flow: Flow
    boundary: Boundary | None
    alarms: tuple[str, ...]

    def losses(self, domain: str) -> dict[str, float]:
        """Nats per byte of the hybrid and all its controls."""
        table = self.fit["losses"]
        rows = {"hybrid": table["hybrid"], "unigram": table["unigram"], **table["donors"]}
        rows |= {f"null: {span}": row for span, row in table["null"].items()}
        return {name: row[domain]["per_byte"] for name, row in rows.items()}


class Workshop:
    """Assembles stacks of the same donors, all on the same text.

    Args:
        weights: of all donors.
        material: text for the diagnosis of the result.
        traces: of the donors alone.
        perturbed: tokens of the text that run through perturbed layers; None: all.
    """

    def __init__(
        self,
        weights: Weights,
        material: Material,
        traces: Sequence[Trace],
        *,
        variants: Sequence[Variant],
        perturbed: int | None,
        memory: int | None,
        offline: bool,
    ) -> None:
        self.weights, self.material, self.memory = weights, material, memory
        self.variants, self.perturbed, self.offline = variants, perturbed, offline
        self._own_growth = {
            (trace.model.name, layer): growth
            for trace in traces
            for layer, growth in enumerate(trace.flow.growth)
        }
        self._windows: list[Windows] | None = None
        self._donors: dict[str, Losses] | None = None

    def assemble(self, plan: Plan, progress: Tell) -> tuple[HybridWithDonors, dict[str, Any]]:
        """The stack of a plan, its bridges fitted, and what was measured of them."""
        assert plan.calibration is not None
        readers = {
            name: reader_of(plan.donors[name], tokenizer_of(donor), self.weights.device)
            for name, donor in plan.tokenizers.items()
            if donor is not None
        }
        reader = _reader(plan, self.weights.device)
        bridges = list(plan.bridges.values())
        models = HybridWithDonors(
            self.weights, hybrid_config(plan), bridges, reader=reader, readers=readers
        )
        _, fit = fit_and_measure(
            models,
            self._text(plan),
            stream=plan.calibration.stream,
            progress=progress,
            donors=self._donors,
        )
        self._donors = fit["losses"]["donors"]
        return models, fit

    def diagnose(
        self, plan: Plan, models: HybridWithDonors, fit: dict[str, Any], progress: Tell
    ) -> Measured:
        """What an assembled stack is, see `assemble`."""
        reader = _reader(plan, self.weights.device)
        windows = self.material.windows
        points: list[Points] = []
        sheets: list[Sheet] = []
        for part in windows:
            share = share_of(self.perturbed, part, windows)
            some, rows = text_sheets(reader, part, len(points), perturbed=share)
            points.append(some)
            sheets += rows
        sheets += lens_sheets(reader, windows)
        swept = sweep(
            Parts(models.hybrid),
            sheets,
            points,
            self.variants,
            memory=self.memory or free_share(self.weights.device),
            progress=progress,
        )
        curve = scoring.curves_of(points, swept, self.variants)[0]
        flow = scoring.flow_of(swept)
        own = [self._own_growth.get(pick, 1.0) for pick in plan.picks]
        grown = swept.layer_growth.mean(1).tolist()
        alarms = (*_weak(fit), *_losses(fit), *_blow_ups(grown, own))
        return Measured(fit, curve, flow, scoring.boundary_of(curve, []), alarms)

    def _text(self, plan: Plan) -> list[Windows]:
        """Text for all stacks: what the widest of all bridges may want, and no more unasked."""
        if self._windows is None:
            widest = max(donor.anatomy.width for donor in self.weights.donors.values())
            needed = math.ceil(TOKENS_PER_INPUT * widest / (1 - HELD_OUT))
            assert plan.calibration is not None
            tokens = plan.calibration.tokens or needed
            self._windows = _windows(plan, tokens, self.weights.device, offline=self.offline)
        return self._windows


def _weak(fit: dict[str, Any]) -> Iterator[str]:
    for bridge in fit["bridges"]:
        if bridge["weak"]:
            yield (
                f"the bridge {bridge['place']} explains less than {fit['gate']:.0%} of its stream "
                f"on {' and '.join(bridge['weak'])}"
            )


def _losses(fit: dict[str, Any]) -> Iterator[str]:
    for domain in fit["domains"]:
        name = domain["name"]
        loss, plain = (fit["losses"][m][name]["per_byte"] for m in ("hybrid", "unigram"))
        if not loss < plain:
            yield f"{name}: {loss:.3f} nats per byte, no better than a unigram model"


def _blow_ups(grown: Sequence[float], own: Sequence[float]) -> Iterator[str]:
    """Slots whose layer lengthens the stream far more than it does in its donor.

    Bridges are left out: from SmolLM2 to Gemma 3 one makes the stream 27 times as long, since it is
    so long there.
    """
    for slot, (growth, usual) in enumerate(zip(grown, own, strict=True)):
        if not growth < GROWTH * max(1.0, usual):
            yield f"slot {slot} makes the stream {growth:.3g} times as long"


def _reader(plan: Plan, device: str) -> Reader:
    """What the stack reads with."""
    embeddings = plan.donors[plan.embeddings]
    return reader_of(embeddings, tokenizer_of(plan.tokenizer or embeddings), device)


def _windows(plan: Plan, tokens: int, device: str, *, offline: bool) -> list[Windows]:
    calibration = plan.calibration
    assert calibration is not None
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "text.jsonl"
        gather(calibration, plan.recipe, file, tokens=tokens, offline=offline)
        return cut(
            file,
            [DomainText(d.name, share, d.place) for d, share in calibration.shares(tokens)],
            _reader(plan, device),
            length=calibration.length,
            held_out=HELD_OUT,
            seed=calibration.seed,
        )

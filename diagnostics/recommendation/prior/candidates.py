"""What may be placed, and what speaks for each layer, out of the donors' traces. No torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from itertools import product

from hybridize.diagnostics.recommendation.prior.placement import (
    Estimate,
    Rules,
    Scores,
    Spot,
    z_scores,
)
from hybridize.diagnostics.subject.subjects import Subject, donor_subjects
from hybridize.diagnostics.subject.trace import Trace
from hybridize.errors import Finding, HybridizeError
from hybridize.model.donors import Donor
from hybridize.model.vocabulary import refuse_other_tokens
from hybridize.recipe.file import RecipeFile
from hybridize.recipe.sections.placement import PlacementSpec
from hybridize.text.comparison import LEVEL, SAME, chance

LINEAR = "linear"  # the perturbation that tells what a layer is worth as a block
QUANTILE = 1.645  # of the normal distribution: an interval of 90 % has so many errors on each side


def find_candidates(recipe: RecipeFile, *, offline: bool) -> tuple[Rules, list[Subject]]:
    """The rules of a recipe's `placement`, and the donors that take part.

    Raises:
        HybridizeError: a donor or a layer is not there, or nothing can be placed.
    """
    spec = recipe.recipe.placement or PlacementSpec()
    listed = spec.candidates
    names = list(dict.fromkeys(c.donor for c in listed)) or list(recipe.recipe.donors)
    if len(names) < 2:
        raise HybridizeError(
            "a placement needs at least two donors",
            fix="name another donor under donors and placement.candidates",
            place=recipe.place("placement") if recipe.recipe.placement else recipe.place("donors"),
        )
    subjects = donor_subjects(recipe, names, offline=offline)
    layers = {s.name: _donor(s).depth for s in subjects}
    findings: list[Finding] = []
    allowed = set()
    for i, candidate in enumerate(listed):
        wrong = sorted({n for n in candidate.layers if n >= layers[candidate.donor]})
        if wrong:
            findings.append(
                Finding(
                    f"donor '{candidate.donor}' has no layer {wrong[0]}: it has "
                    f"{layers[candidate.donor]}",
                    fix=f"its layers are 0-{layers[candidate.donor] - 1}",
                    place=recipe.place("placement", "candidates", i, "layers"),
                )
            )
        allowed |= {Spot(candidate.donor, n) for n in candidate.layers}
    if not listed:
        allowed = {Spot(name, n) for name in names for n in range(layers[name])}
    if findings:
        raise HybridizeError.of(findings)
    depth = spec.depth or max(layers.values())
    rules = Rules(
        depth=depth,
        layers=layers,
        allowed=frozenset(allowed),
        at_least=max(1, depth // (2 * len(names))) if spec.at_least is None else spec.at_least,
        max_changes=spec.max_bridges,
        ends=_ends(recipe, subjects),
        keep_order=spec.keep_order,
        weights=spec.weights.model_dump(),
    )
    return rules, subjects


def scores_of(traces: Sequence[Trace], rules: Rules) -> Scores:
    """z-scores of what was measured: the donor's loss, each layer's stability and value."""
    quality, scale = z_scores({Spot(t.model.name, 0): _quality(t, traces) for t in traces})
    stability, _ = z_scores(_of_layers(traces, rules, _stability))
    value, _ = z_scores(_of_layers(traces, rules, _value))
    return Scores(
        {
            "quality": {spot: quality[Spot(spot.donor, 0)] for spot in rules.allowed},
            "stability": stability,
            "value": value,
        },
        lambda weights: _loss_error(traces, weights) / scale,
    )


def qualities(traces: Sequence[Trace]) -> dict[str, float]:
    """Donor -> mean loss over the domains with its sign turned, in nats per byte."""
    return {trace.model.name: _quality(trace, traces).value for trace in traces}


def worthless(traces: Sequence[Trace], rules: Rules) -> dict[Spot, Estimate]:
    """Layers that raise their donor's loss beside a linear map in their place, and by how much.

    Of all candidate layers together chance may take one for such in one run of twenty: each is held
    to the level over their number (Bonferroni).
    """
    values = _of_layers(traces, rules, _value)
    freedom = {t.model.name: sum(len(x.stretches) for x in t.losses.values()) - 1 for t in traces}
    return {
        spot: Estimate(-e.value, e.error)
        for spot, e in sorted(values.items())
        if -e.value >= SAME
        and chance(e.value, e.error, freedom[spot.donor]) / 2 < LEVEL / len(values)
    }


def _quality(trace: Trace, traces: Sequence[Trace]) -> Estimate:
    """With the error of the donor's distance from the mean of all donors."""
    mean = statistics.fmean(loss.per_byte for loss in trace.losses.values())
    weights = {t.model.name: (t is trace) - 1 / len(traces) for t in traces}
    return Estimate(-mean, _loss_error(traces, weights))


def _loss_error(traces: Sequence[Trace], weights: Mapping[str, float]) -> float:
    """Standard error of a weighted sum of the donors' mean losses, in nats per byte.

    They have read the same stretches of text, of which some are hard for all of them.
    """
    variance, domains = 0.0, traces[0].losses
    for domain, loss in domains.items():
        rows = zip(*(trace.losses[domain].stretches for trace in traces), strict=True)
        names = [trace.model.name for trace in traces]
        sums = [
            sum(weights.get(name, 0.0) * nats for name, nats in zip(names, row, strict=True))
            for row in rows
        ]
        variance += len(sums) * statistics.pvariance(sums) / loss.bytes**2
    return math.sqrt(variance) / len(domains)


def _of_layers(
    traces: Sequence[Trace], rules: Rules, measure: Callable[[Trace], list[Estimate]]
) -> Mapping[Spot, Estimate]:
    found: dict[Spot, Estimate] = {}
    for trace in traces:
        for layer, estimate in enumerate(measure(trace)):
            if Spot(trace.model.name, layer) in rules.allowed:
                found[Spot(trace.model.name, layer)] = estimate
    return found


def _stability(trace: Trace) -> list[Estimate]:
    """1 - sensitivity over the donor's largest: within one donor only."""
    curve = trace.headline
    mean = [value or 0.0 for value in curve.mean]
    most = max(mean) or 1.0
    return [
        Estimate(1 - value / most, _error(low, high) / most)
        for value, low, high in zip(mean, curve.low, curve.high, strict=True)
    ]


def _error(low: float | None, high: float | None) -> float:
    """Standard error behind an interval; without one, as of any value that there can be."""
    width = math.log(2) if low is None or high is None else high - low
    return width / (2 * QUANTILE)


def _value(trace: Trace) -> list[Estimate]:
    """Rise of the loss when a linear map stands in the layer's place, in nats per byte."""
    curve = trace.curve(LINEAR)
    tokens = sum(loss.tokens for loss in trace.losses.values())
    share = tokens / sum(loss.bytes for loss in trace.losses.values())
    return [
        Estimate((rise or 0.0) * share, (error or 0.0) * share)
        for rise, error in zip(curve.loss_rise, curve.loss_error, strict=True)
    ]


def _ends(recipe: RecipeFile, subjects: Sequence[Subject]) -> frozenset[tuple[str, str]]:
    """Pairs of donors of which one may read the tokens, and the other write them."""
    found = set()
    for one, other in product(subjects, repeat=2):
        findings: list[Finding] = []
        refuse_other_tokens(recipe, _donor(one), _donor(other), findings)
        if not findings:
            found.add((one.name, other.name))
    return frozenset(found)


def _donor(subject: Subject) -> Donor:
    assert subject.donor is not None
    return subject.donor

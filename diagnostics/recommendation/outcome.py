"""A recommendation for the eye, as JSON, and as the comments of the recipe that it writes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hybridize.assembler import Fit, beside_controls, best_donor
from hybridize.diagnostics.recommendation.prior.placement import PARTS, LayerRun, Placement, Spot
from hybridize.text.comparison import gaps

if TYPE_CHECKING:
    from hybridize.diagnostics.recommendation.trial.recommending import Candidate, Recommendation

SHOWN = 5  # placements by score
FLIPPED_WORDS = "the flipped placement"
PRIOR = (
    "The order is that of a score: strong, stable and valuable layers deep, few bridges. This is a "
    "prior from the literature; nothing was trained to check it. Measured losses overrule it where "
    "they differ by more than their error."
)


def recommendation_table(found: Recommendation) -> RenderableType:
    """Donors, placements with what their scores are made of, what was measured, and a verdict."""
    words = Text("\n".join(verdict(found)))
    return Group(_donors(found), Text(), _scores(found), Text(), _measured(found), Text(), words)


def verdict(found: Recommendation) -> list[str]:
    """What follows, and what does not."""
    return [PRIOR, _lead(found), *_choice(found), *_beside_controls(found), *_worthless(found)]


def _lead(found: Recommendation) -> str:
    if found.tied == 1:
        if math.isinf(found.lead):
            return "Only one placement obeys the rules."
        return (
            f"The first placement leads by {found.lead:.3f}, more than twice the standard error "
            f"({found.error:.3f})."
        )
    many = "at least " if found.tied == len(found.ranked) else ""
    return (
        f"Tie: the first of {many}{found.tied} placements leads the second by {found.lead:.3f}, "
        f"with a standard error of {found.error:.3f}: by the score none of them is better."
    )


def _choice(found: Recommendation) -> Iterator[str]:
    yield from _rejected(found)
    first, chosen = found.first, found.chosen
    if first is None:
        yield "Nothing is recommended: no placement that was assembled is sound."
        return
    yield from _refuted(found, first)
    if chosen is None:
        assert found.flip is not None
        yield (
            "Nothing is recommended: what was measured contradicts the score. Before training, "
            f"placement {first.label} is {first.beside(found.flip).beside(FLIPPED_WORDS)}, "
            "mean over the domains."
        )
        return
    assert chosen.measured is not None
    yield f"Recommended: placement {chosen.label}, {chosen.placement}."
    if behind := _behind_donors(chosen.measured.fit):
        yield f"It is a start for training, not a better model: as assembled it is {behind}."
    if (boundary := chosen.measured.boundary) is not None:
        slots = "slot 0" if boundary.slots == 1 else f"slots 0-{boundary.slots - 1}"
        bridges = " and the bridges" if chosen.measured.fit["bridges"] else ""
        yield (
            f"Freezing, by the prior and not measured: train {slots}{bridges}, freeze what lies "
            f"deeper ({boundary.why})."
        )


def _rejected(found: Recommendation) -> Iterator[str]:
    for candidate in found.candidates:
        if candidate.refused:
            yield f"Placement {candidate.label} cannot be built: {candidate.refused}."
        elif candidate.measured and candidate.measured.alarms:
            alarms = "; ".join(candidate.measured.alarms)
            yield f"Placement {candidate.label} is rejected: {alarms}."


def _refuted(found: Recommendation, first: Candidate) -> Iterator[str]:
    """Sound placements before the first one, which the measurement passes over."""
    for candidate in found.sound[: found.sound.index(first)]:
        best = max(found.sound, key=candidate.behind)
        yield (
            f"The measurement overrules the score: before training, placement {candidate.label} is "
            f"{candidate.beside(best).beside(f'placement {best.label}')}, mean over the domains."
        )


def _behind_donors(fit: Fit) -> str:
    """Domains on which a stack is measurably worse than the best donor, in words."""
    losses, words = fit["losses"], []
    for domain in losses["hybrid"]:
        best = best_donor(fit, domain)
        gap = gaps(losses["hybrid"], losses["donors"][best])[domain]
        if gap.worse:
            words.append(f"{gap.beside(f'{best} alone')} on {domain}")
    return ", ".join(words)


def _beside_controls(found: Recommendation) -> Iterator[str]:
    """Before any training: the stack that is first beside what it must beat."""
    first = found.first
    if first is None or first.measured is None:
        return
    flip = found.flip.measured if found.flip else None
    hybrid = first.measured.fit["losses"]["hybrid"]
    for domain, words in beside_controls(first.measured.fit).items():
        if flip is not None:
            gap = gaps(hybrid, flip.fit["losses"]["hybrid"])[domain]
            words += f"; {gap.beside(FLIPPED_WORDS)}"
        yield f"Placement {first.label} before training, on {domain}: {words}."


def _worthless(found: Recommendation) -> Iterator[str]:
    if not found.worthless:
        return
    spots = ", ".join(
        f"{spot.donor} {spot.layer} (by {by.value:.3f} ± {by.error:.3f})"
        for spot, by in found.worthless.items()
    )
    yield (
        "In their own donors, a linear map does better than these layers, in nats per byte: "
        f"{spots}. They are better not transplanted."
    )
    used = set(found.chosen.placement.spots if found.chosen else ()) & set(found.worthless)
    if used:
        names = ", ".join(f"{spot.donor} {spot.layer}" for spot in sorted(used))
        yield f"The recommended placement has some of them all the same: {names}."


def _donors(found: Recommendation) -> Table:
    table = _table("donor", "layers")
    domains = list(found.traces[0].losses)
    for domain in domains:
        table.add_column(f"{domain}, nats per byte", justify="right")
    table.add_column("quality (z)", justify="right")
    for trace in found.traces:
        z = found.scores.z["quality"]
        own = next(e for spot, e in z.items() if spot.donor == trace.model.name)
        table.add_row(
            trace.model.name,
            str(len(trace.slots)),
            *(f"{trace.losses[d].per_byte:.3f} ± {trace.losses[d].error:.3f}" for d in domains),
            f"{own.value:+.2f} ± {own.error:.2f}",
        )
    return table


def _scores(found: Recommendation) -> Table:
    table = _table("", "placement, from the embedding upwards")
    for heading in ("score", *PARTS, "bridges", "fit"):
        table.add_column(heading, justify="right")
    for label, placement in enumerate(found.ranked[:SHOWN], 1):
        parts = (placement.parts[key] for key in (*PARTS, "bridge", "fit"))
        numbers = (f"{value:+.3f}" for value in (placement.score, *parts))
        table.add_row(str(label), str(placement), *numbers)
    return table


def _measured(found: Recommendation) -> Table:
    domains = list(found.traces[0].losses)
    table = _table("assembled, before any training; nats per byte")
    for heading in (*domains, "R2 of bridges", "behind seams"):
        table.add_column(heading, justify="right")
    known = next((c.measured for c in found.candidates if c.measured), None)
    if known is not None:
        for name in ("unigram", *(t.model.name for t in found.traces)):
            words = "unigram model" if name == "unigram" else f"{name} alone"
            table.add_row(words, *(f"{known.losses(d)[name]:.3f}" for d in domains), "", "")
    for candidate in found.candidates:
        if candidate.measured is None:
            table.add_row(f"{candidate.label}: cannot be built", *("-" for _ in domains), "", "")
            continue
        losses = (f"{candidate.measured.losses(d)['hybrid']:.3f}" for d in domains)
        style = "bold" if candidate is found.chosen else None
        fit = ", ".join(f"{min(b['r2'].values()):.2f}" for b in candidate.measured.fit["bridges"])
        table.add_row(
            f"{candidate.label}: {candidate.placement}",
            *losses,
            fit or "-",
            _behind_seams(candidate),
            style=style,
        )
        for name in candidate.measured.fit["losses"]["null"]:
            row = (f"{candidate.measured.losses(d)[f'null: {name}']:.3f}" for d in domains)
            table.add_row(f"   a matrix for {name}", *row, "", "")
    return table


def _behind_seams(candidate: Candidate) -> str:
    """Sensitivity of the slots behind changes of donor, over the mean of all slots."""
    assert candidate.measured is not None
    values = [value or 0.0 for value in candidate.measured.curve.mean]
    mean, at = sum(values) / len(values), 0
    found = []
    for run in candidate.placement.runs[:-1]:
        at += len(run.spots)
        found.append(f"{values[at] / mean:.2f}x" if mean else "-")
    return ", ".join(found)


def _table(*headings: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in headings:
        table.add_column(heading)
    return table


def reasons(found: Recommendation, placement: Placement) -> list[str]:
    """For each run, why it is where it is."""
    at, words = 0, []
    for run in placement.runs:
        last = at + len(run.spots) - 1
        where = f"slot {at}" if at == last else f"slots {at}-{last}"
        words.append(f"{where}: {_why(found, run)}")
        at = last + 1
    return words


def _why(found: Recommendation, run: LayerRun) -> str:
    trace = next(t for t in found.traces if t.model.name == run.donor)
    losses = ", ".join(f"{d} {loss.per_byte:.3f}" for d, loss in trace.losses.items())
    means = {
        part: sum(found.scores.z[part][Spot(run.donor, spot.layer)].value for spot in run.spots)
        / len(run.spots)
        for part in PARTS
    }
    parts = ", ".join(f"{part} {value:+.2f}" for part, value in means.items())
    return f"{run.donor} alone has {losses} nats per byte; z-scores of these layers: {parts}"


def comments(found: Recommendation) -> list[str]:
    """The head of the recipe."""
    chosen = found.chosen
    assert chosen is not None
    parts = ", ".join(f"{name} {value:+.3f}" for name, value in chosen.placement.parts.items())
    score = f"Score {chosen.placement.score:+.3f}: {parts}."
    return ["Written by `hybridize recommend`. What it found:", "", *verdict(found), "", score]


def as_dict(found: Recommendation) -> dict[str, Any]:
    """For --json."""
    return {
        "tied": found.tied,
        "lead": None if math.isinf(found.lead) else found.lead,
        "error": found.error,
        "chosen": found.chosen.label if found.chosen else None,
        "first": found.first.label if found.first else None,
        "verdict": verdict(found),
        "rules": {
            "depth": found.rules.depth,
            "at_least": found.rules.at_least,
            "max_bridges": found.rules.max_changes,
            "keep_order": found.rules.keep_order,
            "weights": dict(found.rules.weights),
        },
        "layers": [
            {
                "donor": spot.donor,
                "layer": spot.layer,
                **{part: found.scores.z[part][spot]._asdict() for part in PARTS},
            }
            for spot in sorted(found.rules.allowed)
        ],
        "ranked": [_placement(p) for p in found.ranked],
        "candidates": [_candidate(candidate) for candidate in found.candidates],
        "worse_than_linear": [
            {**spot._asdict(), **by._asdict()} for spot, by in found.worthless.items()
        ],
        "donors": [trace.model_dump() for trace in found.traces],
    }


def _placement(placement: Placement) -> dict[str, Any]:
    runs = [{"from": r.donor, "layers": [r.first, r.last]} for r in placement.runs]
    score = placement.score if placement.parts else None  # a control has none
    return {"runs": runs, "score": score, "parts": dict(placement.parts)}


def _candidate(candidate: Candidate) -> dict[str, Any]:
    measured = candidate.measured
    found = {"label": candidate.label, **_placement(candidate.placement)}
    if measured is None:
        return found | {"refused": candidate.refused}
    return found | {
        "fit": measured.fit,
        "sensitivity": measured.curve.model_dump(),
        "flow": measured.flow.model_dump(),
        "boundary": measured.boundary.model_dump() if measured.boundary else None,
        "alarms": list(measured.alarms),
    }

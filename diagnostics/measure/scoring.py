"""Scores of one model: pure functions over what a sweep has found (torch side)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hybridize.diagnostics.measure import measures
from hybridize.diagnostics.measure.sheets import Points
from hybridize.diagnostics.measure.sweep import LENSES, LOGIT, Read, Swept
from hybridize.diagnostics.measure.variants import Variant
from hybridize.diagnostics.subject.trace import (
    ALL_TEXT,
    Boundary,
    Curve,
    Flow,
    Lens,
    Loss,
    Set,
    clearly_above,
)

ARTICLES = {"layer": "a layer", "mixer": "a mixer", "mlp": "an MLP"}
FEW = 5  # correct items below which a task particle says nothing
CUMULATIVE = 0.6  # of the sensitivity, for the prior's freeze boundary


def curves_of(points: Sequence[Points], swept: Swept, variants: Sequence[Variant]) -> list[Curve]:
    """Sensitivity of every part to every perturbation, on all text, and on each set."""
    found = []
    for on, members in _groups(points, swept):
        js = torch.cat([_by_unit(read.js, some) for some, read in members], -1)
        loss = torch.cat([_by_unit(read.loss, some) for some, read in members], -1)
        for kind, part in dict.fromkeys((v.kind, v.part) for v in variants):
            which = [i for i, v in enumerate(variants) if (v.kind, v.part) == (kind, part)]
            random = variants[which[0]].random
            found.append(_curve(on, kind, part, js[which], loss[which], random=random))
    return found


def refined(coarse: Sequence[Curve], finer: Sequence[Curve]) -> list[Curve]:
    """Curves of all layers, with those of some layers that were measured again put in."""
    again = {(curve.kind, curve.part, curve.on): curve for curve in finer}
    found = [_put_in(curve, again.pop((curve.kind, curve.part, curve.on))) for curve in coarse]
    return found + [_among(curve) for curve in again.values()]


def _put_in(coarse: Curve, fine: Curve) -> Curve:
    """What is finer stands for itself; what is vulnerable, both decide."""
    here = [slot for slot, mean in enumerate(fine.mean) if mean is not None]
    lists = {
        name: [
            getattr(fine if slot in here else coarse, name)[slot]
            for slot in range(len(coarse.mean))
        ]
        for name in ("mean", "low", "high", "loss_rise", "loss_error")
    }
    means = [mean for mean in lists["mean"] if mean is not None]
    first = max(here, key=lambda slot: lists["mean"][slot])
    spread = max(means) / min(means) if min(means) > 0 else None
    floor = lists["low"][first]
    open_ = [
        slot
        for slot, high in enumerate(coarse.high)
        if slot not in here and coarse.mean[slot] is not None
        and (floor is None or high is None or high >= floor)
    ]  # fmt: skip
    why = coarse.why
    if max(means) > 0 and (spread is None or spread >= measures.LEAST_SPREAD):
        why = _why_refined(fine.agreement, first, here, open_)
    decided = None if why.startswith("undecided") else first
    update = {**lists, "agreement": fine.agreement, "spread": spread and short(spread)}
    return coarse.model_copy(update={**update, "vulnerable": decided, "why": why})


def _why_refined(
    agreement: float | None, first: int, here: Sequence[int], others: Sequence[int]
) -> str:
    among = f"among slots {', '.join(map(str, here))}"
    if agreement is None:
        return f"undecided: one draw {among} does not say what others would do; use more seeds"
    share = f"{agreement:.0%} of the resamples name slot {first} {among}"
    if agreement < measures.LEAST_AGREEMENT:
        return f"undecided: only {share}"
    if others:
        listed = ", ".join(map(str, others))
        return f"undecided: {share}, but slots {listed}, measured with fewer seeds, may lie higher"
    return share


def _among(fine: Curve) -> Curve:
    """A part that was measured in some layers alone: which of all is vulnerable is open."""
    here = ", ".join(str(slot) for slot, mean in enumerate(fine.mean) if mean is not None)
    why = f"undecided: measured in slots {here} alone" if here else fine.why
    return fine.model_copy(update={"vulnerable": None, "why": why})


def _groups(
    points: Sequence[Points], swept: Swept
) -> Iterator[tuple[str, list[tuple[Points, Read]]]]:
    """Sets that were perturbed, by what a curve is on."""
    pairs = [(p, r) for p, r in zip(points, swept.read, strict=True) if r.js is not None]
    text = [(p, r) for p, r in pairs if p.kind == "text"]
    if text:
        yield ALL_TEXT, text
    for pair in pairs:
        if len(text) > 1 or pair[0].kind != "text":  # one domain alone is all the text
            yield pair[0].name, [pair]


def _by_unit(values_WLN: Tensor | None, points: Points) -> Tensor:
    """Means over the points of each unit that was perturbed, (W, L, U)."""
    assert values_WLN is not None
    num = int(points.units.max()) + 1
    sums = values_WLN.new_zeros((*values_WLN.shape[:2], num)).index_add(2, points.units, values_WLN)
    means = sums / points.units.bincount(minlength=num)
    return means[:, :, ~means.isnan().all(0).all(0)]


def _curve(
    on: str, kind: str, part: str, js_SLU: Tensor, loss_SLU: Tensor, *, random: bool
) -> Curve:
    there = ~js_SLU.isnan().any(2).any(0)  # layers that have such a part
    slots = there.nonzero()[:, 0].tolist()

    def by_slot(values: Tensor | None) -> list[float | None]:
        spread: list[float | None] = [None] * len(there)
        if values is None:
            return spread
        for slot, value in zip(slots, values.tolist(), strict=True):
            spread[slot] = short(value)
        return spread

    if not slots:
        nothing: list[float | None] = [None] * len(there)
        return Curve(
            on=on, kind=kind, part=part, mean=nothing, low=nothing, high=nothing,
            loss_rise=nothing, loss_error=nothing, agreement=None, spread=None, vulnerable=None,
            why=f"no layer has {ARTICLES[part]} that can be told from the rest",
        )  # fmt: skip
    found = measures.sensitivity(js_SLU[:, there].transpose(0, 1), random=random)
    vulnerable, loss_SLU = found.vulnerable, loss_SLU[:, there]
    return Curve(
        on=on,
        kind=kind,
        part=part,
        mean=by_slot(found.mean),
        low=by_slot(found.low),
        high=by_slot(found.high),
        loss_rise=by_slot(loss_SLU.mean((0, 2))),
        loss_error=by_slot(_error(loss_SLU, random=random)),
        agreement=None if found.agreement is None else short(found.agreement),
        spread=short(found.spread),
        vulnerable=None if vulnerable is None else slots[vulnerable],
        why=_why_vulnerable(found, slots, kind=kind, draws=len(js_SLU), random=random),
    )


def _error(rise_SLU: Tensor, *, random: bool) -> Tensor | None:
    """Standard error of the mean over units, and over seeds where they are draws; None: unknown."""
    S, _, U = rise_SLU.shape
    if U == 1 or (random and S == 1):
        return None
    variance = rise_SLU.mean(0).var(1) / U
    return (variance + rise_SLU.mean(2).var(0) / S if random else variance).sqrt()


def _why_vulnerable(
    found: measures.Sensitivity, slots: Sequence[int], *, kind: str, draws: int, random: bool
) -> str:
    if float(found.mean.max()) == 0:
        return "undecided: no layer changes the outcome at all"
    if len(slots) == 1:
        return "undecided: there is only one"
    if found.spread < measures.LEAST_SPREAD:
        return (
            f"undecided: the most sensitive layer is only {found.spread:.2f} times as sensitive "
            "as the least"
        )
    if found.agreement is None:
        if random and draws == 1:
            return (
                f"undecided: one draw of {kind} does not say what others would do; use more seeds"
            )
        return "undecided: one stretch of text does not say what others would do; use more text"
    share = f"{found.agreement:.0%} of the resamples name slot {slots[found.largest]}"
    return f"undecided: only {share}" if found.vulnerable is None else share


def set_of(
    points: Points,
    read: Read,
    *,
    title: str,
    source: Any,
    blake3: str,
    items: int,
    chance: float | None,
) -> Set:
    """Where the model does what a set asks.

    Args:
        chance: accuracy of always saying one thing.
    """
    correct = int(read.correct.sum())
    lenses = {name: _lens(read, name) for name in LENSES}
    depth = len(next(iter(read.logp.values()))) - 1
    values = [lens.particle for lens in lenses.values() if lens.particle is not None]
    base = read.base[read.correct]
    differ = len(values) == len(LENSES) and abs(values[0] - values[1]) > depth / 4
    particle, why = _decide(points, read, chance or 0.0, lenses, differ=differ)
    return Set(
        name=points.name,
        kind="text" if points.kind == "text" else "task",
        title=title,
        source=source,
        blake3=blake3,
        items=items,
        readable=len(points),
        correct=correct,
        accuracy=short(correct / len(points)) if len(points) else None,
        chance=None if chance is None else short(chance),
        base=short(float(base.exp().mean())) if correct else None,
        lenses=lenses,
        particle=particle,
        lenses_differ=differ,
        why=why,
    )


def _decide(
    points: Points, read: Read, chance: float, lenses: Mapping[str, Lens], *, differ: bool
) -> tuple[float | None, str]:
    """The task particle, or why there is none."""
    num, correct = len(points), int(read.correct.sum())
    if not num:
        return None, "undecided: the tokenizer has no words for any of the items"
    if correct < FEW:
        none = "none" if not correct else f"only {correct}"
        return None, f"undecided: {none} of {num} answered correctly"
    if not clearly_above(correct / num, chance, num):
        return None, f"undecided: {correct / num:.0%} correct is not clearly above chance"
    blind = [name for name in LENSES if _gaps(read, name)]
    rising = int(_rising(read).sum())
    if rising < FEW:
        few = "no item" if not rising else f"only {rising} of the {correct} correct items"
        return None, f"undecided: knowing the item raises p(answer) on {few}"
    if differ:
        seen = ", ".join(f"{name} lens {lenses[name].particle:g}" for name in LENSES)
        return None, f"undecided: the lenses differ by more than a quarter of the depth ({seen})"
    sees = next((name for name in LENSES if name not in blind), None)
    if sees is None:
        return None, "undecided: no lens can read the stream at every depth"
    low, _, high = lenses[sees].quartiles or [math.nan] * 3
    words = f"over {rising} items; half of them between {low:g} and {high:g}"
    if blind:
        words += f"; by the {sees} lens alone: the {blind[0]} lens cannot read every depth"
    return lenses[sees].particle, words


def _gaps(read: Read, lens: str) -> bool:
    """Whether a lens cannot read some depth: the stream there is another donor's."""
    return bool(read.logp[lens].isnan().any())


def _rising(read: Read) -> Tensor:
    """Items answered correctly on which the model says the answer rather than on others, (N,)."""
    last = read.logp[LOGIT][-1:]  # every lens sees the same there
    return read.correct & ~measures.rise(last, read.base)[0].isnan()


def _lens(read: Read, name: str) -> Lens:
    """Curves by depth and the task particle, on the items that are answered correctly."""
    logp, base = read.logp[name][:, read.correct], read.base[read.correct]
    readable = ~logp.isnan().any(1)
    p = logp.exp().mean(1) if logp.shape[1] else logp.new_full((len(logp),), torch.nan)
    # A foreign stream that the lens cannot read leaves gaps; what is defined by all depths is not
    # defined then.
    whole = bool(logp.shape[1]) and bool(readable.all())
    gain = measures.gain(logp, base) if whole else p
    particles = measures.particle(logp, base) if whole else logp.new_zeros(0)
    particles = particles[~particles.isnan()]
    marks = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    quartiles = particles.quantile(marks).tolist() if len(particles) else None
    return Lens(
        p=listed(p),
        logp=listed(logp.mean(1) if logp.shape[1] else p),
        entropy=listed(read.entropy[name].mean(1)),
        particle=quartiles[1] if quartiles else None,
        quartiles=quartiles,
        jump=measures.largest_jump(gain) if whole else None,
        absolute=measures.absolute_rise(gain) if whole else None,
        outstanding=measures.outstanding_jump(gain) if whole else None,
    )


def flow_of(swept: Swept) -> Flow:
    return Flow(
        **{
            name: [short(v) for v in getattr(swept, name).mean(1).tolist()]
            for name in ("influence", "angle", "growth")
        }
    )


def loss_of(rows: Sequence[tuple[float, int]], *, num_bytes: int) -> Loss:
    """Mean loss of a domain, and its standard error over stretches of text.

    Args:
        rows: summed loss and number of tokens of each stretch.

    Source: the ratio estimator's variance, Cochran, "Sampling Techniques" (1977), section 6.
    """
    total, tokens = (sum(side) for side in zip(*rows, strict=True))
    mean = total / tokens
    spread = math.sqrt(sum((nats - mean * n) ** 2 for nats, n in rows))
    return Loss(
        per_byte=short(total / num_bytes),
        error=short(spread / num_bytes),
        per_token=short(mean),
        tokens=int(tokens),
        bytes=num_bytes,
        stretches=[short(nats) for nats, _ in rows],
    )


def boundary_of(curve: Curve, sets: Sequence[Set]) -> Boundary | None:
    """The prior's freeze boundary: the lower of the task particle and the depth that holds most of
    the sensitivity.

    Source: Freeze Deep, Train Shallow (2026) for the rule; the share is ours.
    """
    mean = [value or 0.0 for value in curve.mean]
    if not sum(mean):
        return None
    total, depth = 0.0, 0
    while total < CUMULATIVE * sum(mean):
        total += mean[depth]
        depth += 1
    slots = "slot 0 holds" if depth == 1 else f"slots 0-{depth - 1} hold"
    words = f"{slots} {CUMULATIVE:.0%} of the sensitivity"
    decided = [s for s in sets if s.particle is not None]
    tasks = [s for s in decided if s.kind == "task"] or decided
    if not tasks:
        return Boundary(slots=depth, why=f"{words}; no task particle was decided")
    lowest = min(tasks, key=lambda s: s.particle or 0.0)
    assert lowest.particle is not None
    particle = max(1, math.floor(lowest.particle))
    words += f"; the lowest task particle is {lowest.particle:g} ({lowest.name})"
    return Boundary(slots=min(depth, particle), why=words)


def listed(values: Tensor) -> list[float | None]:
    return [None if math.isnan(v) else short(v) for v in values.tolist()]


def short(value: float) -> Any:
    """Six digits, and no infinity, which JSON does not know."""
    return None if math.isinf(value) or math.isnan(value) else float(f"{value:.6g}")

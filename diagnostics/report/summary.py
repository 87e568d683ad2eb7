"""A trace in plain words: what was decided, what was not, and how far to trust it. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hybridize.diagnostics.report.words import listed, number, numbers, origin
from hybridize.diagnostics.subject.trace import Curve, Lens, Set, Trace, clearly_above

LITTLE_INFLUENCE = 0.05  # block influence below which a layer may be said to do little
LITTLE_SENSITIVITY = 0.05  # of the largest sensitivity; both must be small
SWELLING = 4.0  # growth from which on a layer is said to blow the stream up
MANY = 12  # slots that are not named one by one any more
FEW_STRETCHES = 20  # of text, below which intervals are rough
NOUNS = {"mlp": "MLP"}  # parts that are not called by their own name
UNDECIDED = "undecided: "  # how most reasons for it begin
TOO_FEW = " answered correctly"  # how the reason for too few correct items ends


def summary(trace: Trace) -> list[str]:
    """Sentences for the eye; nothing in them goes beyond what was measured.

    Returns:
        one short paragraph each, the most important first.
    """
    return [
        *_vulnerable(trace),
        *_tasks(trace),
        *_lenses(trace),
        *_idle(trace),
        *_swelling(trace),
        _boundary(trace),
        _trust(trace),
    ]


def verdict(curve: Curve) -> str:
    """Which slot is vulnerable, and why, or why that is undecided."""
    if curve.vulnerable is None:
        return f"{UNDECIDED}{curve.why.removeprefix(UNDECIDED)}"
    return f"slot {curve.vulnerable}: {curve.why}"


def unreadable(lens: Lens) -> list[int]:
    """Depths at which a lens reads nothing, though it does so at others."""
    gaps = [depth for depth, p in enumerate(lens.p) if p is None]
    return gaps if len(gaps) < len(lens.p) else []


def stretches(trace: Trace) -> int:
    """How many stretches of text were held out, over all domains."""
    return sum(len(loss.stretches) for loss in trace.losses.values())


def losses(trace: Trace) -> str:
    """Loss on held-out text by domain, in nats per byte, with standard errors."""
    found = trace.losses.items()
    words = [f"{name} {loss.per_byte:.3f} ± {loss.error:.3f}" for name, loss in found]
    return ", ".join(words) or "not measured"


def _slots(values: Sequence[int]) -> str:
    return ("slot " if len(values) == 1 else "slots ") + numbers(values)


def _vulnerable(trace: Trace) -> Iterator[str]:
    curve = trace.headline
    first, noun = trace.settings.perturbations[0], NOUNS.get(curve.part, curve.part)
    if curve.vulnerable is None:
        words = f"The vulnerable {noun} is {verdict(curve)}."
        close = _contenders(curve)
        yield words + (f" Too close to call: {listed(close)} nats." if close else "")
    else:
        slot = trace.slots[curve.vulnerable]
        yield (
            f"The vulnerable {noun} is slot {slot.slot} ({origin(slot)}): {first.kind} "
            f"{first.strength:g} there moves the predictions by {_interval(curve, slot.slot)} nats."
        )
    rest = [f"{_name(c, curve)}: {_short(c)}" for c in trace.curves if c.on == curve.on][1:]
    if rest:
        yield f"Measured in other ways, {'; '.join(rest)}."


def _contenders(curve: Curve) -> list[str]:
    """The most sensitive slots, where the intervals of several overlap."""
    found = [(mean, i) for i, mean in enumerate(curve.mean) if mean is not None and mean > 0]
    if not found:
        return []
    largest = max(found)[1]
    if curve.low[largest] is None:
        return []
    floor = curve.low[largest] or 0.0
    close = [i for _, i in sorted(found, reverse=True) if (curve.high[i] or 0.0) >= floor]
    return [f"slot {i} with {_interval(curve, i)}" for i in close[:3]] if len(close) > 1 else []


def _interval(curve: Curve, slot: int) -> str:
    low, high = curve.low[slot], curve.high[slot]
    ends = "" if low is None or high is None else f" ({number(low)} to {number(high)})"
    return f"{number(curve.mean[slot])}{ends}"


def _name(curve: Curve, headline: Curve) -> str:
    part = (
        "whole layers" if curve.part == "layer" else f"{NOUNS.get(curve.part, curve.part)}s alone"
    )
    return part if curve.kind == headline.kind else f"{part} under {curve.kind}"


def _short(curve: Curve) -> str:
    return "undecided" if curve.vulnerable is None else f"slot {curve.vulnerable}"


def _tasks(trace: Trace) -> Iterator[str]:
    if not trace.sets:
        yield "Where tasks are done was not asked: there are no sets."
        return
    depth = len(trace.slots)
    decided = [found for found in trace.sets if found.particle is not None]
    for found in decided:
        low, _, high = found.quartiles or (None, None, None)
        yield (
            f"{found.name}: task particle at depth {found.particle:g} of {depth} (quartiles "
            f"{number(low)} and {number(high)}, over {found.correct} correct items). "
            + _score(found)
        )
    open_ = [found for found in trace.sets if found.particle is None]
    if open_:
        where = "on every set" if not decided else "on the other sets"
        yield f"Where the task is done is undecided {where}: {'; '.join(_reasons(open_))}."


def _score(found: Set) -> str:
    score = f"Accuracy {found.accuracy:.0%}" if found.accuracy is not None else "No accuracy"
    if found.chance is None:
        return f"{score}; chance is not known."
    return f"{score}, chance {found.chance:.0%}{doubt(found)}."


def doubt(found: Set) -> str:
    """Words for an accuracy that is less than two standard errors above chance, else none."""
    if found.accuracy is None or found.chance is None or not found.readable:
        return ""
    if found.accuracy <= found.chance:
        return ": not above chance"
    sure = clearly_above(found.accuracy, found.chance, found.readable)
    return "" if sure else ": not clearly above chance"


def _reasons(sets: Sequence[Set]) -> list[str]:
    """Why sets are undecided, the same reason once."""
    few = [s for s in sets if s.why.endswith(TOO_FEW)]
    reasons = []
    if few:
        counts = ", ".join(f"{s.name} {s.correct} of {s.readable}" for s in few)
        reasons.append(f"too few items are answered correctly ({counts})")
    others: dict[str, list[str]] = {}
    for found in sets:
        if found not in few:
            others.setdefault(found.why.removeprefix(UNDECIDED), []).append(found.name)
    return reasons + [f"on {listed(names)}, {why}" for why, names in others.items()]


def _lenses(trace: Trace) -> Iterator[str]:
    both = [s for s in trace.sets if all(lens.particle is not None for lens in s.lenses.values())]
    differ = [s.name for s in both if s.lenses_differ]
    if differ:
        yield (
            "The two lenses differ by more than a quarter of the depth on "
            f"{listed(differ)}; on {len(both) - len(differ)} of {len(both)} sets they do not."
        )
    elif both:
        names = listed([s.name for s in both])
        yield f"The two lenses agree within a quarter of the depth on {names}."
    else:
        yield "Whether the two lenses agree cannot be told: on no set do both give a task particle."
    gaps: dict[str, set[int]] = {}
    for found in trace.sets:
        for name, lens in found.lenses.items():
            gaps.setdefault(name, set()).update(unreadable(lens))
    for name, depths in gaps.items():
        if depths:
            yield f"The {name} lens cannot read the stream at {_depths(sorted(depths))}."


def _depths(values: Sequence[int]) -> str:
    return ("depth " if len(values) == 1 else "depths ") + numbers(values)


def _idle(trace: Trace) -> Iterator[str]:
    curve, influence = trace.headline, trace.flow.influence
    mean = {i: value for i, value in enumerate(curve.mean) if value is not None}
    largest = max(mean.values(), default=0.0)
    nothing = [i for i, value in mean.items() if value == 0]
    if nothing:
        yield (
            f"No prediction changes at all when {_slots(nothing)} {_are(nothing)} perturbed "
            "(sensitivity exactly 0)."
        )
    little = [
        i
        for i, value in mean.items()
        if 0 < value < LITTLE_SENSITIVITY * largest and influence[i] < LITTLE_INFLUENCE
    ]
    if little:
        most = max(mean[i] for i in little)
        rise = max((curve.loss_rise[i] or 0.0) for i in little)
        yield (
            f"Little is done by {_some(little, len(trace.slots))}: block influence at most "
            f"{number(max(influence[i] for i in little))}, sensitivity at most {number(most)} nats "
            f"({most / largest:.1%} of the largest), loss rise at most {number(rise)} nats."
        )


def _some(values: Sequence[int], num: int) -> str:
    """Slots by number, or how many, where nobody would read their numbers."""
    return _slots(values) if len(values) <= MANY else f"{len(values)} of {num} slots"


def _are(values: Sequence[int]) -> str:
    return "is" if len(values) == 1 else "are"


def _swelling(trace: Trace) -> Iterator[str]:
    for slot, growth in zip(trace.slots, trace.flow.growth, strict=True):
        if growth >= SWELLING:
            yield f"Slot {slot.slot} makes the residual stream {number(growth)} times as long."


def _boundary(trace: Trace) -> str:
    prior = "Freeze boundary (prior, not measured)"
    if trace.boundary is None:
        return f"{prior}: none, because no layer is sensitive."
    last, end = trace.boundary.slots, len(trace.slots)
    frozen = f"freeze {_slots(range(last, end))}" if last < end else "freeze none"
    return f"{prior}: train {_slots(range(last))}, {frozen}; {trace.boundary.why}."


def _trust(trace: Trace) -> str:
    curve, num = trace.headline, stretches(trace)
    spread = "unknown" if curve.spread is None else number(curve.spread)
    agreement = "unknown" if curve.agreement is None else f"{curve.agreement:.0%}"
    seeds = trace.settings.perturbations[0].seeds
    words = (
        f"How far to trust it: spread {spread}, agreement {agreement}, {num} "
        f"{'stretch' if num == 1 else 'stretches'} of text, {seeds} "
        f"{'seed' if seeds == 1 else 'seeds'}"
    )
    rough = f"; with fewer than {FEW_STRETCHES} stretches the intervals are rough"
    return words + (rough if num < FEW_STRETCHES else "") + "."

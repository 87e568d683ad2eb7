"""What a trace looks like: its numbers as panels of the report. No torch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from hybridize.diagnostics.report.charts import (
    Axis,
    Line,
    Mark,
    Panel,
    figure,
    interval_figure,
    linear_axis,
    value_axis,
)
from hybridize.diagnostics.report.summary import verdict
from hybridize.diagnostics.report.words import number, origin
from hybridize.diagnostics.subject.trace import Curve, Lens, Set, Trace

Palette = Mapping[str, str]  # class of the style sheet, by donor
COLOURS = 8  # donors that have a colour of their own
DASHES = 6  # patterns that tell curves apart
LENSES = ("logit", "ridge")


def palette(traces: Sequence[Trace]) -> dict[str, str]:
    """One colour for each donor, in the order in which they appear."""
    donors = dict.fromkeys(slot.donor for trace in traces for slot in trace.slots)
    return {donor: f"d{i % COLOURS}" for i, donor in enumerate(donors)}


def dashes(trace: Trace) -> dict[str, str]:
    """The pattern of each set that has curves of its own."""
    names = dict.fromkeys(c.on for c in trace.curves if c.on != trace.headline.on)
    return {name: f"on on{i % DASHES}" for i, name in enumerate(names)}


def sensitivity_axis(traces: Sequence[Trace]) -> Axis:
    """One scale for all sensitivities of the page, so that they can be compared.

    Lower ends of intervals do not stretch it: one that is nearly 0 would.
    """
    curves = [curve for trace in traces for curve in trace.curves]
    return value_axis(value for curve in curves for value in (*curve.mean, *curve.high))


def sensitivity_figures(trace: Trace, kind: str, axis: Axis, colours: Palette) -> list[str]:
    """Sensitivity by slot to one perturbation, a panel for each part."""
    panels = []
    for curve in _whole(trace, kind):
        ends = zip(curve.mean, curve.low, curve.high, strict=True)
        marks = [
            Mark(mean, low, high, colours[slot.donor])
            for slot, (mean, low, high) in zip(trace.slots, ends, strict=True)
        ]
        named = "vulnerable: " if curve.vulnerable is not None else ""
        others = _others(trace, curve)
        panels.append(
            Panel(
                title=f"{curve.part}: sensitivity",
                note=named + verdict(curve),
                x="slot",
                unit="nats",
                y=axis,
                tips=[_sensitivity_tip(trace, curve, others, i) for i in range(len(marks))],
                marks=marks,
                lines=[Line(c.mean, style) for style, c in others],
                flag=curve.vulnerable,
            )
        )
    return [figure(panel) for panel in panels]


def loss_figures(trace: Trace, kind: str, colours: Palette) -> list[str]:
    """Rise of the loss by slot under one perturbation, a panel for each part, on one scale."""
    curves = [curve for curve in trace.curves if curve.kind == kind]
    means = [value for curve in curves for value in curve.loss_rise]
    ends = [end for curve in curves for pair in _ends(curve) for end in pair]
    axis = linear_axis([*means, *ends])
    found = []
    for curve in _whole(trace, kind):
        others = _others(trace, curve)
        tips = [
            "\n".join(
                [_slot_words(trace, i), f"loss rise {_nats(curve.loss_rise[i])}{_error(curve, i)}"]
                + [f"{c.on} {_nats(c.loss_rise[i])}" for _, c in others]
            )
            for i in range(len(trace.slots))
        ]
        marks = [
            Mark(value, low, high, colours[slot.donor])
            for slot, value, (low, high) in zip(
                trace.slots, curve.loss_rise, _ends(curve), strict=True
            )
        ]
        lines = [Line(c.loss_rise, style) for style, c in others]
        title = f"{curve.part}: loss rise"
        found.append(figure(Panel(title, "", "slot", "nats per token", axis, tips, marks, lines)))
    return found


def lens_figures(trace: Trace) -> list[str]:
    """Probability of the answer by depth, for every set of which items are answered correctly."""
    return [figure(_lens_panel(found)) for found in trace.sets if found.correct]


def particle_figures(trace: Trace) -> list[str]:
    """Where tasks are done: how many sets at each depth, and each with its quartiles."""
    decided = [s for s in trace.sets if s.particle is not None]
    if not decided:
        return []
    depth = len(trace.slots)
    counts = Counter(math.floor(s.particle or 0.0) for s in decided)
    names = {d: ", ".join(s.name for s in decided if int(s.particle or 0) == d) for d in counts}
    marks = [Mark(counts[d], style="plain") for d in range(depth + 1)]
    tips = [f"depth {d}: {names.get(d, 'no set')}" for d in range(depth + 1)]
    axis = linear_axis(counts.values(), whole=True)
    note = f"{len(decided)} of {len(trace.sets)} sets decided"
    sets = Panel("task particles", note, "depth", "sets", axis, tips, marks)
    rows = [row for row in map(_particle_row, decided) if row is not None]
    note = "median and quartiles over correct items"
    return [figure(sets), interval_figure("task particle by set", note, rows, depth)]


def flow_figures(trace: Trace, colours: Palette) -> Iterator[str]:
    """What each slot does to the stream, what is read out at each depth, and how well."""
    flow = trace.flow
    for title, unit, values in (
        ("block influence", "1 - cosine", flow.influence),
        ("angle", "units of pi", flow.angle),
        ("growth of the stream", "times", flow.growth),
    ):
        axis = value_axis(values)
        pairs = list(zip(trace.slots, values, strict=True))
        marks = [Mark(value, style=colours[slot.donor]) for slot, value in pairs]
        tips = [f"{_slot_words(trace, s.slot)}\n{title} {number(v, 3)}" for s, v in pairs]
        yield figure(Panel(title, "", "slot", unit, axis, tips, marks))
    yield figure(_entropy_panel(trace))
    r2 = trace.lens_r2
    tips = [f"depth {d}: R² {number(v, 3)}" for d, v in enumerate(r2)]
    note = "share of the last depth's stream that it explains"
    axis = linear_axis([*r2, 1.0])
    yield figure(
        Panel("ridge lens: R²", note, "depth", "R²", axis, tips, lines=[Line(r2, "ridge")])
    )


def _ends(curve: Curve) -> list[tuple[float | None, float | None]]:
    """One standard error below and above each rise of the loss."""
    pairs = zip(curve.loss_rise, curve.loss_error, strict=True)
    return [
        (None, None) if rise is None or error is None else (rise - error, rise + error)
        for rise, error in pairs
    ]


def _error(curve: Curve, slot: int) -> str:
    error = curve.loss_error[slot]
    return "" if error is None else f" ± {number(error, 3)}"


def _whole(trace: Trace, kind: str) -> list[Curve]:
    """The curves over all text."""
    return [c for c in trace.curves if c.kind == kind and c.on == trace.headline.on]


def _others(trace: Trace, curve: Curve) -> list[tuple[str, Curve]]:
    """The same measured on single sets, with their patterns."""
    styles = dashes(trace)
    same = [c for c in trace.curves if (c.kind, c.part) == (curve.kind, curve.part)]
    return [(styles[c.on], c) for c in same if c.on in styles]


def _sensitivity_tip(
    trace: Trace, curve: Curve, others: Sequence[tuple[str, Curve]], slot: int
) -> str:
    mean = curve.mean[slot]
    if mean is None:
        return f"{_slot_words(trace, slot)}\nno {curve.part} that can be told from the rest"
    low, high = curve.low[slot], curve.high[slot]
    ends = "" if low is None or high is None else f" ({number(low, 3)} to {number(high, 3)})"
    lines = [_slot_words(trace, slot), f"sensitivity {_nats(mean)}{ends}"]
    return "\n".join(lines + [f"{c.on} {_nats(c.mean[slot])}" for _, c in others])


def _slot_words(trace: Trace, slot: int) -> str:
    return f"slot {slot}, {origin(trace.slots[slot])}"


def _nats(value: float | None) -> str:
    return "not measured" if value is None else f"{number(value, 3)} nats"


def _lens_panel(found: Set) -> Panel:
    lenses = {name: found.lenses[name] for name in LENSES if name in found.lenses}
    num = max((len(lens.p) for lens in lenses.values()), default=0)
    tips = [
        "\n".join([f"depth {d}"] + [f"{name} lens {_at(lens, d)}" for name, lens in lenses.items()])
        for d in range(num)
    ]
    where = "undecided" if found.particle is None else f"{found.particle:g}"
    return Panel(
        title=found.name,
        note=f"{found.correct} of {found.readable} items correct; task particle: {where}; base: "
        f"{number(found.base)}",
        x="depth",
        unit="p(answer)",
        y=linear_axis(p for lens in lenses.values() for p in lens.p),
        tips=tips,
        lines=[Line(lens.p, name) for name, lens in lenses.items()],
        rule=found.particle,
    )


def _at(lens: Lens, depth: int) -> str:
    p = lens.p[depth]
    return "cannot read" if p is None else number(p, 3)


def _particle_row(found: Set) -> tuple[str, str, Sequence[float]] | None:
    if found.quartiles is None:
        return None
    label = found.name if len(found.name) <= 12 else found.name[:11] + "…"
    return f"{label} ({found.correct})", f"{found.name}: {found.why}", found.quartiles


def _entropy_panel(trace: Trace) -> Panel:
    """Entropy over all scored positions of text; over those of all sets where there is no text."""
    sets = [s for s in trace.sets if s.kind == "text"] or list(trace.sets)
    num = len(trace.slots) + 1
    curves = {name: [_mean_entropy(sets, name, d) for d in range(num)] for name in LENSES}
    tips = [
        "\n".join([f"depth {d}"] + [f"{name} lens {_nats(curves[name][d])}" for name in LENSES])
        for d in range(num)
    ]
    lines = [Line(values, name) for name, values in curves.items()]
    axis = linear_axis(v for values in curves.values() for v in values)
    note = "of what a lens reads out, mean over " + (", ".join(s.name for s in sets) or "no set")
    return Panel("entropy", note, "depth", "nats", axis, tips, lines=lines)


def _mean_entropy(sets: Sequence[Set], lens: str, depth: int) -> float | None:
    pairs = [(s.lenses[lens].entropy[depth], s.readable) for s in sets if lens in s.lenses]
    known = [(value, weight) for value, weight in pairs if value is not None and weight]
    total = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / total if total else None
